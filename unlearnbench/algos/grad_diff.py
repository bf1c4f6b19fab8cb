"""Gradient difference: ascent on the forget examples, descent on the retain examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.examples import Batch
from unlearnbench.algos.losses import denoising_loss
from unlearnbench.models.base import TextToImage
from unlearnbench.models.frozen import Frozen


@dataclass
class GradientDifference(Unlearner):
    """L = -forget_weight L_diff(forget) + L_diff(retain).

    With forget_weight 1 / alpha this is, up to scale, the gradient-ascent baseline in the code of SalUn (Fan et al. 2024,
    arXiv 2310.12508), L = -L_diff(forget) + alpha L_diff(retain) with alpha .1. The name comes from Liu et al. 2022
    (arXiv 2203.12817).

    Attributes:
        forget_weight: weight of the ascent.
    """

    forget_weight: float = 0.3
    passes_with_gradient: ClassVar[int] = 2

    def loss(self, model: TextToImage, frozen: Frozen, forget: Batch, retain: Batch, generator: torch.Generator) -> Tensor:
        """-forget_weight L_diff(forget) + L_diff(retain)."""
        return denoising_loss(model, retain, generator) - self.forget_weight * denoising_loss(model, forget, generator)
