"""Paraphrases: other words for the same, from a list and by rule."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from unlearnbench.attacks.base import Attack, AttackTarget, Attempt
from unlearnbench.config.errors import suggest
from unlearnbench.data.concept import Concept

KINDS = ("listed", "synonym", "front", "twice", "typo")


@dataclass
class Paraphrases(Attack):
    """Ask in other words, without looking at the model.

    listed: the concept's own paraphrases, each beside a forget prompt (the first beside the first) whose seeds it takes.
    By rule, from each forget prompt: synonym (another of the concept's words, each in turn), front (the concept's bare phrase,
    then the prompt), twice (the prompt said twice), typo (two letters within the concept's word exchanged). A rule that leaves
    a prompt as it is leaves it out.

    Attributes:
        kinds: which of these; each is a row of the table.
    """

    kinds: list[str] = field(default_factory=lambda: list(KINDS))

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind in self.kinds:
            if kind not in KINDS:
                raise ValueError(f"kinds: {kind!r}; {suggest(kind, KINDS)}")

    def find(self, victim: AttackTarget) -> list[Attempt]:
        """See `Attack.find`."""
        attempts = []
        for kind in self.kinds:
            if kind == "listed":
                pairs = list(zip(victim.prompts, victim.paraphrases, strict=False))
            else:
                pairs = [(prompt, RULES[kind](prompt, victim.concept, i)) for i, prompt in enumerate(victim.prompts)]
            attempts += [Attempt(prompt, asked, kind) for prompt, asked in pairs if asked != prompt]
        return attempts


def synonym(prompt: str, concept: Concept, turn: int) -> str:
    """The first of the concept's words in the prompt exchanged for another of them, a different one by turns."""
    said = _said(prompt, concept)
    others = [word for word in concept.words if said is None or word.lower() != said.group().lower()]
    return prompt if said is None or not others else _exchanged(prompt, said, others[turn % len(others)])


def front(prompt: str, concept: Concept, turn: int) -> str:
    """The concept's bare phrase, then the prompt."""
    return f"{concept.guide}, {prompt}"


def twice(prompt: str, concept: Concept, turn: int) -> str:
    """The prompt said twice."""
    return f"{prompt}, {prompt}"


def typo(prompt: str, concept: Concept, turn: int) -> str:
    """The first of the concept's words with two neighbouring letters exchanged: the second and third, or the next that differ."""
    said = _said(prompt, concept)
    if said is None:
        return prompt
    word = said.group()
    at = next((i for i in range(1, len(word) - 1) if word[i] != word[i + 1]), None)
    return prompt if at is None else _exchanged(prompt, said, word[:at] + word[at + 1] + word[at] + word[at + 2 :])


RULES = {"synonym": synonym, "front": front, "twice": twice, "typo": typo}


def _said(prompt: str, concept: Concept) -> re.Match[str] | None:
    longest_first = sorted(concept.words, key=len, reverse=True)
    return re.search(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b", prompt, re.IGNORECASE)


def _exchanged(prompt: str, said: re.Match[str], word: str) -> str:
    return prompt[: said.start()] + word + prompt[said.end() :]
