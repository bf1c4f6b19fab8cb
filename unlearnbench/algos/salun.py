"""Saliency unlearning: random labels, learned by the weights that matter to the concept."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from unlearnbench.algos.examples import Batch
from unlearnbench.algos.losses import denoising_loss, gradients_of
from unlearnbench.algos.random_label import RandomLabel
from unlearnbench.algos.saliency import largest_scores
from unlearnbench.algos.state import NOT_SAVED
from unlearnbench.algos.training import Training
from unlearnbench.config.ranges import share_above_zero


@dataclass
class SalUnState:
    """Which weights may move, by parameter."""

    mask: dict[str, Tensor] = field(metadata=NOT_SAVED)


@dataclass
class SalUn(RandomLabel):
    """`random_label` that moves only the salient weights: the share with the largest |gradient of L_diff(forget)| at theta_0.

    The gradient is summed over all forget examples before its size is taken, and all that trains is ranked together (Fan
    et al. 2024, arXiv 2310.12508). The authors' code ranks by the guided prediction of scale 7.5 instead of the plain
    one; for Stable Diffusion it kept the lower half until its commit b874ee9.

    Attributes:
        share: the share of weights that may move.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        share_above_zero(self, "share")

    def begin(self, training: Training) -> SalUnState:
        """Finds the mask."""
        model, forget, generator, parameters = training.model, training.forget, training.generator, training.parameters
        total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        for i in range(0, len(forget.prompts), self.batch):
            part = slice(i, i + self.batch)
            batch = Batch(forget.prompts[part], forget.anchors[part], forget.latents[part])
            for name, value in gradients_of(denoising_loss(model, batch, generator), parameters).items():
                total[name] += value
        return SalUnState(largest_scores({name: value.abs() for name, value in total.items()}, self.share))

    def shape_gradients(self, training: Training) -> None:
        """Zero outside the mask, where Adam then does not move."""
        for name, parameter in training.parameters.items():
            if parameter.grad is not None:
                parameter.grad *= training.state.mask[name]
