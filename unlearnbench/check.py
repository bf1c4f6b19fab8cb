"""What would keep a run from working, told before anything is loaded."""

from __future__ import annotations

import torch

from unlearnbench import team, tracking
from unlearnbench.config import UserError
from unlearnbench.data import Concept, read_captioned
from unlearnbench.models.memory import lacks_memory
from unlearnbench.models.pipeline import Pipeline
from unlearnbench.spec import Spec
from unlearnbench.training import to_forget


def check(spec: Spec) -> list[str]:
    """Everything that would keep this run from working, one line each; loads no model.

    Raises:
        UserError: the prompts cannot be read.
    """
    lacks = [
        _torchvision_lacks(),
        spec.model.missing(),
        spec.algo.missing(spec.model),
        *(metric.missing(spec) for metric in spec.metrics.values()),
        tracking.missing(spec.tracker),
        team.missing(spec.training.processes, spec.algo.batch),
    ]
    splits = {prompt.split for prompt in spec.prompts()}
    for split, concept in spec.concept.by_split("forget").items():
        if split not in splits:
            lacks.append(f"concept.prompts={concept.prompts}: no forget prompt to measure")
    if len(spec.concept.stages()) > 1 and not spec.algo.lasting:
        repair = "forget them at once: concept.continual=false"
        lacks.append(f"algo={spec.algo.name} keeps nothing of a concept when it forgets the next; {repair}")
    device = device_of(spec.device)
    if isinstance(spec.model, Pipeline) and not any(lacks):
        lacks.append(lacks_memory(spec.model, spec.algo, device))
    folders = spec.training.forget_folder, spec.training.retain_folder
    captions = [None if folder is None else read_captioned(folder)[0] for folder in folders]
    if spec.algo.needs_anchors:
        lacks += [_anchors_lack(spec, stage, captions[0]) for stage in spec.concept.stages()]
    return list(dict.fromkeys(lack for lack in lacks if lack))


def _anchors_lack(spec: Spec, concept: Concept, captions: list[str] | None) -> str | None:
    asked = [p.text for p in to_forget(concept)] if captions is None else captions
    if not asked or any(concept.substitute(text) != text for text in asked):
        return None
    repair = 'give what to paint instead, such as concept.anchor={"church": "house"}, or try algo=esd_x'
    return f"algo={spec.algo.name}: concept.anchor exchanges nothing in the forget prompts of {concept.name}; {repair}"


def _torchvision_lacks() -> str | None:
    """LPIPS and CLIP's image processor need torchvision's compiled operators, which load beside one build of torch only."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        repair = "install both from one index: pip install -U torch torchvision"
        return f"torchvision does not load beside torch {torch.__version__} ({error}); {repair}"
    return None


def device_of(asked: str) -> torch.device:
    """The device that `device=` asks for.

    Raises:
        UserError: it is unknown or absent.
    """
    if asked == "auto":
        return team.own_gpu(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if asked not in ("cpu", "cuda") and not asked.startswith("cuda:"):
        raise UserError(f"device={asked}: known: auto, cpu, cuda, cuda:<number>")
    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device={asked}: no CUDA device here; use device=cpu, or install a CUDA build of torch")
    return team.own_gpu(torch.device(asked))
