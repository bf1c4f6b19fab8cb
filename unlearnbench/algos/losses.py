"""Losses that several methods share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearnbench.algos.examples import Batch
from unlearnbench.models.base import TextToImage
from unlearnbench.models.noising import add_random_noise

if TYPE_CHECKING:
    pass


def denoising_loss(model: TextToImage, batch: Batch, generator: torch.Generator) -> Tensor:
    """The usual training loss, the mean of (prediction - target)^2, on a batch's own prompts and latents."""
    x = add_random_noise(model, batch.latents, generator)
    predicted = model.predict(x.noisy_latents, x.timesteps, model.encode_prompts(batch.prompts))
    return F.mse_loss(predicted, model.target(batch.latents, x.noise, x.timesteps))


def gradients_of(loss: Tensor, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The loss' gradient by parameter name, zero where it does not reach; no `grad` is touched."""
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, found, strict=True))


def relabelling_loss(model: TextToImage, batch: Batch, others: list[str], generator: torch.Generator) -> Tensor:
    """The mean of (prediction - the same model's prediction for other prompts)^2, only the first with a gradient."""
    x = add_random_noise(model, batch.latents, generator)
    with torch.no_grad():
        taught = model.predict(x.noisy_latents, x.timesteps, model.encode_prompts(others))
    return F.mse_loss(model.predict(x.noisy_latents, x.timesteps, model.encode_prompts(batch.prompts)), taught)
