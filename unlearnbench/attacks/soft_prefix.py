"""UnlearnDiffAtk without words: free embeddings before the prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unlearnbench.attacks.base import AttackTarget, Attempt
from unlearnbench.attacks.learned_prefix import PrefixAttack
from unlearnbench.attacks.token_optimization import random_words


@dataclass
class SoftPrefix(PrefixAttack):
    """UnlearnDiffAtk's objective over embeddings that need be no word's: an upper bound to what words can do.

    The prefix starts as random words. It cannot be typed; it becomes new tokens of the tokenizer, as textual inversion
    (Gal et al. 2022, arXiv 2208.01618) does, and Pham et al. (2023, arXiv 2308.01508) attack so, with one token for all prompts.
    """

    def start(self, vocabulary: Tensor, counts: list[int], generators: list[torch.Generator]) -> Tensor:
        """Random words' embeddings, (n, slots, width)."""
        return random_words(vocabulary, counts, generators)

    def vectors(self, learned: Tensor, vocabulary: Tensor, generators: list[torch.Generator]) -> Tensor:
        """What is learned."""
        return learned

    def finish(self, victim: AttackTarget, best: list[Attempt], learned: Tensor) -> list[Attempt]:
        """The prefixes that stand at the end, as new tokens' names before the prompts."""
        taken = len(victim.learned) // self.tokens
        names = [[f"<{victim.concept.name}-{taken + i}-{k}>" for k in range(self.tokens)] for i in range(len(best))]
        for row, vectors in zip(names, learned.detach(), strict=True):
            victim.learned |= dict(zip(row, vectors, strict=True))
        return [replace(a, attacked=" ".join([*row, a.prompt])) for a, row in zip(best, names, strict=True)]
