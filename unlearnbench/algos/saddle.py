"""A saddle point: forget as much as an integrity budget allows: ours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unlearnbench.algos.examples import Batch, Examples
from unlearnbench.algos.substitute import Substitute
from unlearnbench.config.ranges import above_zero
from unlearnbench.data.concept import Concept
from unlearnbench.models.base import TextToImage
from unlearnbench.models.frozen import Frozen


@dataclass
class Saddle(Substitute):
    """`substitute` with the weight of the retain term learned: what the user sets is how far retained predictions may move.

    min over theta, max over lambda >= 0 of L_f + lambda (L_keep - budget), with the two terms of `Substitute`; after each
    step lambda <- max(0, lambda + ascent (L_keep / budget - 1)), so that it grows while the budget is exceeded and
    falls while it is not. `keep` is the lambda of the first step. Ours; the saddle point is the Lagrangian's
    of min L_f subject to L_keep <= budget.

    Attributes:
        budget: the largest mean squared change of predictions on retain prompts, in units of the prediction's own
            (whose mean square is about 1).
        ascent: how much lambda grows in a step at twice the budget.
    """

    budget: float = 1e-3
    ascent: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(self, "budget", "ascent")

    def begin(
        self, model: TextToImage, frozen: Frozen, forget: Examples, retain: Examples, concept: Concept, generator: torch.Generator
    ) -> None:
        """Sets lambda to `keep`."""
        super().begin(model, frozen, forget, retain, concept, generator)
        self.multiplier = self.keep

    def state(self) -> dict[str, Tensor]:
        """Lambda."""
        return {"multiplier": torch.tensor(self.multiplier, dtype=torch.float64)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes lambda back."""
        self.multiplier = state["multiplier"].item()

    def loss(self, model: TextToImage, frozen: Frozen, forget: Batch, retain: Batch, generator: torch.Generator) -> Tensor:
        """L_f + lambda (L_keep - budget); then lambda takes its step."""
        forgetting = self.forgetting(model, frozen, forget, generator)
        kept = self.keeping(model, frozen, retain, generator)
        value = forgetting + self.multiplier * (kept - self.budget)
        self.multiplier = max(0.0, self.multiplier + self.ascent * (kept.item() / self.budget - 1))
        return value
