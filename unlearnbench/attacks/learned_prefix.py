"""Attacks that learn a prefix of the prompt through the unlearned model alone."""

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

    x_t is the noised image that the original generates for the prompt. A subclass defines the parameters of a prefix.

    Attributes:
        tokens: length of the prefix.
    """

    tokens: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "tokens")

    def token_layout(self, words: list[int]) -> list[int]:
        """The learned tokens, then the prompt."""
        return [SLOT] * self.tokens + words

    def prediction_target(self, target: AttackTarget, noised: NoisedLatents, latents: Tensor, prompts: Sequence[str]) -> Tensor:
        """The denoising target: the noise, or the velocity."""
        return target.model.target(latents, noised.noise, noised.timesteps)

    def make_optimizer(self, parameters: Tensor) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam([parameters], self.lr, weight_decay=self.weight_decay)
