"""SalUn: saliency unlearning, random labels learned only by the weights that matter to the concept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from unlearnbench.algos.losses import denoising_loss, gradients_of
from unlearnbench.algos.random_label import RandomLabel
from unlearnbench.algos.saliency import NO_LORA, largest_scores
from unlearnbench.algos.state import NOT_SAVED
from unlearnbench.algos.training import Training
from unlearnbench.config.ranges import share_above_zero


@dataclass
class SalUnState:
    """The mask of the salient weights, by parameter."""

    mask: dict[str, Tensor] = field(metadata=NOT_SAVED)


@dataclass
class SalUn(RandomLabel):
    """`random_label` on the salient weights only: the share with the largest |gradient of L_diff(forget)| at theta_0.

    The gradient is summed over all forget examples before its absolute value is taken, and all weights that train are
    ranked together (Fan et al. 2024, arXiv 2310.12508). The authors' code ranks by the prediction guided with scale 7.5
    instead of the plain one; for Stable Diffusion it selected the lower half until its commit b874ee9.

    Attributes:
        share: the share of weights that train.
    """

    share: float = 0.5
    no_lora_reason: ClassVar[str] = NO_LORA

    def __post_init__(self) -> None:
        super().__post_init__()
        share_above_zero(self, "share")

    def begin(self, training: Training) -> SalUnState:
        """Compute the mask."""
        model, generator, parameters = training.model, training.generator, training.parameters
        total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        for batch in training.forget.batches(self.batch):
            for name, value in gradients_of(denoising_loss(model, batch, generator), parameters, model).items():
                total[name] += value
        return SalUnState(largest_scores({name: value.abs() for name, value in total.items()}, self.share))

    def shape_gradients(self, training: Training) -> None:
        """Set gradients outside the mask to zero, so that Adam does not move these weights."""
        for name, parameter in training.parameters.items():
            if parameter.grad is not None:
                parameter.grad *= training.state.mask[name]
