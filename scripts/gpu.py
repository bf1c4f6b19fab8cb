"""Agreement of a GPU with the CPU, its memory and its speed: docs/gpu.md.

python scripts/gpu.py [--parts agreement,memory,speed] [--models sd14,sdxl] [--device cuda] [--write docs/gpu.md]

Pictoworld runs on the CPU and on the GPU with the same seeds. Stable Diffusion 1.4 and XL are built in full size with random
weights and saved in diffusers' layout, so memory and time are theirs although the images are noise.
A part that is not in --parts keeps its section of the file. A part that is interrupted leaves the rows that it has.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "DIFFUSERS_VERBOSITY": "error"}
import diffusers
import numpy as np
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from unlearnbench.config.compose import compose
from unlearnbench.data.images import Images
from unlearnbench.experiment.memory import least_memory
from unlearnbench.experiment.preflight import select_device
from unlearnbench.experiment.run import execute
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.pictoworld.architecture import make_tokenizer
from unlearnbench.reports.export import markdown_table
from unlearnbench.results.run import Run
from unlearnbench.sampling import generate
from unlearnbench.storage.atomic import write_text

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FEW = ("metrics=integrity", "retain.splits=[far]", "sample.prompts=1", "sample.per_prompt=1", "model.steps=4")
STEPS = 20  # optimizer steps of a memory row
CASES = (
    ("sd14", "ga", "xattn", ("model.dtype=bf16", "model.checkpointing=true")),
    ("sd14", "ga", "full", ("model.dtype=bf16", "model.checkpointing=true")),
    ("sd14", "ga", "full", ("model.dtype=bf16", "model.checkpointing=true", "model.adam8bit=true")),
    ("sd14", "ga", "lora", ("model.dtype=bf16", "model.checkpointing=true")),
    ("sd14", "ga", "xattn", ("model.dtype=fp32",)),
    ("sd14", "esd_x", "xattn", ("model.dtype=bf16", "model.checkpointing=true")),
    ("sd14", "redirect", "text_encoder", ("model.dtype=bf16",)),
    ("sdxl", "ga", "xattn", ("model.dtype=bf16", "model.checkpointing=true")),
    ("sdxl", "ga", "full", ("model.dtype=bf16", "model.checkpointing=true", "model.adam8bit=true")),
    ("sdxl", "ga", "lora", ("model.dtype=bf16", "model.checkpointing=true")),
)  # fmt: skip
SPEEDS = (
    ("sd14", ("model.dtype=bf16",), 8),
    ("sdxl", ("model.dtype=bf16",), 4),
    ("sd14", ("model.dtype=fp32", "model.tf32=true"), 8),
    ("sd14", ("model.dtype=fp32",), 8),
    ("sd14", ("model.dtype=bf16", "model.compile=true"), 8),
)


# --- pipelines of full size ---------------------------------------------------------------------------------------------


def text_encoder(kind: Any, width: int, layers: int, heads: int, end: int, act: str = "quick_gelu") -> Any:
    """A text encoder of CLIP or OpenCLIP, with the released vocabulary."""
    config = CLIPTextConfig(
        vocab_size=49_408, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads,
        projection_dim=width, hidden_act=act, bos_token_id=0, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    return kind(config)


def autoencoder(size: int, factor: float) -> AutoencoderKL:
    """The autoencoder of both families."""
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4, sample_size=size, scaling_factor=factor,
    )  # fmt: skip


def check_parameters(unet: UNet2DConditionModel, expected: int) -> UNet2DConditionModel:
    """The UNet; asserts that it has as many parameters as the released one."""
    assert sum(p.numel() for p in unet.parameters()) == expected
    return unet


def full_size(family: str) -> Any:
    """A family's pipeline with the released configs, random weights and a small tokenizer.

    Source of the numbers: config.json of CompVis/stable-diffusion-v1-4 and stabilityai/stable-diffusion-xl-base-1.0.
    """
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 77
    end = tokenizer.eos_token_id
    if family == "sd14":
        unet = check_parameters(UNet2DConditionModel(sample_size=64, cross_attention_dim=768), 859_520_964)
        return StableDiffusionPipeline(
            vae=autoencoder(512, 0.18215), text_encoder=text_encoder(CLIPTextModel, 768, 12, 12, end), tokenizer=tokenizer,
            unet=unet, scheduler=PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=128, block_out_channels=(320, 640, 1280), transformer_layers_per_block=(1, 2, 10),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )  # fmt: skip
    unet = check_parameters(unet, 2_567_463_684)
    return StableDiffusionXLPipeline(
        vae=autoencoder(1024, 0.13025), unet=unet, tokenizer=tokenizer, tokenizer_2=tokenizer,
        text_encoder=text_encoder(CLIPTextModel, 768, 12, 12, end),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection, 1280, 32, 20, end, "gelu"),
        scheduler=EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1), add_watermarker=False,
    )  # fmt: skip


def saved_pipeline(family: str, work: Path, device: torch.device) -> Path:
    """The folder of a family's pipeline in bfloat16; written if it does not exist."""
    folder = work / family
    if not folder.exists():
        with torch.device(device):
            torch.manual_seed(0)
            pipeline = full_size(family)
        pipeline.to(torch.bfloat16).save_pretrained(folder, safe_serialization=True)
    return folder


def write_training_images(folder: Path) -> Path:
    """Write four noise images with captions; returns their folder."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 256, (1024, 1024, 3), np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a red church on the left", encoding="utf-8")
    return folder


# --- the parts ----------------------------------------------------------------------------------------------------------


def free_memory(device: torch.device) -> float:
    """Wait for the GPU and free unused memory; returns the peak of its memory since the last call, in GB."""
    gc.collect()
    if device.type != "cuda":
        return 0.0
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) / 1e9
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def quiet_run(folder: Path, *overrides: str) -> Run:
    """A run that prints no tables."""
    with contextlib.redirect_stdout(io.StringIO()):
        return execute(RunSpec.of(compose(*overrides)), folder, overrides)


def pixel_differences(a: Images, b: Images) -> str:
    """Differences between two folders of images of the same prompts and seeds, in levels of 255."""
    differences = [
        np.abs(np.asarray(Image.open(a.folder / x.file), np.int16) - np.asarray(Image.open(b.folder / y.file), np.int16))
        for x, y in zip(a, b, strict=True)
    ]
    same = sum(int(d.max()) <= 1 for d in differences)
    mean, most = np.mean([d.mean() for d in differences]), max(d.max() for d in differences)
    return f"{mean:.4f} on average, {most} at most; {same} of {len(differences)} within 1"


@dataclass
class Part:
    """A section of the file.

    Attributes:
        text: lines above the table.
        head: the table's head.
        rows: yields the rows, from the device, a folder to work in and the families.
    """

    text: Sequence[str]
    head: Sequence[str]
    rows: Callable[[torch.device, Path, Sequence[str]], Iterator[list[str]]]


def agreement(device: torch.device, work: Path, models: Sequence[str]) -> Iterator[list[str]]:
    """One run on the CPU and on the GPU."""
    few = ("algo=redirect", "concept=church", "metrics=quick", "sample.prompts=12", f"cache={work / 'cache'}")
    on_gpu, on_cpu = (quiet_run(work / f"on-{name}", *few, f"device={name}") for name in (device.type, "cpu"))
    for side, model in (("before", "original"), ("after", "unlearned")):
        folders = (Images(run.folder / "images" / side) for run in (on_gpu, on_cpu))
        yield [f"images of the {model} model", pixel_differences(*folders)]
    for v in on_gpu.values:
        if v.table != "Cost":
            other = on_cpu.find(v.metric, v.split).unlearned
            yield [f"{v.metric} on {v.split}, unlearned", f"{v.unlearned:.4f} and {other:.4f}"]


def memory(device: torch.device, work: Path, models: Sequence[str]) -> Iterator[list[str]]:
    """Peak memory and seconds a step of training, at batch 1."""
    images = write_training_images(work / "images")
    for number, (family, algo, train, settings) in enumerate(case for case in CASES if case[0] in models):
        folder = saved_pipeline(family, work, device)
        words = (
            f"model={family}", f"model.path={folder}", "model.domain=pictoworld", *settings, "concept=church", f"algo={algo}",
            f"algo.train={train}", f"algo.steps={STEPS}", "algo.batch=1", f"training.forget_folder={images}",
            f"training.retain_folder={images}", *FEW, f"device={device}", f"cache={work / 'cache'}",
        )  # fmt: skip
        free_memory(device)
        cost = quiet_run(work / f"memory-{number}", *words).log["cost"]
        spec = RunSpec.of(compose(*words))
        names = ", ".join(word.removeprefix("model.") for word in settings)
        peak, estimate = cost["peak_memory_mb"] * 2**20 / 1e9, least_memory(spec.model, spec.algo, folder) / 1e9  # type: ignore[arg-type]
        trained = f"{cost['trained_parameters'] / 1e6:.1f}"
        yield [family, algo, train, names, trained, f"{peak:.1f}", f"{estimate:.1f}", f"{cost['seconds'] / STEPS:.2f}"]


def speed(device: torch.device, work: Path, models: Sequence[str]) -> Iterator[list[str]]:
    """Images a second, also of diffusers' own pipeline."""
    for family, settings, batch in (case for case in SPEEDS if case[0] in models):
        words = [f"model={family}", f"model.path={saved_pipeline(family, work, device)}", "model.steps=20", *settings]
        model: Any = RunSpec.of(compose(*words, "model.domain=pictoworld", "concept=church")).model.load(device)
        model.pipeline.set_progress_bar_config(disable=True)
        prompts, seeds = ["a red church on the left"] * batch, list(range(batch))

        def ours(model: Any = model, prompts: list[str] = prompts, seeds: list[int] = seeds) -> None:
            generate(model, prompts, seeds, model.steps, model.guidance)

        def plain(model: Any = model, prompts: list[str] = prompts) -> None:
            model.pipeline(prompts, num_inference_steps=model.steps, guidance_scale=model.guidance, output_type="np")

        first, seconds = timed(ours)
        peak = free_memory(device)
        _, plain_seconds = timed(plain)
        names = ", ".join(word.removeprefix("model.") for word in settings)
        yield [family, names, str(batch), f"{batch / seconds:.2f}", f"{batch / plain_seconds:.2f}", f"{first:.1f}", f"{peak:.1f}"]
        del model, ours, plain
        torch.compiler.reset()
        free_memory(device)


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds of the first call, and the median of three more."""
    taken = []
    for _ in range(4):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)  # work ends with pixels on the CPU, so the GPU is done
    return taken[0], statistics.median(taken[1:])


PARTS = {
    "agreement": Part(
        [
            "`redirect` forgets `church` on Pictoworld, 12 prompts of each split, seed 0: on the GPU and on the CPU. Noise and",
            "training draws are made on the CPU on both; what differs is rounding: here in levels of 255, and in the numbers.",
        ],
        ["what", "GPU and CPU"],
        agreement,
    ),
    "memory": Part(
        [
            f"Training at batch 1 at the family's own size (512 and 1024 px), {STEPS} steps: the GPU's peak memory as PyTorch",
            "allocates it, what `check` counts beforehand (weights, gradients, Adam's moments, no activations), and the seconds",
            "of a step, the first ones included.",
        ],
        ["model", "algo", "algo.train", "model.*", "trained, millions", "peak, GB", "`check` counts, GB", "seconds a step"],
        memory,
    ),
    "speed": Part(
        [
            "Sampling with 20 steps and guidance (two passes a step), from the prompt to pixels, the median of three batches",
            "after one. Both models of a run are sampled without autocast: what was trained, in full precision, has a copy in",
            "half precision meanwhile. Beside it diffusers' own pipeline on the same modules.",
        ],
        ["model", "model.*", "batch", "images a second", "diffusers' pipeline", "seconds of the first batch", "peak, GB"],
        speed,
    ),
}


def sections(path: Path) -> dict[str, str]:
    """The text of each section of an existing file."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    parts = re.split(r"^## (\w+)\n", text, flags=re.MULTILINE)[1:]
    return {name.lower(): body.strip() for name, body in zip(parts[::2], parts[1::2], strict=True)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--models", default="sd14,sdxl", help="of memory and speed")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--write", type=Path, default=Path("docs/gpu.md"))
    options = parser.parse_args(argv)
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    device = select_device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    where = f"On {name}, torch {torch.__version__}, diffusers {diffusers.__version__}."
    texts = sections(options.write)
    with tempfile.TemporaryDirectory() as work:
        for part in options.parts.split(","):
            rows: list[list[str]] = []
            for row in PARTS[part].rows(device, Path(work), options.models.split(",")):
                rows.append(row)
                print(*row, sep=" | ", flush=True)
                texts[part] = "\n".join([where, "", *PARTS[part].text, "", markdown_table(PARTS[part].head, rows).strip()])
                write(options.write, texts)
    print(f"wrote {options.write}")
    return 0


def write(path: Path, texts: Mapping[str, str]) -> None:
    """Write the file from the text of each section."""
    lines = ["# On a GPU", "", "Made by `make gpu`."]
    for part in (*PARTS, "kernels"):  # the last is of gpu_count.py
        if part in texts:
            lines += ["", f"## {part.capitalize()}", "", texts[part]]
    write_text(path, "\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
