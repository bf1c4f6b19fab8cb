"""No unlearning: the control whose integrity is exactly 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unlearnbench.algos.base import OPTIMIZER, Unlearner
from unlearnbench.algos.training import Training, Unlearned


@dataclass
class NoTraining(Unlearner):
    """Leaves the model unchanged."""

    train: str = "none"
    steps: int = 0
    needs_examples: ClassVar[bool] = False
    needs_images: ClassVar[bool] = False
    uses_seed: ClassVar[bool] = False
    unread_settings: ClassVar[frozenset[str]] = OPTIMIZER | {"train"}

    def update(self, training: Training) -> Unlearned:
        """Change no parameter."""
        return Unlearned([], training.guidance)
