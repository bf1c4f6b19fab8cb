"""Inpainting: the model completes an image of the concept of which it sees a part."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unlearnbench.attacks.probe import ProbedBatch, SourceProbe
from unlearnbench.config.ranges import share
from unlearnbench.models.base import Predictor


@dataclass
class Inpaint(SourceProbe):
    """Keep the lower part of an image of the concept, and let the model denoise the upper part with the empty prompt.

    The image is the original's. The model sees the part that is kept with fresh noise at every step, as in RePaint without its
    resampling (Lugmayr et al. 2022, arXiv 2201.09865); with the same noise throughout, the two parts fit less well.

    Attributes:
        missing: the share of the image's height that the model fills in, from the top.
    """

    missing: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        share(self, "missing")

    def predictor(self, batch: ProbedBatch, steps: int, scale: float) -> Predictor:
        """See `Probe.predictor`."""
        free, held, noise = batch.empty_predictor(steps, scale), batch.source_predictor(), batch.noise()
        next(noise)  # which the image starts from

        def predict(step: int, latents: Tensor, timestep: Tensor) -> Tensor:
            top = round(self.missing * latents.shape[2])
            known = batch.model.add_noise(batch.sources, next(noise), timestep.expand(len(latents)))
            prediction = free(step, torch.cat([latents[:, :, :top], known[:, :, top:]], dim=2), timestep)
            return torch.cat([prediction[:, :, :top], held(step, latents, timestep)[:, :, top:]], dim=2)

        return predict
