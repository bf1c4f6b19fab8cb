"""ESD's target, and the partially denoised latents at which it is evaluated."""

from __future__ import annotations

import torch
from torch import Tensor

from unlearnbench.models.base import SamplingGuidance, TextToImage
from unlearnbench.models.frozen import Frozen


def negative_guidance_target(
    frozen: Frozen, noisy_latents: Tensor, timesteps: Tensor, prompts: list[str], eta: float, source: str
) -> Tensor:
    """The original's negatively guided prediction: eps_0(x_t, c_from) - eta (eps_0(x_t, c) - eps_0(x_t, "")).

    Args:
        frozen: the original.
        noisy_latents: x_t, (n, c, h, w).
        timesteps: t, (n,).
        prompts: c, one for each latent.
        eta: strength of the negative guidance.
        source: c_from: "empty" for the empty prompt, "concept" for c.
    """
    pred_cond = frozen.predict(noisy_latents, timesteps, prompts)
    pred_uncond = frozen.predict(noisy_latents, timesteps, [""] * len(noisy_latents))
    return (pred_uncond if source == "empty" else pred_cond) - eta * (pred_cond - pred_uncond)


def partially_denoise(
    model: TextToImage,
    prompts: list[str],
    steps: int,
    scale: float,
    generator: torch.Generator,
    guidance: SamplingGuidance | None = None,
) -> tuple[Tensor, Tensor]:
    """The model's own latents (n, c, h, w) after a random number of its `steps`, and their training timestep (n,)."""
    stop = int(torch.randint(steps, (), generator=generator))
    seeds = torch.randint(2**31, (len(prompts),), generator=generator).tolist()
    with torch.no_grad():
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        latents = model.sample_latents(prompts, generators, steps, scale, guidance, stop_after=stop)
    return latents, model.timestep_after(stop, steps).expand(len(prompts))
