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


def coefficients(model: TextToImage, latents: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """a and s of x_t = a x_0 + s e, in the shape of the latents."""
    ones, zeros = torch.ones_like(latents), torch.zeros_like(latents)
    return model.add_noise(ones, zeros, timesteps), model.add_noise(zeros, ones, timesteps)


def split_prediction(model: TextToImage, latents: Tensor, prediction: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """The clean latents x_0 and the noise e that a prediction of x_t = a x_0 + s e means."""
    a, s = coefficients(model, latents, timesteps)
    ones, zeros = torch.ones_like(latents), torch.zeros_like(latents)
    of_clean, of_noise = model.target(ones, zeros, timesteps), model.target(zeros, ones, timesteps)
    area = of_clean * s - of_noise * a
    return (prediction * s - of_noise * latents) / area, (of_clean * latents - a * prediction) / area


def denoising_prediction(model: TextToImage, noisy: Tensor, clean: Tensor, timesteps: Tensor) -> Tensor:
    """The prediction that denoises x_t to a clean x_0: with x_t = a x_0 + s e, that for x_0 and e = (x_t - a x_0) / s.

    Args:
        model: says what is predicted.
        noisy: x_t (n, c, h, w).
        clean: x_0 (n, c, h, w), of which x_t need not be a noised version.
        timesteps: of x_t (n,).
    """
    a, s = coefficients(model, clean, timesteps)
    return model.target(clean, (noisy - a * clean) / s, timesteps)
