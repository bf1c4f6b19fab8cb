"""Gaussian noise on the weights: a control."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from unlearnbench.algos.base import OPTIMIZER
from unlearnbench.algos.none import NoTraining
from unlearnbench.algos.training import Training, Unlearned
from unlearnbench.config.ranges import at_least
from unlearnbench.models.parameters import make_trainable


@dataclass
class Noise(NoTraining):
    """Damage without knowledge of the concept: a useful method forgets more at the same integrity.

    w <- w + relative |w| / |n| n for each parameter tensor w, with standard Gaussian noise n; a tensor of zeros stays zero.
    Ours.

    Attributes:
        relative: the norm of the noise divided by the norm of the tensor.
    """

    train: str = "full"
    relative: float = 0.02
    uses_seed: ClassVar[bool] = True
    unread_settings: ClassVar[frozenset[str]] = OPTIMIZER

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "relative")

    def update(self, training: Training) -> Unlearned:
        """Add noise, drawn from the seed."""
        parameters = make_trainable(training.model, self.train)
        for parameter in parameters.values():
            noise = torch.randn(parameter.shape, generator=training.generator).to(parameter.device)
            parameter.data += self.relative * parameter.data.norm() / noise.norm() * noise
            parameter.requires_grad_(False)
        return Unlearned(list(parameters), training.guidance)
