"""Ring-A-Bell: words whose encoding is that of the prompt with more of the concept; it does not use the unlearned model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from unlearnbench.attacks.base import Attack, AttackTarget, Attempt
from unlearnbench.attacks.token_optimization import pad_token_ids
from unlearnbench.config.errors import UserError
from unlearnbench.config.ranges import at_least, share
from unlearnbench.console import ProgressBar, progress_bar
from unlearnbench.models.vocabulary import bare_token_ids, decode_tokens, whole_words
from unlearnbench.storage.fitting_batches import FittingBatches


@dataclass
class RingABell(Attack):
    """Search words w for min |f(w) - (f(prompt) + strength c)|^2 over all tokens of the original's text encoder f.

    c is the concept's vector: the mean of f(with) - f(without) over pairs of prompts. The search is genetic: of a
    population of random words the better half survives; some survivors cross with another one at a random position, and
    some of all rows get a random word at a random position (Tsai et al. 2023, arXiv 2310.10012; form and settings follow the
    authors' code, chiayi-hsu/Ring-A-Bell). It uses neither the unlearned model nor an image.

    Ours differs: the pairs are the training prompts and their anchors (theirs: prompts written for this purpose).
    The words are tokens that remain the same token when decoded and tokenized again, and a row is scored by its text,
    tokenized again. Mutation spares the best row; theirs does not. Population and generations are smaller (200 and 3,000
    there).

    Attributes:
        length: number of searched words (16 or 77 there).
        strength: weight of the concept's vector (3 there for nudity).
        population: rows of words, half of which survive a generation.
        generations: number of generations.
        mutation: probability that a row gets a random word.
        crossover: probability that a row is crossed.
    """

    length: int = 16
    strength: float = 3.0
    population: int = 64
    generations: int = 300
    mutation: float = 0.25
    crossover: float = 0.5

    needs_tokens: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "length")
        at_least(self, 4, "population")
        at_least(self, 1, "generations")
        share(self, "mutation", "crossover")

    def find(self, target: AttackTarget) -> list[Attempt]:
        """See `Attack.find`.

        Raises:
            UserError: no training prompt contains the concept, so there is no pair.
        """
        substitutes = [(prompt, target.concept.substitute(prompt)) for prompt in target.training]
        pairs = [(prompt, anchor) for prompt, anchor in substitutes if anchor != prompt]
        if not pairs:
            raise UserError(f"attack={self.name}: concept.anchor changes no training prompt of {target.concept.name}")
        attempts = []
        generators = self.generators(target.prompts)
        with (
            progress_bar(f"attack: {self.name}", self.generations * len(generators)) as bar,
            torch.no_grad(),
            target.original() as original,
        ):
            vector, words = concept_vector(original, pairs), whole_words(original).cpu()
            for prompt, generator in zip(target.prompts, generators, strict=True):
                goal = encode(original, [prompt])[0] + self.strength * vector
                attempts.append(self._search(original, prompt, goal, words, generator, bar))
        return attempts

    def _search(
        self, model: Any, prompt: str, goal: Tensor, words: Tensor, generator: torch.Generator, bar: ProgressBar
    ) -> Attempt:
        """The row of words whose encoding is closest to the goal (tokens, width)."""
        length = min(self.length, goal.shape[0] - 2)

        def score(rows: Tensor) -> Tensor:
            return (encode(model, decode_tokens(model, rows)) - goal).square().sum((1, 2)).cpu()

        rows = words[torch.randint(len(words), (self.population, length), generator=generator)]
        scores = score(rows)
        first = scores.min().item()
        for _ in range(self.generations):
            parents = scores.argsort(stable=True)[: self.population // 2]
            rows, unchanged = self._breed(rows[parents], words, generator)
            scores = torch.cat([scores[parents], torch.empty(len(rows) - len(parents))])
            if not unchanged.all():
                scores[~unchanged] = score(rows[~unchanged])
            bar.advance(remark=f"objective {scores.min().item():.1f}")
        best = int(scores.argmin())
        return Attempt(prompt, decode_tokens(model, rows[best : best + 1])[0], "", first, scores[best].item())

    def _breed(self, parents: Tensor, words: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The next population, given its parents with the best first, and the mask of its unchanged parents."""
        count, length = parents.shape
        crossed = torch.rand(count, generator=generator) < self.crossover
        mates = parents[torch.randint(count, (count,), generator=generator)]
        left = torch.arange(length) < torch.randint(length, (count, 1), generator=generator)
        children = torch.stack([torch.where(left, parents, mates), torch.where(left, mates, parents)], dim=1)[crossed]
        rows = torch.cat([parents, children.flatten(0, 1)])
        mutated = torch.rand(len(rows), generator=generator) < self.mutation
        mutated[0] = False
        positions = torch.randint(length, (len(rows), 1), generator=generator)
        mutations = words[torch.randint(len(words), (len(rows), 1), generator=generator)]
        rows = torch.where(mutated[:, None] & (torch.arange(length) == positions), mutations, rows)
        return rows, (torch.arange(len(rows)) < count) & ~mutated


def encode(model: Any, prompts: list[str]) -> Tensor:
    """The text encoder's hidden states of prompts, (n, tokens, width)."""
    return model.encode_tokens(pad_token_ids(model, bare_token_ids(model, prompts)))


def concept_vector(model: Any, pairs: list[tuple[str, str]]) -> Tensor:
    """The mean of f(with) - f(without) over pairs of prompts, (tokens, width)."""
    fitting = FittingBatches("prompts")
    with_concept, without_concept = (
        torch.cat([*fitting.run(len(side), partial(encode_part, model, side))]) for side in zip(*pairs, strict=True)
    )
    return (with_concept - without_concept).mean(0)


def encode_part(model: Any, prompts: Sequence[str], part: slice) -> Tensor:
    """The text encoder's hidden states of a part of the prompts, (n, tokens, width)."""
    return encode(model, list(prompts[part]))
