"""ESD's target, and the partly denoised latents that it is asked on."""

from __future__ import annotations

import torch
from torch import Tensor

from unlearnbench.models.base import SamplingGuidance, TextToImage
from unlearnbench.models.frozen import Frozen


def negatively_guided(frozen: Frozen, x: Tensor, times: Tensor, prompts: list[str], eta: float, source: str) -> Tensor:
    """The original's negatively guided prediction: eps_0(x_t, c_from) - eta (eps_0(x_t, c) - eps_0(x_t, ""))."""
    told = frozen.predict(x, times, prompts)
    empty = frozen.predict(x, times, [""] * len(x))
    return (empty if source == "empty" else told) - eta * (told - empty)


def partly_denoised(
    model: TextToImage,
    prompts: list[str],
    steps: int,
    scale: float,
    generator: torch.Generator,
    guidance: SamplingGuidance | None = None,
) -> tuple[Tensor, Tensor]:
    """The model's own latents after a random number of sampling steps, and their training time."""
    stop = int(torch.randint(steps, (), generator=generator))
    seeds = torch.randint(2**31, (len(prompts),), generator=generator).tolist()
    with torch.no_grad():
        starts = [torch.Generator().manual_seed(s) for s in seeds]
        latents = model.sample_latents(prompts, starts, steps, scale, guidance, stop_after=stop)
    return latents, model.timestep_after(stop, steps).expand(len(prompts))
