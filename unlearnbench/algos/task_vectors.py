"""Task vectors: subtract what fine-tuning on the concept adds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.examples import Batch
from unlearnbench.algos.losses import denoising_loss
from unlearnbench.algos.training import Training
from unlearnbench.config.ranges import at_least
from unlearnbench.models.base import TextToImage
from unlearnbench.models.frozen import Frozen


@dataclass
class TaskVectors(Unlearner):
    """Fine-tune on the concept to w_f by the usual training loss, then w = w_0 - alpha (w_f - w_0).

    Ilharco et al. 2023 (arXiv 2212.04089); for the erasure of concepts Pham et al. 2024 (arXiv 2404.03631), who choose alpha by
    the images of learned inversions of the concept. Ours: alpha is a setting.

    Attributes:
        alpha: how far to go from the original, in lengths of the way to the fine-tuned weights.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "alpha")

    def loss(self, model: TextToImage, frozen: Frozen, forget: Batch, retain: Batch, generator: torch.Generator) -> Tensor:
        """The training loss on the concept's images."""
        return denoising_loss(model, forget, generator)

    def finish(self, training: Training) -> None:
        """Go from the original in the opposite direction; of an adapter B A, whose B began at 0, with B alone."""
        with torch.no_grad():
            for name, value in training.parameters.items():
                if ".lora_A." in name:
                    continue
                original = training.original.parameters[name].to(value)
                value.copy_(original - self.alpha * (value - original))
