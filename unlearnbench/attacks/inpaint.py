"""Inpainting: the model completes an image of the concept of which it sees a part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from unlearnbench.attacks.probe import Probe, ProbedBatch
from unlearnbench.config.ranges import share
from unlearnbench.models.base import Predictor


@dataclass
class Inpaint(Probe):
    """Keep the lower part of an image of the concept, and let the model denoise the upper part with the empty prompt.

    The image is the original's. In the part that is kept each step's prediction is the one that leads to the image.

    Attributes:
        missing: the share of the image's height that the model fills in, from the top.
    """

    missing: float = 0.5

    needs_images: ClassVar[bool] = True
    needs_sources: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        share(self, "missing")

    def predictor(self, batch: ProbedBatch, steps: int, scale: float) -> Predictor:
        """See `Probe.predictor`."""
        free, held = batch.empty_predictor(steps, scale), batch.source_predictor()

        def predict(step: int, latents: Tensor, timestep: Tensor) -> Tensor:
            prediction = free(step, latents, timestep)
            top = round(self.missing * prediction.shape[2])
            prediction[:, :, top:] = held(step, latents, timestep)[:, :, top:]
            return prediction

        return predict
