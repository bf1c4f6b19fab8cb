"""What a run on a model of full size takes, before it starts: disk, memory of a GPU, floating-point operations and time."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from unlearnbench.config.errors import UserError
from unlearnbench.console import format_duration
from unlearnbench.experiment.activations import training_memory
from unlearnbench.experiment.device_rate import device_rate
from unlearnbench.experiment.downloads import missing_downloads, missing_sets
from unlearnbench.experiment.memory import least_memory, text_encoder_memory
from unlearnbench.experiment.preflight import select_device
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.experiment.steps import BACKWARD
from unlearnbench.models.base import DTYPES
from unlearnbench.models.diffusers_model import DiffusersModel
from unlearnbench.storage.units import format_size
from unlearnbench.worlds import embedded_world

PNG_BYTES = 2.0  # bytes of a PNG for each pixel of a photograph
COPIES = 2  # an image of the original model, which run and cache share by a link, and one of the unlearned model
# Operations a second, in units of 10^12, of whole sampling passes in this precision (counted from measured and fitted times)
RATES = {
    "fp32": {"A100": 16.0, "RTX 4090": 56.0, "H100": 48.0},
    "bf16": {"H100": 163.0},
    "fp16": {"H100": 163.0},
}
# Operations of a network of the metrics for one image, in units of 10^12
NETWORKS = {"CLIP": 0.162, "Inception": 0.0115, "LPIPS": 0.015}
OF_METRIC = {
    "clipscore": "CLIP", "cmmd": "CLIP", "retain_accuracy": "CLIP", "pinpointness": "CLIP", "object_accuracy": "CLIP",
    "fid": "Inception", "fid_original": "Inception", "kid": "Inception", "integrity": "LPIPS",
}  # fmt: skip
DECODING_SECONDS = 2e-8  # of a PNG, for each pixel, on one core
GPU_SIZES = (8, 12, 16, 24, 48, 80)  # GB
DECODING_GB = 0.4  # of activations in half precision to decode an image of 512 x 512
USABLE = 0.92  # of a GPU's memory


@dataclass(frozen=True)
class Figures:
    """A family at its own size, counted by torch's FlopCounterMode on meta tensors.

    Attributes:
        size: height and width of an image, in pixels.
        passing: operations of the denoiser for one image, in units of 10^12.
        decoding: operations of the autoencoder for one image, in units of 10^12.
        parameters: of all parts, in units of 10^9.
        encoders: parameters of the text encoders, in units of 10^9.
        activations: of the denoiser in half precision for one image with guidance, GB (`make gpu-count`).
    """

    size: int
    passing: float
    decoding: float
    parameters: float
    encoders: float
    activations: float


FIGURES = {
    "StableDiffusionPipeline": (
        Figures(512, 0.803, 2.51, 1.07, 0.123, 0.136),
        Figures(768, 2.149, 5.75, 1.29, 0.340, 0.31),
    ),
    "StableDiffusionXLPipeline": (Figures(1024, 6.761, 10.47, 3.47, 0.818, 0.33),),
    "StableDiffusion3Pipeline": (Figures(1024, 11.25, 10.47, 7.9, 5.581, 0.333),),
    "FluxPipeline": (Figures(1024, 74.4, 10.47, 16.9, 4.885, 0.486),),
}


def estimate_lines(spec: RunSpec) -> list[str]:
    """The estimate of a run on photographs, one line each: empty for embedded worlds; asks the hub for sizes alone."""
    if embedded_world(spec.model.domain) is not None or not isinstance(spec.model, DiffusersModel):
        return []
    lines = [_download_line(spec)]
    if not missing_sets(spec):
        lines += [_disk_line(spec), *_work_lines(spec)]
    lines += [training_line(spec), _memory_line(spec.model, spec)]
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
    measuring, decoding = metric_work(spec)
    work = f"work: {sampling:.1f} PFLOP of sampling, {unlearning:.1f} of unlearning, {measuring:.2f} of metrics"
    name, own = _own_rate(_device(spec), spec.model.dtype)
    rates = {f"{name} as timed now": own} | RATES[spec.model.dtype]
    total = (sampling + unlearning + measuring) * 1000
    times = ", ".join(f"{format_duration(total / rate + decoding)} on {name}" for name, rate in rates.items())
    of_metrics = format_duration(measuring * 1000 / own + decoding)
    return [f"{work}, without training images", f"time: about {times} in {spec.model.dtype}; {of_metrics} of it here for metrics"]


def metric_work(spec: RunSpec) -> tuple[float, float]:
    """The operations of the metrics, in units of 10^15, and the seconds in which this machine's cores decode their images.

    Each image is decoded once and goes once through each network; LPIPS takes pairs of models and of seeds.
    """
    assert isinstance(spec.model, DiffusersModel)
    networks = {OF_METRIC[name] for name in spec.metrics if name in OF_METRIC}
    pairs = (spec.sample.per_prompt + 1) / 2
    images, area = 2 * _images(spec), spec.model.size**2
    each = sum(NETWORKS[name] * (pairs * area / 512**2 if name == "LPIPS" else 1) for name in networks)
    return images * each / 1000, images * area * DECODING_SECONDS / min(8, os.cpu_count() or 1)


def _device(spec: RunSpec) -> torch.device:
    """The run's device, or the CPU where it is not there."""
    try:
        return select_device(spec.device)
    except UserError:
        return torch.device("cpu")


def _gpu_memory(spec: RunSpec) -> int | None:
    """Bytes of the memory of the run's GPU; None if it has none on this machine."""
    device = _device(spec)
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def _own_rate(device: torch.device, precision: str) -> tuple[str, float]:
    """The name of a device and its operations a second, in units of 10^12, on a GPU in this precision."""
    dtype = DTYPES[precision] if device.type == "cuda" else torch.float32
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"this machine's {device.type.upper()}"
    return name, device_rate(device, dtype)


def activations(model: DiffusersModel, batch: int) -> float:
    """GB of activations while a batch is sampled: the denoiser's of the whole batch, or the autoencoder's of a part of it."""
    figures, area = _figures(model), (model.size / 512) ** 2
    scale = (model.size / figures.size) ** 2 * DTYPES[model.dtype].itemsize / 2
    decoding = DECODING_GB * area * DTYPES[model.dtype].itemsize / 2
    return max(batch * figures.activations * scale, min(batch, model.vae_batch()) * decoding)


def largest_batch(model: DiffusersModel, weights: float, memory: float, offloaded: float = 0.0) -> int:
    """The largest batch of images that fits into a GPU's memory; 0 if none does.

    Args:
        model: samples the images.
        weights: GB of all that must fit without activations.
        memory: GB of the GPU.
        offloaded: GB of the weights that leave the GPU while a batch is sampled.
    """
    batch = 0
    while batch < 1024 and max(weights, weights - offloaded + activations(model, batch + 1)) <= USABLE * memory:
        batch += 1
    return batch


def training_line(spec: RunSpec) -> str:
    """The memory of an optimizer step with its activations; empty if no pass of the denoiser has a gradient.

    Where the activations cannot be counted, the line says why.
    """
    assert isinstance(spec.model, DiffusersModel)
    model, algo = spec.model, spec.algo
    images = algo.batch * algo.passes_with_gradient
    if images == 0 or algo.steps == 0 or "steps" in algo.unread_settings:
        return ""
    try:
        counted = training_memory(model, algo, images)
    except Exception as error:  # an estimate stops no check
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return f"training memory: activations not counted: {reason[0]}"
    needed, what, _ = _weights(model, spec)
    if what == "weights":
        needed += counted.trained * (DTYPES[model.dtype].itemsize + (10 if model.adam8bit else 16))
    total, count = needed + counted.peak, f"{images} image{'s' * (images > 1)}"
    line = f"training memory: {format_size(total)}, {format_size(counted.peak)} of it activations of the denoiser for {count}"
    memory = _gpu_memory(spec)
    available = [*GPU_SIZES] if memory is None else [memory / 1e9]
    if fits := [size for size in available if total / 1e9 <= USABLE * size]:
        return f"{line}; fits into {fits[0]} GB" if memory is None else line
    return f"{line}, more than {available[-1]:.0f} GB; {_less_training_memory(spec)}"


def _less_training_memory(spec: RunSpec) -> str:
    """Settings by which training takes less memory."""
    settings = [] if spec.model.checkpointing else ["model.checkpointing=true"]
    settings += ["model.dtype=bf16"] if spec.model.dtype == "fp32" else []
    settings += ["a smaller algo.batch"] if spec.algo.batch > 1 else []
    return f"try {' or '.join([*settings, 'algo.train=lora'])}"


def _weights(model: DiffusersModel, spec: RunSpec) -> tuple[int, str, int]:
    """Bytes of the weights, with the training state if the checkpoint is on this machine; what they are; the text encoders'."""
    folder = model.local_folder()
    if folder is not None and model.download() is None:
        return least_memory(model, spec.algo, folder), "weights and training state", text_encoder_memory(model, folder)
    each, figures = DTYPES[model.dtype].itemsize, _figures(model)
    return int(figures.parameters * 1e9 * each), "weights", int(figures.encoders * 1e9 * each)


def _memory_line(model: DiffusersModel, spec: RunSpec) -> str:
    needed, what, encoders = _weights(model, spec)
    offloaded = encoders / 1e9 if model.offload_text_encoders else 0.0
    of_batch = format_size(int(activations(model, spec.sample.batch) * 1e9))
    line = f"GPU memory: {format_size(needed)} for {what}, and activations: {of_batch} to sample a batch of {spec.sample.batch}"
    if offloaded:
        line += f", while {format_size(encoders)} of text encoders are off the GPU"
    available = _gpu_memory(spec)
    if available is None:
        fits = {size: largest_batch(model, needed / 1e9, size, offloaded) for size in GPU_SIZES}
        enough = next((size for size, batch in fits.items() if batch >= spec.sample.batch), GPU_SIZES[-1])
        batches = ", ".join(
            f"{min(batch, spec.sample.batch)} into {size} GB" for size, batch in fits.items() if batch and size <= enough
        )
        return f"{line}; a batch fits of {batches}" if batches else f"{line}; {_smaller()}"
    batch = largest_batch(model, needed / 1e9, available / 1e9, offloaded)
    smaller = f"; {_smaller()}" if batch == 0 else f"; set sample.batch={batch}" if batch < spec.sample.batch else ""
    return f"{line}; the GPU has {format_size(available)}{smaller}"


def _smaller() -> str:
    return "try model.dtype=bf16, algo.train=lora or another model"
