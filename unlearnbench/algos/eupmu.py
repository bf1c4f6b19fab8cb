"""Utility-preserving unlearning: forget under a bound on the rise of the retain loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.examples import Batch
from unlearnbench.algos.losses import denoising_loss, relabelling_loss
from unlearnbench.algos.state import NOT_SAVED
from unlearnbench.algos.training import Step, Training
from unlearnbench.config.ranges import above_zero


class RetainLoss(NamedTuple):
    """The retain loss before a step: its batch, the generator's state that its noise was drawn from, its value."""

    retain: Batch
    noise: Tensor
    loss: float


@dataclass
class EUPMUState:
    """Lambda, the Adam that leads it, and the retain loss of the present step."""

    multiplier: Tensor
    ascent: torch.optim.Optimizer
    measured: RetainLoss | None = field(default=None, metadata=NOT_SAVED)


@dataclass
class EUPMU(Unlearner):
    """Minimise L_f while no step raises L_r by more than epsilon, the multiplier led by what each step did to L_r.

    The loss of a step is (lambda L_r + L_f) / (1 + lambda), with L_r = retain_weight L_diff(retain) and
    L_f = |eps(x_t, c_f) - sg eps(x_t, c_a)|^2 of the model in training. Then L_r is measured again on the same batch, and
    lambda takes an Adam step along L_r(before) - L_r(after) + epsilon, downward, and stays at least 0: one backward pass in
    place of the projection of the forget gradient. Zhou et al. 2025 (arXiv 2510.22124, "implicit gradient surgery").

    As the authors' code for classes of images on Stable Diffusion; there epsilon enters with a minus sign, so that its
    value .5 asks each step to lower L_r by so much: it is -.5 here. No step can, so that lambda grows until its decay
    holds it, at -epsilon / decay = 50. Ours measures L_r again with the same noise and times (theirs draws new ones),
    and cuts a negative lambda to 0 (theirs keeps it, and drops L_r from the loss meanwhile).

    Attributes:
        retain_weight: of L_diff on retain images.
        epsilon: the rise of L_r that a step may cause; below 0 a fall that it must.
        multiplier_lr: Adam's learning rate for lambda.
        multiplier_decay: Adam's weight decay for lambda.
    """

    retain_weight: float = 0.5
    epsilon: float = -0.5
    multiplier_lr: float = 3.0
    multiplier_decay: float = 0.01
    needs_anchors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(self, "multiplier_lr")

    def begin(self, training: Training) -> EUPMUState:
        """Sets lambda to 0."""
        multiplier = torch.zeros(())
        ascent = torch.optim.Adam([multiplier], self.multiplier_lr, weight_decay=self.multiplier_decay)
        return EUPMUState(multiplier, ascent)

    def step_loss(self, training: Training, step: Step) -> Tensor:
        """(lambda L_r + L_f) / (1 + lambda)."""
        model, state, (forget, retain, generator) = training.model, training.state, step
        noise = generator.get_state()
        retaining = self.retain_weight * denoising_loss(model, retain, generator)
        state.measured = RetainLoss(retain, noise, retaining.item())
        forgetting = relabelling_loss(model, forget, forget.anchors, generator)
        share = 1 / (1 + state.multiplier.item())
        return (1 - share) * retaining + share * forgetting

    def after_step(self, training: Training) -> None:
        """L_r of the step's batch again, and the step of lambda for what the step did to it."""
        state = training.state
        same_noise = torch.Generator()
        same_noise.set_state(state.measured.noise)
        with torch.no_grad():
            after = self.retain_weight * denoising_loss(training.model, state.measured.retain, same_noise).item()
        state.multiplier.grad = torch.tensor(state.measured.loss - after + self.epsilon)
        state.ascent.step()
        state.multiplier.clamp_(min=0)
