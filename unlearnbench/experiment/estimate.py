"""What a run on a model of full size takes, before it starts: disk, memory of a GPU, floating-point operations and time."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from unlearnbench.console import format_duration
from unlearnbench.experiment.downloads import missing_downloads, missing_sets
from unlearnbench.experiment.memory import least_memory
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.models.base import DTYPES
from unlearnbench.models.diffusers_model import DiffusersModel
from unlearnbench.storage.units import format_size

PNG_BYTES = 2.0  # bytes of a PNG for each pixel of a photograph
COPIES = 3  # of an image of the original model in the run and the cache, and one of the unlearned model
BACKWARD = 3  # a forward and a backward pass take as many operations as three forward passes
# Operations a second, in units of 10^12, of whole sampling passes in this precision (counted from measured and fitted times)
RATES = {
    "fp32": {"A100": 16.0, "RTX 4090": 56.0, "H100": 48.0},
    "bf16": {"H100": 163.0},
    "fp16": {"H100": 163.0},
}


@dataclass(frozen=True)
class Figures:
    """A family at its own size, counted by torch's FlopCounterMode on meta tensors.

    Attributes:
        size: height and width of an image, in pixels.
        passing: operations of the denoiser for one image, in units of 10^12.
        decoding: operations of the autoencoder for one image, in units of 10^12.
        parameters: of all parts, in units of 10^9.
    """

    size: int
    passing: float
    decoding: float
    parameters: float


FIGURES = {
    "StableDiffusionPipeline": (Figures(512, 0.803, 2.51, 1.07), Figures(768, 2.149, 5.75, 1.29)),
    "StableDiffusionXLPipeline": (Figures(1024, 6.761, 10.47, 3.47),),
    "StableDiffusion3Pipeline": (Figures(1024, 11.25, 10.47, 7.9),),
    "FluxPipeline": (Figures(1024, 74.4, 10.47, 16.9),),
}


def estimate_lines(spec: RunSpec) -> list[str]:
    """The estimate of a run on photographs, one line each: empty for Pictoworld; asks the hub for sizes alone."""
    if spec.model.domain == "pictoworld" or not isinstance(spec.model, DiffusersModel):
        return []
    lines = [_download_line(spec)]
    if not missing_sets(spec):
        lines += [_disk_line(spec), *_work_lines(spec)]
    lines.append(_memory_line(spec.model, spec))
    return [line for line in lines if line]


def operations(spec: RunSpec) -> tuple[float, float]:
    """The operations of sampling both models, and of unlearning, in units of 10^15.

    Without the training images that a method generates, and without what it samples inside a step.
    """
    assert isinstance(spec.model, DiffusersModel)
    figures = _figures(spec.model)
    scale = (spec.model.size / figures.size) ** 2
    passes = spec.sample.steps * (2 if spec.sample.guidance > 1 and spec.model.capabilities else 1)
    sampling = 2 * _images(spec) * (passes * figures.passing + figures.decoding) * scale
    stages = spec.concept.unlearning_stages()
    steps = sum(spec.algo.steps * len(stage.concepts_by_split("forget")) for stage in stages)
    return sampling / 1000, steps * spec.algo.batch * 2 * BACKWARD * figures.passing * scale / 1000


def _figures(model: DiffusersModel) -> Figures:
    return min(FIGURES[model.pipeline_class], key=lambda figures: abs(figures.size - model.size))


def _images(spec: RunSpec) -> int:
    """How many images each model generates."""
    return len(spec.sample.limit(spec.prompts())) * spec.sample.per_prompt


def _download_line(spec: RunSpec) -> str:
    """The sum of several downloads; each has its own line."""
    sizes = [download.size() for download in missing_downloads(spec) if download.problem(spec.fetch == "auto") is None]
    known = [size for size in sizes if size is not None]
    return f"downloads in all: {format_size(sum(known))}" if len(known) > 1 else ""


def _disk_line(spec: RunSpec) -> str:
    images, each = _images(spec), PNG_BYTES * spec.model.size**2
    needed, free = COPIES * images * each, shutil.disk_usage(Path()).free
    line = f"disk: about {format_size(needed)} of images, {format_size(free)} are free"
    if needed <= free:
        return line
    splits = len({prompt.split for prompt in spec.prompts()})
    fewer = max(1, int(free / (COPIES * each * splits * spec.sample.per_prompt)))
    return f"{line}; take fewer: sample.prompts={fewer}"


def _work_lines(spec: RunSpec) -> list[str]:
    sampling, unlearning = operations(spec)
    work = f"work: {sampling:.1f} PFLOP of sampling, {unlearning:.1f} of unlearning"
    rates = RATES[spec.model.dtype]
    times = ", ".join(f"{format_duration((sampling + unlearning) * 1000 / rate)} on {name}" for name, rate in rates.items())
    return [f"{work}, without training images", f"time: about {times} in {spec.model.dtype}, without metrics"]


def _memory_line(model: DiffusersModel, spec: RunSpec) -> str:
    folder = model.local_folder()
    if folder is not None and model.download() is None:
        needed, what = least_memory(model, spec.algo, folder), "weights and training state"
    else:
        needed, what = int(_figures(model).parameters * 1e9 * DTYPES[model.dtype].itemsize), "weights"
    line = f"GPU memory: {format_size(needed)} for {what}, and activations"
    if not torch.cuda.is_available():
        return line
    available = torch.cuda.get_device_properties(0).total_memory
    smaller = "" if needed < available else "; try model.dtype=bf16, algo.train=lora or another model"
    return f"{line}; the GPU has {format_size(available)}{smaller}"
