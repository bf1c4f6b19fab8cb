"""Utility-preserving unlearning: forget under a bound on the rise of the retain loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.examples import Batch, Examples
from unlearnbench.algos.losses import denoising_loss, relabelling_loss
from unlearnbench.config.ranges import above_zero
from unlearnbench.data.concept import Concept
from unlearnbench.models.base import TextToImage
from unlearnbench.models.frozen import Frozen
from unlearnbench.storage.training_state import optimizer_state, restore_optimizer


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

    def begin(
        self, model: TextToImage, frozen: Frozen, forget: Examples, retain: Examples, concept: Concept, generator: torch.Generator
    ) -> None:
        """Sets lambda to 0."""
        self.multiplier = torch.zeros(())
        self.ascent = torch.optim.Adam([self.multiplier], self.multiplier_lr, weight_decay=self.multiplier_decay)

    def state(self) -> dict[str, Tensor]:
        """Lambda, and its Adam's moments."""
        return {"multiplier": self.multiplier, **optimizer_state(self.ascent)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes both back."""
        self.multiplier.copy_(state.pop("multiplier"))
        restore_optimizer(self.ascent, state)

    def loss(self, model: TextToImage, frozen: Frozen, forget: Batch, retain: Batch, generator: torch.Generator) -> Tensor:
        """(lambda L_r + L_f) / (1 + lambda)."""
        state = generator.get_state()
        retaining = self.retain_weight * denoising_loss(model, retain, generator)
        self.asked = model, retain, state, retaining.item()
        forgetting = relabelling_loss(model, forget, forget.anchors, generator)
        share = 1 / (1 + self.multiplier.item())
        return (1 - share) * retaining + share * forgetting

    def after_step(self, parameters: dict[str, nn.Parameter], frozen: Frozen) -> None:
        """L_r of the step's batch again, and the step of lambda for what the step did to it."""
        model, retain, state, before = self.asked
        same = torch.Generator()
        same.set_state(state)
        with torch.no_grad():
            after = self.retain_weight * denoising_loss(model, retain, same).item()
        self.multiplier.grad = torch.tensor(before - after + self.epsilon)
        self.ascent.step()
        self.multiplier.clamp_(min=0)
