"""Gradient ascent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.examples import Batch
from unlearnbench.algos.losses import denoising_loss
from unlearnbench.models.base import TextToImage
from unlearnbench.models.frozen import Frozen


@dataclass
class GradientAscent(Unlearner):
    """Maximise the denoising loss on the concept: L = -L_diff(forget).

    The loss has no lower bound, so the method diverges after many steps; stop early. This is the plain form of the baseline
    in SalUn (Fan et al. 2024, arXiv 2310.12508). The code of SalUn adds a retain term, which `grad_diff` has.
    """

    def loss(self, model: TextToImage, frozen: Frozen, forget: Batch, retain: Batch, generator: torch.Generator) -> Tensor:
        """-L_diff(forget)."""
        return -denoising_loss(model, forget, generator)
