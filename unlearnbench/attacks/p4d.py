"""P4D: Prompting4Debugging, prompts under which the unlearned model predicts what the original predicts for the concept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unlearnbench.attacks.base import AttackTarget
from unlearnbench.attacks.token_optimization import SLOT, TokenAttack, random_word_embeddings
from unlearnbench.config.errors import suggest
from unlearnbench.config.ranges import at_least
from unlearnbench.models.noising import NoisedLatents

FORMS = ("n", "k")


@dataclass
class P4D(TokenAttack):
    """Learn a prompt P* that minimises the distance to the original's prediction: |eps_u(x_t, P*) - eps_0(x_t, P)|^2.

    P is the concept's prompt, x_t the noised image that the original generates for it, t uniform. P* has `tokens` free words
    (P4D-N), or the prompt's own words with a free one before the first and after every `every` of them (P4D-K). Free words
    start as random words. A step computes the gradient at the embeddings of the nearest words by cosine, and applies it
    with AdamW to the continuous embeddings (Chin et al. 2023, arXiv 2309.06135; form and settings follow the authors'
    code, joycenerd/P4D).

    Ours differs: fewer steps (theirs 3,000); the loss at fixed timesteps and noises selects the best prompt, where theirs
    compares a sampled image with the target by CLIP every 50 steps; the padding is the tokenizer's own, theirs is
    token 0. Left out is the guided prediction for models with a safety filter, since the targets here have none.

    Attributes:
        form: n (free words only) or k (the prompt's words with free ones between them).
        tokens: free words of form n (16 there).
        every: words of the prompt between two free words of form k (3 there).
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

    def token_layout(self, words: list[int]) -> list[int]:
        """The free words alone, or among the prompt's."""
        if self.form == "n":
            return [SLOT] * self.tokens
        parts = [[SLOT, *words[i : i + self.every]] for i in range(0, len(words) + 1, self.every)]
        return [token for part in parts for token in part]

    def prediction_target(self, target: AttackTarget, noised: NoisedLatents, latents: Tensor, prompts: Sequence[str]) -> Tensor:
        """The original's prediction for the concept's prompts."""
        return target.original.predict(noised.noisy_latents, noised.timesteps, prompts)

    def initial_parameters(self, vocabulary: Tensor, counts: list[int], generators: list[torch.Generator]) -> Tensor:
        """The embeddings of random words, (n, slots, width)."""
        return random_word_embeddings(vocabulary, counts, generators)

    def make_optimizer(self, parameters: Tensor) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW([parameters], self.lr, weight_decay=self.weight_decay)

    def slot_embeddings(self, parameters: Tensor, vocabulary: Tensor, generators: list[torch.Generator]) -> Tensor:
        """The embeddings of the nearest words."""
        return vocabulary[nearest_words(parameters, vocabulary)]

    def slot_words(self, parameters: Tensor, vocabulary: Tensor) -> Tensor | None:
        """The nearest words."""
        return nearest_words(parameters, vocabulary)


def nearest_words(embeddings: Tensor, vocabulary: Tensor) -> Tensor:
    """The row of the vocabulary (words, width) with the largest cosine to each of the embeddings (..., width)."""
    return (F.normalize(embeddings.detach(), dim=-1) @ F.normalize(vocabulary, dim=-1).T).argmax(-1)
