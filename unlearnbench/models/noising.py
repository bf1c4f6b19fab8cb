"""Latents with noise of random training timesteps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unlearnbench.config.errors import UserError
from unlearnbench.models.base import TextToImage


class NoisedLatents(NamedTuple):
    """Latents of a random time, with what made them."""

    noisy_latents: Tensor
    timesteps: Tensor
    noise: Tensor


def add_random_noise(model: TextToImage, latents: Tensor, generator: torch.Generator) -> NoisedLatents:
    """Latents with noise of training times that the model draws."""
    if not len(latents):
        raise UserError("this method trains on images, and none were given")
    times = model.draw_timesteps(len(latents), generator)
    noise = torch.randn(latents.shape, generator=generator).to(model.device)
    return NoisedLatents(model.add_noise(latents, noise, times), times, noise)
