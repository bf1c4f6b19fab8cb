"""Saliency unlearning: random labels, learned by the weights that matter to the concept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unlearnbench.algos.examples import Batch, Examples
from unlearnbench.algos.losses import denoising_loss, gradients_of
from unlearnbench.algos.random_label import RandomLabel
from unlearnbench.algos.saliency import largest_scores
from unlearnbench.config.ranges import share_above_zero
from unlearnbench.data.concept import Concept
from unlearnbench.models.base import TextToImage
from unlearnbench.models.frozen import Frozen


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

    def begin(
        self, model: TextToImage, frozen: Frozen, forget: Examples, retain: Examples, concept: Concept, generator: torch.Generator
    ) -> None:
        """Finds the mask."""
        parameters = model.training()
        total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        for i in range(0, len(forget.prompts), self.batch):
            part = slice(i, i + self.batch)
            batch = Batch(forget.prompts[part], forget.anchors[part], forget.latents[part])
            for name, value in gradients_of(denoising_loss(model, batch, generator), parameters).items():
                total[name] += value
        self.mask = largest_scores({name: value.abs() for name, value in total.items()}, self.share)

    def state(self) -> dict[str, Tensor]:
        """The mask stays as it is."""
        return {}

    def shape_gradients(self, parameters: dict[str, nn.Parameter]) -> None:
        """Zero outside the mask, where Adam then does not move."""
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                parameter.grad *= self.mask[name]
