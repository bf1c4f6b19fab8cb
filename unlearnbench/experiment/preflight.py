"""What would keep a run from working, told before anything is loaded."""

from __future__ import annotations

import torch

from unlearnbench.algos.base import Unlearner
from unlearnbench.config.errors import UserError
from unlearnbench.experiment.distributed import distributed_problem, own_gpu
from unlearnbench.experiment.memory import memory_problem
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.experiment.tracking import tracker_problem
from unlearnbench.experiment.training_images import training_prompts
from unlearnbench.models.base import TextToImage
from unlearnbench.models.checkpoint_headers import known_shapes, name_variants
from unlearnbench.models.parameters import matching_names, name_pattern


def find_problems(spec: RunSpec) -> list[str]:
    """Everything that would keep this run from working, one line each; loads no model.

    Raises:
        UserError: the prompts cannot be read.
    """
    lacks = [
        _torchvision_lacks(),
        spec.model.unavailable_reason(),
        spec.algo.unavailable_reason(spec.model),
        _selection_lacks(spec.model, spec.algo),
        *(metric.unavailable_reason(spec.evaluation_setting) for metric in spec.metrics.values()),
        tracker_problem(spec.tracker),
        distributed_problem(spec.training.processes, spec.algo.batch),
    ]
    splits = {prompt.split for prompt in spec.prompts()}
    unmeasured = [concept for split, concept in spec.concept.concepts_by_split("forget").items() if split not in splits]
    lacks += [f"concept.prompts={concept.prompts}: no forget prompt to measure" for concept in unmeasured]
    if not unmeasured:
        lacks += _training_lacks(spec)
    if len(spec.concept.unlearning_stages()) > 1 and not spec.algo.supports_sequential:
        repair = "unlearn them at once: concept.continual=false"
        lacks.append(f"algo={spec.algo.name} does not support sequential unlearning; {repair}")
    if spec.save_pipeline and not spec.algo.saves_as_pipeline:
        lacks.append(f"algo={spec.algo.name}: a plain diffusers pipeline cannot hold its result; set save_pipeline=false")
    device = select_device(spec.device)
    if not any(lacks):
        lacks.append(memory_problem(spec.model, spec.algo, device))
    return list(dict.fromkeys(lack for lack in lacks if lack))


def _selection_lacks(model: TextToImage, algo: Unlearner) -> str | None:
    """Why no parameter would train, as far as their names are known before the model is loaded."""
    shapes = known_shapes(model)
    try:
        if shapes is None or algo.adds_parameters:
            name_pattern(model, algo.selection)
        else:
            matching_names(model, algo.selection, [spelled for name in shapes for spelled in name_variants(name)])
    except UserError as error:
        return str(error)
    return None


def _training_lacks(spec: RunSpec) -> list[str | None]:
    """What keeps each concept that is forgotten in turn from being trained, and what keeps the rest from being retained."""
    lacks: list[str | None] = []
    for side, concept in [*(("forget", stage) for stage in spec.concept.unlearning_stages()), ("retain", spec.concept)]:
        try:
            texts, _ = training_prompts(spec, side, concept)
        except UserError as error:
            lacks.append(str(error))
        else:
            lacks.append(spec.algo.incompatible_reason(concept, texts) if side == "forget" else None)
    return lacks


def _torchvision_lacks() -> str | None:
    """LPIPS and CLIP's image processor need torchvision's compiled operators, which load beside one build of torch only."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        repair = "install both from one index: pip install -U torch torchvision"
        return f"torchvision does not load beside torch {torch.__version__} ({error}); {repair}"
    return None


def select_device(asked: str) -> torch.device:
    """The device that `device=` asks for.

    Raises:
        UserError: it is unknown or absent.
    """
    if asked == "auto":
        return own_gpu(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if asked not in ("cpu", "cuda") and not asked.startswith("cuda:"):
        raise UserError(f"device={asked}: known: auto, cpu, cuda, cuda:<number>")
    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device={asked}: no CUDA device here; use device=cpu, or install a CUDA build of torch")
    return own_gpu(torch.device(asked))
