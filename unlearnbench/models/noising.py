"""Latents with noise of random training timesteps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unlearnbench.config.errors import UserError
from unlearnbench.models.base import TextToImage


class NoisedLatents(NamedTuple):
    """Noisy latents (n, c, h, w), their timesteps (n,) and their noise (n, c, h, w)."""

    noisy_latents: Tensor
    timesteps: Tensor
    noise: Tensor


def add_random_noise(model: TextToImage, latents: Tensor, generator: torch.Generator) -> NoisedLatents:
    """Add noise to latents (n, c, h, w) at random training timesteps.

    Raises:
        UserError: n is 0.
    """
    if not len(latents):
        raise UserError("this method trains on images, and none were given")
    timesteps = model.draw_timesteps(len(latents), generator)
    noise = torch.randn(latents.shape, generator=generator).to(model.device)
    return NoisedLatents(model.add_noise(latents, noise, timesteps), timesteps, noise)
