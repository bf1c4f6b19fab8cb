"""Soft prefix: UnlearnDiffAtk with free embeddings before the prompt instead of words."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unlearnbench.attacks.base import AttackTarget, Attempt
from unlearnbench.attacks.learned_prefix import PrefixAttack
from unlearnbench.attacks.token_optimization import random_word_embeddings


@dataclass
class SoftPrefix(PrefixAttack):
    """UnlearnDiffAtk's objective over unconstrained embeddings: an upper bound of what words can achieve.

    The prefix starts as random words. Nobody can type it; it becomes new tokens of the tokenizer, as in textual inversion
    (Gal et al. 2022, arXiv 2208.01618). Pham et al. (2023, arXiv 2308.01508) attack in this way, with one token for all
    prompts.
    """

    def initial_parameters(self, vocabulary: Tensor, counts: list[int], generators: list[torch.Generator]) -> Tensor:
        """The embeddings of random words, (n, slots, width)."""
        return random_word_embeddings(vocabulary, counts, generators)

    def slot_embeddings(self, parameters: Tensor, vocabulary: Tensor, generators: list[torch.Generator]) -> Tensor:
        """The parameters themselves."""
        return parameters

    def finish(self, target: AttackTarget, attempts: list[Attempt], parameters: Tensor) -> list[Attempt]:
        """Add the final prefixes to the target's learned tokens, and put their names before the prompts."""
        first = len(target.learned) // self.tokens
        names = [[f"<{target.concept.name}-{first + i}-{k}>" for k in range(self.tokens)] for i in range(len(attempts))]
        for row, embeddings in zip(names, parameters.detach(), strict=True):
            target.learned |= dict(zip(row, embeddings, strict=True))
        return [replace(a, attacked=" ".join([*row, a.prompt])) for a, row in zip(attempts, names, strict=True)]
