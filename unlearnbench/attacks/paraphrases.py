"""Paraphrases: other words for the concept, from a list and by rule."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from unlearnbench.attacks.base import Attack, AttackTarget, Attempt
from unlearnbench.config.errors import suggest
from unlearnbench.data.concept import Concept
from unlearnbench.data.phrases import find_phrases

KINDS = ("listed", "synonym", "front", "twice", "typo")


@dataclass
class Paraphrases(Attack):
    """Rephrase each prompt without access to the model.

    listed: the concept's own paraphrases, each paired with a forget prompt (the first with the first) whose seeds it uses.
    By rule, from each forget prompt: synonym (another of the concept's words, in turn), front (the concept's bare phrase,
    then the prompt), twice (the prompt repeated), typo (two letters of the concept's word swapped). A rule skips a prompt
    that it does not change.

    Attributes:
        kinds: the kinds to use; each is a row of the table.
    """

    kinds: list[str] = field(default_factory=lambda: list(KINDS))

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind in self.kinds:
            if kind not in KINDS:
                raise ValueError(f"kinds: {kind!r}; {suggest(kind, KINDS)}")

    def find(self, target: AttackTarget) -> list[Attempt]:
        """See `Attack.find`."""
        attempts = []
        for kind in self.kinds:
            if kind == "listed":
                pairs = list(zip(target.prompts, target.paraphrases, strict=False))
            else:
                pairs = [(prompt, RULES[kind](prompt, target.concept, i)) for i, prompt in enumerate(target.prompts)]
            attempts += [Attempt(prompt, paraphrase, kind) for prompt, paraphrase in pairs if paraphrase != prompt]
        return attempts


def synonym(prompt: str, concept: Concept, turn: int) -> str:
    """The prompt with its first concept word replaced by another of the concept's words, which `turn` selects."""
    match = _concept_word(prompt, concept)
    others = [word for word in concept.words if match is None or word.lower() != match.group().lower()]
    return prompt if match is None or not others else _replaced(prompt, match, others[turn % len(others)])


def front(prompt: str, concept: Concept, turn: int) -> str:
    """The concept's bare phrase, then the prompt."""
    return f"{concept.guide}, {prompt}"


def twice(prompt: str, concept: Concept, turn: int) -> str:
    """The prompt repeated."""
    return f"{prompt}, {prompt}"


def typo(prompt: str, concept: Concept, turn: int) -> str:
    """The prompt with two neighbouring letters of its first concept word swapped: the first two after the initial that differ."""
    match = _concept_word(prompt, concept)
    if match is None:
        return prompt
    word = match.group()
    at = next((i for i in range(1, len(word) - 1) if word[i] != word[i + 1]), None)
    return prompt if at is None else _replaced(prompt, match, word[:at] + word[at + 1] + word[at] + word[at + 2 :])


RULES = {"synonym": synonym, "front": front, "twice": twice, "typo": typo}


def _concept_word(prompt: str, concept: Concept) -> re.Match[str] | None:
    """The first of the concept's words in the prompt, the longest where several match."""
    longest_first = sorted(concept.words, key=len, reverse=True)
    return next(find_phrases(prompt, longest_first), None)


def _replaced(prompt: str, match: re.Match[str], word: str) -> str:
    return prompt[: match.start()] + word + prompt[match.end() :]
