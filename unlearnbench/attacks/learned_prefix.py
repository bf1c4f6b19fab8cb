"""What is learned before the prompt, through the unlearned model alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearnbench.attacks.base import AttackTarget
from unlearnbench.attacks.token_optimization import SLOT, TokenAttack
from unlearnbench.config.ranges import at_least
from unlearnbench.models.noising import NoisedLatents


@dataclass
class PrefixAttack(TokenAttack):
    """min over the prefix d of E_t,eps |eps - eps_u(x_t, d + prompt)|^2, by Adam with weight decay in the gradient.

    x_t is a noised image of the original's for the prompt. A subclass says what a prefix is made of.

    Attributes:
        tokens: how many are learned before the prompt.
    """

    tokens: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "tokens")

    def layout(self, words: list[int]) -> list[int]:
        """The learned tokens, then the prompt."""
        return [SLOT] * self.tokens + words

    def wanted(self, victim: AttackTarget, x: NoisedLatents, clean: Tensor, prompts: Sequence[str]) -> Tensor:
        """The noise (or the velocity) itself."""
        return victim.model.target(clean, x.noise, x.timesteps)

    def optimizer(self, learned: Tensor) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam([learned], self.lr, weight_decay=self.weight_decay)
