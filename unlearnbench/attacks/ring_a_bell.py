"""Ring-A-Bell: words whose encoding is that of the prompt with more of the concept; the unlearned model is not asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unlearnbench.attacks.base import Attack, AttackTarget, Attempt
from unlearnbench.attacks.token_optimization import fitted
from unlearnbench.config.errors import UserError
from unlearnbench.config.ranges import at_least, share
from unlearnbench.console import ProgressBar, progress_bar
from unlearnbench.models.vocabulary import bare_token_ids, decode_tokens, whole_words


@dataclass
class RingABell(Attack):
    """Search words w for min |f(w) - (f(prompt) + strength c)|^2 over all tokens of the original's text encoder f.

    c is the concept's vector: the mean of f(with) - f(without) over pairs of prompts. The search is genetic: of a
    population of random words the better half stays, some of it is crossed at a random place with another of it, and some of
    all get a random word at a random place (Tsai et al. 2023, arXiv 2310.10012; form and settings after the authors'
    code, chiayi-hsu/Ring-A-Bell). It knows neither the unlearned model nor a picture.

    Ours: the pairs are the training prompts and the same with the anchor (theirs: prompts written for it); the words are
    tokens that a text of their own spells, and a row is scored by its text, tokenized again; the best so far is spared by
    mutation, theirs is not; population and generations are smaller (200 and 3,000 there).

    Attributes:
        length: words that are searched (16 or 77 there).
        strength: how much of the concept is added (3 there for nudity).
        population: word rows, half of which stay in each generation.
        generations: how often.
        mutation: the chance that a row gets a random word.
        crossover: the chance that a row is crossed.
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

    def find(self, victim: AttackTarget) -> list[Attempt]:
        """See `Attack.find`.

        Raises:
            UserError: no training prompt says the concept, so there is no pair.
        """
        pairs = [(p, other) for p in victim.training if (other := victim.concept.substitute(p)) != p]
        if not pairs:
            raise UserError(f"attack={self.name}: no training prompt of {victim.concept.name} changes by concept.anchor")
        attempts = []
        generators = self.generators(victim.prompts)
        with (
            progress_bar(f"attack: {self.name}", self.generations * len(generators)) as shown,
            torch.no_grad(),
            victim.original() as f,
        ):
            vector, words = concept_vector(f, pairs), whole_words(f).cpu()
            for prompt, generator in zip(victim.prompts, generators, strict=True):
                wanted = states(f, [prompt])[0] + self.strength * vector
                attempts.append(self._search(f, prompt, wanted, words, generator, shown))
        return attempts

    def _search(
        self, model: Any, prompt: str, wanted: Tensor, words: Tensor, generator: torch.Generator, shown: ProgressBar
    ) -> Attempt:
        length = min(self.length, wanted.shape[0] - 2)

        def score(rows: Tensor) -> Tensor:
            return (states(model, decode_tokens(model, rows)) - wanted).square().sum((1, 2)).cpu()

        rows = words[torch.randint(len(words), (self.population, length), generator=generator)]
        scores = score(rows)
        first = scores.min().item()
        for _ in range(self.generations):
            better = scores.argsort(stable=True)[: self.population // 2]
            rows, same = self._breed(rows[better], words, generator)
            scores = torch.cat([scores[better], torch.empty(len(rows) - len(better))])
            if not same.all():
                scores[~same] = score(rows[~same])
            shown.advance(remark=f"objective {scores.min().item():.1f}")
        best = int(scores.argmin())
        return Attempt(prompt, decode_tokens(model, rows[best : best + 1])[0], "", first, scores[best].item())

    def _breed(self, rows: Tensor, words: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The next population from its parents, the best of them first; and which of its rows are parents as they were."""
        count, length = rows.shape
        crossed = torch.rand(count, generator=generator) < self.crossover
        mates = rows[torch.randint(count, (count,), generator=generator)]
        left = torch.arange(length) < torch.randint(length, (count, 1), generator=generator)
        children = torch.stack([torch.where(left, rows, mates), torch.where(left, mates, rows)], dim=1)[crossed]
        bred = torch.cat([rows, children.flatten(0, 1)])
        mutated = torch.rand(len(bred), generator=generator) < self.mutation
        mutated[0] = False
        places = torch.randint(length, (len(bred), 1), generator=generator)
        drawn = words[torch.randint(len(words), (len(bred), 1), generator=generator)]
        bred = torch.where(mutated[:, None] & (torch.arange(length) == places), drawn, bred)
        return bred, (torch.arange(len(bred)) < count) & ~mutated


def states(model: Any, prompts: list[str]) -> Tensor:
    """The text encoder's states of prompts, (n, tokens, width)."""
    return model.encode_tokens(fitted(model, bare_token_ids(model, prompts)))


def concept_vector(model: Any, pairs: list[tuple[str, str]]) -> Tensor:
    """The mean of f(with) - f(without) over pairs of prompts, (tokens, width)."""
    told, untold = (states(model, list(side)) for side in zip(*pairs, strict=True))
    return (told - untold).mean(0)
