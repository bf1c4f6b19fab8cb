"""Problems of a run that are found before a model is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from unlearnbench.algos.base import Unlearner
from unlearnbench.config.errors import UserError
from unlearnbench.config.paths import is_folder_name
from unlearnbench.data.prompts import Prompt, measured_split
from unlearnbench.experiment.continual import continual_problem
from unlearnbench.experiment.distributed import distributed_problem, process_device
from unlearnbench.experiment.downloads import (
    fetch_all,
    left_out_metrics,
    missing_downloads,
    missing_sets,
    refused_downloads,
)
from unlearnbench.experiment.memory import memory_problem
from unlearnbench.experiment.provenance import override_key
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.experiment.tracking import tracker_problem
from unlearnbench.experiment.training_images import training_prompts
from unlearnbench.models.base import TextToImage
from unlearnbench.models.checkpoint_headers import known_shapes, name_variants
from unlearnbench.models.diffusers_model import DiffusersModel
from unlearnbench.models.parameters import matching_names, name_pattern
from unlearnbench.models.prompt_length import cut_prompts
from unlearnbench.models.tiny import Tiny
from unlearnbench.sampling.settings import GUIDANCE_COLUMNS, SIZE_COLUMNS

ACCELERATORS = {  # by preference: what an error calls them
    "cuda": ("CUDA", "a CUDA build"),
    "mps": ("Apple", "the macOS build for Apple silicon"),
    "xpu": ("Intel", "the XPU build"),
}
TRAINING_IMAGES = ("per_prompt", "forget_folder", "retain_folder")  # the settings of `training` that make the examples


def find_problems(spec: RunSpec, overrides: Sequence[str] = ()) -> list[str]:
    """The problems that would stop this run, one line each; loads no model and downloads nothing.

    Args:
        spec: the run's settings.
        overrides: those that the user gave; a setting of theirs that the method does not read is a problem.

    Raises:
        UserError: the prompts cannot be read.
    """
    problems = [
        _torchvision_problem(),
        spec.model.unavailable_reason(),
        spec.algo.unavailable_reason(spec.model),
        _selection_problem(spec.model, spec.algo),
        *_name_problems(spec),
        *metric_problems(spec),
        tracker_problem(spec.tracker),
        distributed_problem(spec.training.processes, spec.algo.batch),
        *_unread_overrides(spec, overrides),
    ]
    if not any(problems):
        problems += _steps_problems(spec, spec.model)
    problems += refused_downloads(spec)
    if missing_sets(spec):  # what depends on the prompts is not known yet
        return list(dict.fromkeys(problem for problem in problems if problem))
    prompts = spec.prompts()
    problems += metric_sample_problems(spec, [*spec.sample.limit(prompts)] * spec.sample.per_prompt)
    problems += [_guidance_problem(spec, prompts), _size_problem(spec, prompts)]
    splits = {prompt.split for prompt in prompts}
    unmeasured = [concept for split, concept in spec.concept.concepts_by_split("forget").items() if split not in splits]
    problems += [f"concept.prompts={concept.prompts}: no forget prompt to measure" for concept in unmeasured]
    if not unmeasured:
        problems += _training_problems(spec)
    if len(spec.concept.unlearning_stages()) > 1 and not spec.algo.supports_sequential:
        repair = "unlearn them at once: concept.continual=false"
        problems.append(f"algo={spec.algo.name} does not support sequential unlearning; {repair}")
    problems.append(continual_problem(spec))
    if spec.save_pipeline and not spec.algo.saves_as_pipeline:
        problems.append(f"algo={spec.algo.name}: a plain diffusers pipeline cannot hold its result; set save_pipeline=false")
    try:
        device = select_device(spec.device)
    except UserError as error:
        problems.append(str(error))
    else:
        problems += [] if any(problems) else [memory_problem(spec.model, spec.algo, device)]
    return list(dict.fromkeys(problem for problem in problems if problem))


def _name_problems(spec: RunSpec) -> list[str]:
    """The names that cannot be those of folders, and the concepts that nothing names."""
    problems = [
        f"{setting}.name={name!r}: folders are called by it; choose a name without a slash"
        for setting, name in (("algo", spec.algo.name), ("concept", spec.concept.name))
        if not is_folder_name(name)
    ]
    for concept in spec.concept.concepts_by_split("forget").values():
        if not any(word.strip() for word in concept.words):
            problems.append(f"concept {concept.name}: words is empty; name the concept, such as words=[church, chapel]")
        if not concept.guide.strip():
            problems.append(f"concept {concept.name}: guide is empty; give the concept as a phrase, such as guide=church")
    return problems


def metric_problems(spec: RunSpec) -> list[str | None]:
    """Why a metric cannot be measured even after its downloads, and the repair; nothing of metrics that are left out."""
    setting, left_out = spec.evaluation_setting, left_out_metrics(spec)
    if left_out and len(left_out) == len(spec.metrics):
        return [*left_out.values()]
    metrics = [metric for name, metric in spec.metrics.items() if name not in left_out]
    return [metric.unavailable_reason(setting) for metric in metrics if not metric.downloads(setting)]


def download_missing(spec: RunSpec, overrides: Sequence[str] = ()) -> None:
    """Download what the run needs and is not on this machine: prompts first, for what they show may stop the run.

    Raises:
        UserError: a download failed, or what came shows a problem.
    """
    if not (downloads := missing_downloads(spec)):
        return
    sets = [download for download in downloads if download in missing_sets(spec)]
    for part in (sets, [download for download in downloads if download not in sets]):
        if part:
            fetch_all(part)
            if problems := find_problems(spec, overrides):
                raise UserError("\n".join(problems))


def metric_sample_problems(spec: RunSpec, images: Sequence[Prompt]) -> list[str | None]:
    """Why a metric would have no number on these images, such as too few for it, and the repair.

    Args:
        spec: the run's settings.
        images: the prompt of each image of one model.
    """
    setting = spec.evaluation_setting
    left_out = left_out_metrics(spec)
    reasons = {name: metric.sample_problem(setting, images) for name, metric in spec.metrics.items() if name not in left_out}
    return [f"metrics.{name}: {reason}, or remove it with '~metrics.{name}'" for name, reason in reasons.items() if reason]


def find_warnings(spec: RunSpec, model: TextToImage | None = None) -> list[str]:
    """What does not stop this run but changes what its numbers mean, one line each: copies of prompts, and prompts that are cut.

    Args:
        spec: the run's settings.
        model: the run's model, once it is loaded; before, what its files on this machine say.
    """
    precision = [warning for warning in (_unscaled_gradients(spec), _emulated_bf16(spec)) if warning]
    prompts = [*_copied_prompts(spec), *_cut_prompts(spec, model or spec.model)]
    return [*precision, *_without_float64(spec), *_left_out(spec), *prompts]


def _unscaled_gradients(spec: RunSpec) -> str | None:
    """That a method trains in fp16, whose smallest number above 0 is 6e-8, on the CPU, where the loss is not scaled."""
    if spec.model.dtype != "fp16" or spec.algo.steps == 0 or "steps" in spec.algo.unread_settings:
        return None
    if select_device(spec.device).type != "cpu":
        return None
    return "model.dtype=fp16: gradients are not scaled, and small ones become 0; train with model.dtype=bf16 or fp32"


def _emulated_bf16(spec: RunSpec) -> str | None:
    """That the GPU is older than bf16."""
    device = select_device(spec.device)
    if spec.model.dtype != "bf16" or device.type != "cuda" or torch.version.hip:
        return None
    if torch.cuda.get_device_capability(device) >= (8, 0):
        return None
    repair = "sample with model.dtype=fp16, train with fp32"
    return f"model.dtype=bf16: {torch.cuda.get_device_name(device)} has no bf16 and emulates it, which is slow; {repair}"


def _without_float64(spec: RunSpec) -> list[str]:
    """What the device leaves to the CPU."""
    kind = select_device(spec.device).type
    if kind in ("cpu", "cuda"):
        return []
    return [
        f"device={kind} is not taken to have float64: closed-form edits, preconditioners and distances are computed on the CPU"
    ]


def _left_out(spec: RunSpec) -> list[str]:
    """The metrics that are left out, by reason."""
    left_out = left_out_metrics(spec)
    reasons = {reason: [name for name in left_out if left_out[name] == reason] for reason in left_out.values()}
    return [f"{', '.join(names)} left out: {reason}" for reason, names in reasons.items()]


def _copied_prompts(spec: RunSpec) -> list[str]:
    rows, prompts = spec.measured_rows(), spec.prompts()
    if len(rows) == len(prompts):
        return []
    counts = Counter((measured_split(row.split), row.text, row.seed) for row in rows)
    (_, text, _), _ = counts.most_common(1)[0]
    copies = f"{len(rows) - len(prompts)} of {len(rows)} measured prompts are copies of others with the same seed"
    return [f"{copies}, such as {text!r}; each is measured once"]


def _selection_problem(model: TextToImage, algo: Unlearner) -> str | None:
    """Why `train` selects no parameter, as far as the names are known before the model is loaded."""
    try:
        name_pattern(model, algo.selection)
        if isinstance(model, Tiny) and algo.selection in model.patterns:
            return None  # each selects some; to list them, the pipeline would have to be made
        if not algo.adds_parameters and (shapes := known_shapes(model)) is not None:
            matching_names(model, algo.selection, [variant for name in shapes for variant in name_variants(name)])
    except UserError as error:
        return str(error)
    return None


def find_loaded_problems(spec: RunSpec, model: TextToImage) -> list[str]:
    """The problems that only the loaded model shows, if its files were not on this machine before; nothing was sampled yet."""
    memory, weights = memory_problem(model, spec.algo, model.device), spec.algo.unavailable_reason(model)
    problems = (memory, weights, _selection_problem(model, spec.algo), *_steps_problems(spec, model))
    return [problem for problem in problems if problem]


def _cut_prompts(spec: RunSpec, model: TextToImage) -> list[str]:
    """The prompts that are longer than the text encoder."""
    if not isinstance(model, DiffusersModel):
        return []
    sides = {"measured": [p.text for p in spec.sample.limit(spec.prompts())], "training": _training_texts(spec)}
    warnings = []
    for side, texts in sides.items():
        texts = list(dict.fromkeys(texts))
        if (cut := cut_prompts(model, texts)).prompts:
            count = f"{len(cut.prompts)} of {len(texts)} {side} prompts are longer than the text encoder ({cut.tokens} tokens)"
            warnings.append(f"{count} and are cut, such as {shorten(cut.prompts[0], 60)!r}")
    return warnings


def _training_texts(spec: RunSpec) -> list[str]:
    if not spec.algo.needs_examples:
        return []
    sides = [*(("forget", stage) for stage in spec.concept.unlearning_stages()), ("retain", spec.concept)]
    return [text for side, concept in sides for text in training_prompts(spec, side, concept)[0]]


def _steps_problems(spec: RunSpec, model: TextToImage) -> list[str]:
    """The settings that ask for more sampling steps than the scheduler has timesteps."""
    most = model.most_steps(model.configs()) if isinstance(model, DiffusersModel) else None
    settings = {"sample.steps": spec.sample.steps, "algo.sample_steps": getattr(spec.algo, "sample_steps", None)}
    return [
        f"{name}={steps}: the scheduler of {spec.model.path} has {most} timesteps; take fewer steps"
        for name, steps in settings.items()
        if most is not None and steps is not None and steps > most
    ]


def _guidance_problem(spec: RunSpec, prompts: Sequence[Prompt]) -> str | None:
    """Why the guidance scale of a row, if it is asked for, cannot be used."""
    try:
        for prompt in prompts:
            spec.sample.scale(prompt)
    except UserError as error:
        return f"sample.row_guidance=true: {error}"
    if spec.sample.row_guidance and not any(name in GUIDANCE_COLUMNS for prompt in prompts for name, _ in prompt.columns):
        names = ", ".join(GUIDANCE_COLUMNS)
        return f"sample.row_guidance=true: no measured prompt has one of the columns {names}; set it to false"
    return None


def _size_problem(spec: RunSpec, prompts: Sequence[Prompt]) -> str | None:
    """Why the size of a row, if it is asked for, cannot be used."""
    if not spec.sample.row_size:
        return None
    model = spec.model
    multiple = model.side_multiple(model.configs()) if isinstance(model, DiffusersModel) else 1
    try:
        shapes = [(prompt.text, shape) for prompt in prompts if (shape := spec.sample.shape(prompt))]
    except UserError as error:
        return f"sample.row_size=true: {error}"
    if not shapes:
        return f"sample.row_size=true: no measured prompt has {' and '.join(SIZE_COLUMNS)}; leave it out"
    for text, (height, width) in shapes:
        if height % multiple or width % multiple:
            reason = f"height and width must be multiples of {multiple} for {model.path}"
            return f"sample.row_size=true: the size {width} x {height} of the prompt {text!r}: {reason}"
    return None


def _unread_overrides(spec: RunSpec, overrides: Sequence[str]) -> list[str]:
    """The overrides of settings that the method does not read; one that states the default may stay."""
    algo = spec.algo
    unread: dict[str, tuple[Any, str]] = {f"algo.{name}": (algo, name) for name in algo.unread_settings}
    if not algo.needs_examples:
        unread |= {f"training.{name}": (spec.training, name) for name in TRAINING_IMAGES}
    problems = []
    for override in overrides:
        part, name = unread.get(override_key(override), (None, ""))
        if part is not None and getattr(part, name) != getattr(type(part), name):
            problems.append(f"{override}: algo={algo.name} does not read {name}, so it would change nothing; leave it out")
    return problems


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
    """LPIPS and CLIP's image processor need torchvision's compiled operators, which load only with a matching torch.

    The operators alone are loaded: torchvision itself takes as long to import as torch.
    """
    package = find_spec("torchvision")
    libraries = [] if package is None or not package.origin else [*Path(package.origin).parent.glob("_C*.so")]
    try:
        if not libraries:
            import torchvision  # noqa: F401
        for library in libraries:
            torch.ops.load_library(library)
    except (ImportError, OSError, RuntimeError) as error:
        repair = "install both from the same index: pip install -U torch torchvision"
        return f"torchvision does not load with torch {torch.__version__} ({error}); {repair}"
    return None


def select_device(name: str) -> torch.device:
    """The device that the setting `device` names: auto, cpu, cuda, cuda:<number> (ROCm's GPUs too), mps or xpu.

    auto takes CUDA's, else another accelerator that torch knows (Apple's mps, Intel's xpu), else the CPU.

    Raises:
        UserError: it is unknown, or not available.
    """
    device = _named_device(name)
    if device.index is not None and device.type in ACCELERATORS and device.index >= (count := _device_count(device.type)):
        known = ", ".join(f"{device.type}:{number}" for number in range(count))
        raise UserError(f"device={name}: there is no {device}; this machine has {known}")
    return device


def _named_device(name: str) -> torch.device:
    if name == "auto":
        return process_device(torch.device(_best_device()))
    kind = name.partition(":")[0]
    if kind not in ACCELERATORS and name != "cpu":
        raise UserError(f"device={name}: unknown device; choose from auto, cpu, cuda, cuda:<number>, mps, xpu")
    if kind in ACCELERATORS and not _is_available(kind):
        named, build = ACCELERATORS[kind]
        raise UserError(f"device={name}: no {named} device is available; use device=cpu, or install {build} of torch")
    try:
        return process_device(torch.device(name))
    except RuntimeError as error:
        raise UserError(f"device={name}: unknown device; choose from auto, cpu, cuda, cuda:<number>, mps, xpu") from error


def _is_available(kind: str) -> bool:
    """Whether a kind of accelerator is there."""
    if kind == "cuda":
        return torch.cuda.is_available()
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator is not None and accelerator.type == kind


def _device_count(kind: str) -> int:
    return torch.cuda.device_count() if kind == "cuda" else torch.accelerator.device_count()


def _best_device() -> str:
    return next((kind for kind in ACCELERATORS if _is_available(kind)), "cpu")
