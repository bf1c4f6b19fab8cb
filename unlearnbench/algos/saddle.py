"""A saddle point: forget as much as an integrity budget permits: our method."""

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
    """`substitute` with a learned weight of the retain term; the setting is how far retained predictions may move.

    min over theta, max over lambda >= 0 of L_f + lambda (L_r - budget), with the two terms of `Substitute`. After each
    step lambda <- max(0, lambda + ascent (L_r / budget - 1)): it grows while L_r exceeds the budget, and falls otherwise.
    `keep` is the lambda of the first step. Ours; the saddle point is that of the Lagrangian of min L_f subject to
    L_r <= budget.

    Attributes:
        budget: the largest mean squared change of predictions on retain prompts, in units of the squared prediction (whose
            mean is about 1).
        ascent: the increase of lambda in a step at twice the budget.
    """

    budget: float = 1e-3
    ascent: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(self, "budget", "ascent")

    def begin(self, training: Training) -> SaddleState:
        """Set lambda to `keep`."""
        super().begin(training)
        return SaddleState(self.keep)

    def step_loss(self, training: Training, step: Step) -> Tensor:
        """L_f + lambda (L_r - budget), followed by the step of lambda."""
        model, original, state = training.model, training.original, training.state
        forget_loss = self.forget_loss(model, original, step.forget, step.generator)
        retain_loss = self.retain_loss(model, original, step.retain, step.generator)
        loss = forget_loss + state.multiplier * (retain_loss - self.budget)
        state.multiplier = max(0.0, state.multiplier + self.ascent * (retain_loss.item() / self.budget - 1))
        return loss
