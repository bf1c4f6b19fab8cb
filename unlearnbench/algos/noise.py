"""Gaussian noise on the weights: a control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from unlearnbench.algos.base import Log
from unlearnbench.algos.examples import Examples
from unlearnbench.algos.none import NoTraining
from unlearnbench.config.ranges import at_least
from unlearnbench.data.concept import Concept
from unlearnbench.models.base import TextToImage


@dataclass
class Noise(NoTraining):
    """Damage that knows nothing of the concept: a method worth its name forgets more at the same integrity.

    w <- w + relative |w| / |n| n for each parameter tensor w, where n is standard Gaussian noise; a tensor of zeros stays.
    Ours.

    Attributes:
        relative: the norm of the noise over the norm of the tensor.
    """

    train: str = "full"
    relative: float = 0.02
    seeded: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "relative")

    def unlearn(
        self, model: TextToImage, forget: Examples, retain: Examples, concept: Concept, seed: int, log: Log
    ) -> Sequence[str]:
        """Adds the noise, drawn from the seed."""
        parameters = model.trainable(self.train)
        generator = torch.Generator().manual_seed(seed)
        for parameter in parameters.values():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            parameter.data += self.relative * parameter.data.norm() / noise.norm() * noise
            parameter.requires_grad_(False)
        return list(parameters)
