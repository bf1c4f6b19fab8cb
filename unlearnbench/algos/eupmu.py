"""EUPMU: utility-preserving unlearning, which forgets under a bound on the increase of the retain loss."""

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
from unlearnbench.config.ranges import above_zero, at_least


class RetainLoss(NamedTuple):
    """The retain loss before a step: its batch, the generator's state from which its noise was drawn, and its value."""

    retain: Batch
    noise: Tensor
    loss: float


@dataclass
class EUPMUState:
    """Lambda, its Adam optimizer, and the retain loss of the current step."""

    multiplier: Tensor
    ascent: torch.optim.Optimizer
    measured: RetainLoss | None = field(default=None, metadata=NOT_SAVED)


@dataclass
class EUPMU(Unlearner):
    """Minimise L_f while no step increases L_r by more than epsilon; the observed increases drive the multiplier.

    The loss of a step is (lambda L_r + L_f) / (1 + lambda), with L_r = retain_weight L_diff(retain) and
    L_f = |eps(x_t, c_f) - sg eps(x_t, c_a)|^2. After the step L_r is measured again on the same batch, and lambda takes an
    Adam step down L_r(before) - L_r(after) + epsilon, clipped at 0. One backward pass thus replaces the projection of the
    forget gradient. Zhou et al. 2025 (arXiv 2510.22124, "implicit gradient surgery").

    Form and settings follow the authors' code for image classes on Stable Diffusion. There epsilon has a minus sign, so
    their value .5, which requires each step to lower L_r by that amount, is -.5 here. No step can do so, and lambda grows
    until its weight decay stops it, at -epsilon / decay = 50. Ours differs: it measures L_r again with the same noise and
    timesteps (theirs draws new ones), and clips a negative lambda to 0 (theirs keeps it, and meanwhile drops L_r).

    Attributes:
        retain_weight: weight of L_diff on retain images.
        epsilon: the increase of L_r that a step may cause; a negative value requires a decrease.
        multiplier_lr: Adam's learning rate for lambda.
        multiplier_decay: Adam's weight decay for lambda.
    """

    retain_weight: float = 0.5
    epsilon: float = -0.5
    multiplier_lr: float = 3.0
    multiplier_decay: float = 0.01
    needs_anchors: ClassVar[bool] = True
    passes_with_gradient: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(self, "multiplier_lr")
        at_least(self, 0, "multiplier_decay")

    def begin(self, training: Training) -> EUPMUState:
        """Set lambda to 0."""
        multiplier = torch.zeros(())
        ascent = torch.optim.Adam([multiplier], self.multiplier_lr, weight_decay=self.multiplier_decay)
        return EUPMUState(multiplier, ascent)

    def step_loss(self, training: Training, step: Step) -> Tensor:
        """(lambda L_r + L_f) / (1 + lambda)."""
        model, state, (forget, retain, generator) = training.model, training.state, step
        noise = generator.get_state()
        retain_loss = self.retain_weight * denoising_loss(model, retain, generator)
        state.measured = RetainLoss(retain, noise, retain_loss.item())
        forget_loss = relabelling_loss(model, forget, forget.anchors, generator)
        share = 1 / (1 + state.multiplier.item())
        return (1 - share) * retain_loss + share * forget_loss

    def after_step(self, training: Training) -> None:
        """Measure L_r on the step's batch again, and update lambda by the difference."""
        state = training.state
        generator = torch.Generator()
        generator.set_state(state.measured.noise)
        with torch.no_grad():
            loss = self.retain_weight * denoising_loss(training.model, state.measured.retain, generator).item()
        state.multiplier.grad = torch.tensor(state.measured.loss - loss + self.epsilon)
        state.ascent.step()
        state.multiplier.clamp_(min=0)
