"""A saddle point: forget as much as an integrity budget allows: ours."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unlearnbench.algos.substitute import Substitute
from unlearnbench.algos.training import Step, Training
from unlearnbench.config.ranges import above_zero


@dataclass
class SaddleState:
    """Lambda."""

    multiplier: float


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

    def begin(self, training: Training) -> SaddleState:
        """Sets lambda to `keep`."""
        super().begin(training)
        return SaddleState(self.keep)

    def step_loss(self, training: Training, step: Step) -> Tensor:
        """L_f + lambda (L_keep - budget); then lambda takes its step."""
        model, original, state = training.model, training.original, training.state
        forgetting = self.forgetting(model, original, step.forget, step.generator)
        kept = self.keeping(model, original, step.retain, step.generator)
        value = forgetting + state.multiplier * (kept - self.budget)
        state.multiplier = max(0.0, state.multiplier + self.ascent * (kept.item() / self.budget - 1))
        return value
