"""Problems of a run that are found before a model is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from unlearnbench.algos.base import Unlearner
from unlearnbench.config.errors import UserError
from unlearnbench.data.prompts import Prompt, measured_split
from unlearnbench.experiment.distributed import distributed_problem, process_device
from unlearnbench.experiment.memory import memory_problem
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.experiment.tracking import tracker_problem
from unlearnbench.experiment.training_images import training_prompts
from unlearnbench.models.base import TextToImage
from unlearnbench.models.checkpoint_headers import known_shapes, name_variants
from unlearnbench.models.parameters import matching_names, name_pattern


def find_problems(spec: RunSpec) -> list[str]:
    """The problems that would stop this run, one line each; loads no model.

    Raises:
        UserError: the prompts cannot be read.
    """
    problems = [
        _torchvision_problem(),
        spec.model.unavailable_reason(),
        spec.algo.unavailable_reason(spec.model),
        _selection_problem(spec.model, spec.algo),
        *(metric.unavailable_reason(spec.evaluation_setting) for metric in spec.metrics.values()),
        tracker_problem(spec.tracker),
        distributed_problem(spec.training.processes, spec.algo.batch),
    ]
    prompts = spec.prompts()
    problems += metric_sample_problems(spec, [*spec.sample.limit(prompts)] * spec.sample.per_prompt)
    splits = {prompt.split for prompt in prompts}
    unmeasured = [concept for split, concept in spec.concept.concepts_by_split("forget").items() if split not in splits]
    problems += [f"concept.prompts={concept.prompts}: no forget prompt to measure" for concept in unmeasured]
    if not unmeasured:
        problems += _training_problems(spec)
    if len(spec.concept.unlearning_stages()) > 1 and not spec.algo.supports_sequential:
        repair = "unlearn them at once: concept.continual=false"
        problems.append(f"algo={spec.algo.name} does not support sequential unlearning; {repair}")
    if spec.save_pipeline and not spec.algo.saves_as_pipeline:
        problems.append(f"algo={spec.algo.name}: a plain diffusers pipeline cannot hold its result; set save_pipeline=false")
    device = select_device(spec.device)
    if not any(problems):
        problems.append(memory_problem(spec.model, spec.algo, device))
    return list(dict.fromkeys(problem for problem in problems if problem))


def metric_sample_problems(spec: RunSpec, images: Sequence[Prompt]) -> list[str | None]:
    """Why a metric would have no number on these images, such as too few for it, and the repair.

    Args:
        spec: the run's settings.
        images: the prompt of each image of one model.
    """
    setting = spec.evaluation_setting
    reasons = {name: metric.sample_problem(setting, images) for name, metric in spec.metrics.items()}
    return [f"metrics.{name}: {reason}, or remove it with '~metrics.{name}'" for name, reason in reasons.items() if reason]


def find_warnings(spec: RunSpec) -> list[str]:
    """What does not stop this run but changes what its numbers mean, one line each; loads no model."""
    rows, prompts = spec.measured_rows(), spec.prompts()
    if len(rows) == len(prompts):
        return []
    counts = Counter((measured_split(row.split), row.text, row.seed) for row in rows)
    (_, text, _), _ = counts.most_common(1)[0]
    copies = f"{len(rows) - len(prompts)} of {len(rows)} measured prompts are copies of others with the same seed"
    return [f"{copies}, such as {text!r}; each is measured once"]


def _selection_problem(model: TextToImage, algo: Unlearner) -> str | None:
    """Why `train` selects no parameter, as far as the names are known before the model is loaded."""
    shapes = known_shapes(model)
    try:
        if shapes is None or algo.adds_parameters:
            name_pattern(model, algo.selection)
        else:
            matching_names(model, algo.selection, [variant for name in shapes for variant in name_variants(name)])
    except UserError as error:
        return str(error)
    return None


def _training_problems(spec: RunSpec) -> list[str | None]:
    """Why there are no suitable training examples of a concept, or of what is retained."""
    problems: list[str | None] = []
    for side, concept in [*(("forget", stage) for stage in spec.concept.unlearning_stages()), ("retain", spec.concept)]:
        try:
            texts, _ = training_prompts(spec, side, concept)
        except UserError as error:
            problems.append(str(error))
        else:
            problems.append(spec.algo.incompatible_reason(concept, texts) if side == "forget" else None)
    return problems


def _torchvision_problem() -> str | None:
    """LPIPS and CLIP's image processor need torchvision's compiled operators, which load only with a matching torch."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        repair = "install both from the same index: pip install -U torch torchvision"
        return f"torchvision does not load with torch {torch.__version__} ({error}); {repair}"
    return None


def select_device(name: str) -> torch.device:
    """The device that the setting `device` names: auto, cpu, cuda or cuda:<number>.

    Raises:
        UserError: it is unknown, or not available.
    """
    if name == "auto":
        return process_device(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if name not in ("cpu", "cuda") and not name.startswith("cuda:"):
        raise UserError(f"device={name}: unknown device; choose from auto, cpu, cuda, cuda:<number>")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device={name}: no CUDA device is available; use device=cpu, or install a CUDA build of torch")
    return process_device(torch.device(name))
