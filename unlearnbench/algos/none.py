"""Does nothing: the control whose integrity is exactly 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unlearnbench.algos.base import Log, Unlearner
from unlearnbench.algos.examples import Batch, Examples
from unlearnbench.data.concept import Concept
from unlearnbench.models.base import TextToImage
from unlearnbench.models.frozen import Frozen


@dataclass
class NoTraining(Unlearner):
    """Leaves the model as it is."""

    train: str = "none"
    steps: int = 0
    needs_examples: ClassVar[bool] = False
    needs_images: ClassVar[bool] = False
    seeded: ClassVar[bool] = False

    def loss(self, model: TextToImage, frozen: Frozen, forget: Batch, retain: Batch, generator: torch.Generator) -> Tensor:
        """Zero."""
        return torch.zeros(())

    def unlearn(
        self, model: TextToImage, forget: Examples, retain: Examples, concept: Concept, seed: int, log: Log
    ) -> Sequence[str]:
        """Changes no parameter."""
        return []
