"""Kernels and bytes of one sampling call on a GPU, ours and diffusers': counted on fake CUDA tensors, without a GPU.

python scripts/gpu_count.py [--models sd14,sdxl] [--write docs/gpu.md]

Modules of full size hold no numbers (torch's FakeTensorMode). An operation that computes counts as a kernel, and its bytes are
those of its inputs and outputs; views and allocations are free. CUDA's autocast is on where the code turns it on.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from gpu import full_size
from suite_seconds import write_section
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from unlearnbench.config.compose import compose
from unlearnbench.experiment.activations import HeldMemory
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.models.base import stack_conditioning
from unlearnbench.models.diffusers_model import DiffusersModel
from unlearnbench.models.parameters import name_pattern
from unlearnbench.reports.export import markdown_table

CUDA, SCALE = torch.device("cuda"), 7.5
# Early versions of torch, such as 2.6, ask CUDA's driver where a fake CUDA tensor is indexed, copied or convolved
NEEDS_DRIVER = not hasattr(torch._C, "_ensureCUDADeviceGuardSet") and not torch.cuda.is_available()
FREE = (
    "prim.",
    "empty",
    "view",
    "detach",
    "alias",
    "lift",
    "t.default",
    "_unsafe_view",
    "sym_",
    "unbind",
    "split",
    "chunk",
    "expand",
)
HEADING = "## Kernels"
TEXT = """Made by `make gpu-count`, without a GPU: one call of the denoiser in sampling with guidance, and decoding, in half
precision on modules of full size that hold no numbers. An operation counts as a kernel, its bytes are those of its inputs and
outputs; attention is one kernel, as of memory-efficient attention. Both models of a run are sampled without autocast: weights
that trained, which are fp32, have copies in half precision meanwhile."""
CASES = {"sd14": 8, "sdxl": 4}  # images in a batch


class Count(NamedTuple):
    """Operations, the bytes that they read and write, and the most bytes of their results that were held at a time."""

    kernels: int
    gigabytes: float
    peak: float


class Counter(HeldMemory):
    """Counts operations on fake CUDA tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        name = str(func).removeprefix("aten.")
        if not (func.is_view or name.startswith(FREE)):
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
            self.kernels += 1
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return result

    def count(self) -> Count:
        """What was counted."""
        return Count(self.kernels, self.bytes / 1e9, self.peak / 1e9)


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """Attention as one kernel, which torch chooses on a GPU alone."""
    return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, False)[0]


@contextlib.contextmanager
def pretended() -> Iterator[None]:
    """Fake CUDA tensors, with CUDA's autocast although there is no GPU."""
    absent = "torch.cuda.amp.common.amp_definitely_not_available"
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch(absent, return_value=False))
        stack.enter_context(mock.patch("torch.cuda.is_bf16_supported", return_value=True))
        stack.enter_context(mock.patch("torch.nn.functional.scaled_dot_product_attention", attention))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield


def count(work: Callable[[], object]) -> Count:
    """The operations of a piece of work."""
    with torch.no_grad(), Counter() as counter:
        work()
    return counter.count()


def counted(family: str) -> dict[str, tuple[Count, Count]]:
    """For diffusers, our original and our unlearned model: one call of the denoiser, and the decoding of a batch."""
    spec = RunSpec.of(compose(f"model={family}", "model.dtype=bf16", "algo=esd_x", "concept=church"))
    model, batch = spec.model, CASES[family]
    assert isinstance(model, DiffusersModel)
    with pretended():
        with CUDA:
            pipeline = full_size(family)
        for part in model.parts:
            for parameter in getattr(pipeline, part).parameters():
                parameter.data = parameter.data.to(torch.bfloat16)
        with mock.patch("torch.nn.Module.to", lambda module, *_, **__: module):  # it is there
            model.install(pipeline, CUDA)
        cond, uncond = (_conditioning(model, n) for n in (batch, 1))
        latents, timestep = torch.randn(batch, *model.latent_shape(), device=CUDA), torch.tensor(500, device=CUDA)
        half = latents.to(torch.bfloat16)
        both = stack_conditioning(uncond, cond)
        counts = {"diffusers": (count(lambda: _diffusers_call(model, half, timestep, both)), count(lambda: _decode(model, half)))}
        pattern = name_pattern(model, spec.algo.selection)
        trained = [parameter for name, parameter in model.named_parameters() if pattern.search(name)]
        for name in ("original", "unlearned"):
            with model.sampling_precision():
                predict = model.predictor(cond, uncond, SCALE)
                call = count(lambda: predict(0, latents, timestep))  # noqa: B023
            counts[name] = call, count(lambda: model.decode_pixels(latents))
            for parameter in trained:
                parameter.data = parameter.data.float()
    return counts


def _conditioning(model: DiffusersModel, batch: int) -> dict[str, torch.Tensor]:
    """What the text encoders would give, in half precision."""
    cond = {"prompt_embeds": torch.randn(batch, 77, model.unet.config.cross_attention_dim, device=CUDA, dtype=torch.bfloat16)}
    if "text_encoder_2" in model.parts:
        cond["pooled_prompt_embeds"] = torch.randn(batch, 1280, device=CUDA, dtype=torch.bfloat16)
    return cond


def _diffusers_call(
    model: DiffusersModel, latents: torch.Tensor, timestep: torch.Tensor, cond: dict[str, torch.Tensor]
) -> object:
    """What a pipeline of diffusers does in a step before the scheduler's: the UNet on both prompts, and guidance."""
    doubled, added = torch.cat([latents] * 2), None
    if "pooled_prompt_embeds" in cond:
        sizes = torch.tensor([[1024, 1024, 0, 0, 1024, 1024]], device=CUDA, dtype=torch.bfloat16)
        added = {"text_embeds": cond["pooled_prompt_embeds"], "time_ids": sizes.repeat(len(doubled), 1)}
    prediction = model.unet(doubled, timestep, cond["prompt_embeds"], added_cond_kwargs=added, return_dict=False)[0]
    uncond, conditioned = prediction.chunk(2)
    return uncond + SCALE * (conditioned - uncond)


def _decode(model: DiffusersModel, latents: torch.Tensor) -> object:
    """What a pipeline of diffusers does after the last step."""
    pixels = model.vae.decode(latents / model.vae.config.scaling_factor, return_dict=False)[0]
    return (pixels / 2 + 0.5).clamp(0, 1)


def main() -> None:
    """Count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="sd14,sdxl")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    if NEEDS_DRIVER:
        parser.error(f"torch {torch.__version__} counts on a machine with a GPU alone; install a newer one")
    rows = []
    for family in options.models.split(","):
        counts = counted(family)
        plain = counts["diffusers"]
        for name, (call, decoding) in counts.items():
            ratio = f"{call.kernels / plain[0].kernels:.2f}"
            numbers = [f"{call.kernels}", ratio, f"{call.gigabytes:.0f}", f"{call.peak:.2f}"]
            rows.append(
                [
                    family,
                    str(CASES[family]),
                    name,
                    *numbers,
                    f"{decoding.kernels}",
                    f"{decoding.gigabytes:.0f}",
                    f"{decoding.peak:.2f}",
                ]
            )
            print(*rows[-1], flush=True)
    if options.write:
        head = [
            "model",
            "batch",
            "whose",
            "kernels",
            "over diffusers'",
            "GB",
            "peak, GB",
            "kernels of decoding",
            "GB",
            "peak, GB",
        ]
        write_section(options.write, HEADING, f"{TEXT}\n\n{markdown_table(head, rows)}")


if __name__ == "__main__":
    main()
