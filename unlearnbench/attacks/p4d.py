"""Prompting4Debugging: a prompt under which the unlearned model predicts what the original does under the concept's prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unlearnbench.attacks.base import AttackTarget
from unlearnbench.attacks.token_optimization import SLOT, TokenAttack, random_words
from unlearnbench.config.errors import suggest
from unlearnbench.config.ranges import at_least
from unlearnbench.models.noising import NoisedLatents

FORMS = ("n", "k")


@dataclass
class P4D(TokenAttack):
    """Learn a prompt by the original's prediction: |eps_u(x_t, P*) - eps_0(x_t, P)|^2.

    P is the concept's prompt, x_t a noised image that the original made of it, t uniform. P* has `tokens` free words
    (P4D-N), or the prompt's own words with a free one before the first and after every `every` of them (P4D-K); they start as
    random words. A step takes the gradient at the embeddings of the words that are nearest by cosine, and gives it to the
    free embeddings behind them, which AdamW moves (Chin et al. 2023, arXiv 2309.06135; form and settings after the authors'
    code, joycenerd/P4D).

    Ours: fewer steps (theirs 3,000); the loss at fixed times and noises chooses among the prompts on the way, where
    theirs compares a sampled image with the target by CLIP every 50 steps; padding is the tokenizer's own, theirs
    token 0. The guided prediction that they learn through for models with a safety filter is left out: what is attacked here
    has none.

    Attributes:
        form: n (free words only) or k (the prompt's words with free ones between them).
        tokens: free words of form n (16 there).
        every: words of the prompt from one free word to the next, of form k (3 there).
    """

    lr: float = 0.1
    form: str = "n"
    tokens: int = 16
    every: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "tokens", "every")
        if self.form not in FORMS:
            raise ValueError(f"form: {self.form!r}; {suggest(self.form, FORMS)}")

    def layout(self, words: list[int]) -> list[int]:
        """The free words alone, or among the prompt's."""
        if self.form == "n":
            return [SLOT] * self.tokens
        parts = [[SLOT, *words[i : i + self.every]] for i in range(0, len(words) + 1, self.every)]
        return [token for part in parts for token in part]

    def wanted(self, victim: AttackTarget, x: NoisedLatents, clean: Tensor, prompts: Sequence[str]) -> Tensor:
        """The original's prediction for the concept's prompt."""
        return victim.original.predict(x.noisy_latents, x.timesteps, prompts)

    def start(self, vocabulary: Tensor, counts: list[int], generators: list[torch.Generator]) -> Tensor:
        """Random words' embeddings, (n, slots, width)."""
        return random_words(vocabulary, counts, generators)

    def optimizer(self, learned: Tensor) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW([learned], self.lr, weight_decay=self.weight_decay)

    def vectors(self, learned: Tensor, vocabulary: Tensor, generators: list[torch.Generator]) -> Tensor:
        """The nearest words' embeddings."""
        return vocabulary[nearest(learned, vocabulary)]

    def words(self, learned: Tensor, vocabulary: Tensor) -> Tensor | None:
        """The nearest."""
        return nearest(learned, vocabulary)


def nearest(vectors: Tensor, vocabulary: Tensor) -> Tensor:
    """The row of the vocabulary (words, width) that is nearest by cosine to each of the vectors (..., width)."""
    return (F.normalize(vectors.detach(), dim=-1) @ F.normalize(vocabulary, dim=-1).T).argmax(-1)
