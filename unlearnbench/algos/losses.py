"""Losses that several methods share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearnbench.algos.examples import Batch
from unlearnbench.models.base import TextToImage
from unlearnbench.models.noising import add_random_noise
from unlearnbench.models.parameters import gradients


def denoising_loss(model: TextToImage, batch: Batch, generator: torch.Generator) -> Tensor:
    """The standard training loss, the mean of (prediction - target)^2, on a batch's own prompts and latents."""
    noised = add_random_noise(model, batch.latents, generator)
    prediction = model.predict(noised.noisy_latents, noised.timesteps, model.encode_prompts(batch.prompts))
    return F.mse_loss(prediction, model.target(batch.latents, noised.noise, noised.timesteps))


def gradients_of(loss: Tensor, parameters: dict[str, nn.Parameter], model: TextToImage | None = None) -> dict[str, Tensor]:
    """The loss's gradient by parameter name, zero for parameters that do not affect it; leaves `grad` unchanged.

    Args:
        loss: the loss.
        parameters: by name.
        model: that computed it, for which the loss is scaled in fp16 on a GPU; without it, it is not.
    """
    values = zip(parameters.items(), gradients(loss, list(parameters.values()), model), strict=True)
    return {name: torch.zeros_like(parameter) if value is None else value for (name, parameter), value in values}


def relabelling_loss(model: TextToImage, batch: Batch, labels: list[str], generator: torch.Generator) -> Tensor:
    """The mean of (prediction - target)^2, where the target is the same model's prediction for the prompts in `labels`.

    No gradient flows through the target.
    """
    noised = add_random_noise(model, batch.latents, generator)
    with torch.no_grad():
        target = model.predict(noised.noisy_latents, noised.timesteps, model.encode_prompts(labels))
    prediction = model.predict(noised.noisy_latents, noised.timesteps, model.encode_prompts(batch.prompts))
    return F.mse_loss(prediction, target)
