"""Textual inversion: one embedding, learned on images of the concept, in the place of its name (CCE)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from unlearnbench.attacks.base import AttackTarget, Attempt
from unlearnbench.attacks.soft_prefix import SoftPrefix
from unlearnbench.attacks.token_optimization import random_word_embeddings
from unlearnbench.data.phrases import without_phrases


@dataclass
class TextualInversion(SoftPrefix):
    """min over v of E_t,eps |eps - eps_u(x_t, v + prompt)|^2, one v for all prompts, whose words for the concept are left out.

    "Circumventing Concept Erasure Methods" (Pham et al. 2023, arXiv 2308.01508) learns one token v by textual inversion (Gal et
    al. 2022, arXiv 2208.01618) through the unlearned model and asks for it in place of the name. Ours differs: x_t are the
    original's images of the attacked prompts, whose remaining words stand behind v, instead of photographs under templates; the
    budget stands in the yaml. Prompts beyond `batch` learn a v of their own.
    """

    tokens: int = 1
    shares_batch: ClassVar[bool] = True

    def find(self, target: AttackTarget) -> list[Attempt]:
        """See `Attack.find`."""
        nameless = [without_phrases(prompt, target.concept.name_phrases()) for prompt in target.prompts]
        attempts = super().find(replace(target, prompts=nameless))
        return [replace(attempt, prompt=prompt) for attempt, prompt in zip(attempts, target.prompts, strict=True)]

    def initial_parameters(self, vocabulary: Tensor, counts: list[int], generators: list[torch.Generator]) -> Tensor:
        """The embeddings of random words, (1, slots, width)."""
        return random_word_embeddings(vocabulary, counts[:1], generators[:1])

    def slot_embeddings(self, parameters: Tensor, vocabulary: Tensor, generators: list[torch.Generator]) -> Tensor:
        """The same embeddings for every prompt."""
        return parameters.expand(len(generators), *parameters.shape[1:])

    def parameter_gradient(self, gradient: Tensor, vocabulary: Tensor) -> Tensor:
        """The mean of the prompts' gradients."""
        return gradient.mean(0, keepdim=True)

    def finish(self, target: AttackTarget, attempts: list[Attempt], parameters: Tensor) -> list[Attempt]:
        """Add the token to the target's learned ones, and put its name before the prompts."""
        first = len(target.learned)
        names = [f"<{target.concept.name}-{first + k}>" for k in range(self.tokens)]
        target.learned |= dict(zip(names, parameters.detach()[0], strict=True))
        return [replace(attempt, attacked=" ".join([*names, attempt.attacked])) for attempt in attempts]
