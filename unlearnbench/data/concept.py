"""A concept to forget: its prompts, its anchor and its detector."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from unlearnbench.config.errors import UserError
from unlearnbench.data.phrases import find_phrases, normal_text, replacements, with_plurals
from unlearnbench.data.phrases import mentions as mentions
from unlearnbench.data.prompt_sets import load_prompts
from unlearnbench.data.prompts import FORGET_SPLITS
from unlearnbench.data.prompts import RETAIN_SPLITS as RETAIN_SPLITS
from unlearnbench.data.prompts import Prompt as Prompt
from unlearnbench.data.prompts import read_prompts as read_prompts


@dataclass
class Concept:
    """A concept to forget.

    Attributes:
        name: its name in folders and tables.
        words: the words that name the concept; a retain prompt that contains one, or its plural, is left out.
        prompts: a csv, a text file or a set of conf/prompts with its forget prompts; a csv may hold near prompts and
            paraphrases too.
        anchor: what to generate instead: from phrase to phrase, applied to forget prompts, longest first, plurals too.
        guide: the concept as a bare phrase, for methods that edit one.
        anchors: for each domain, the default of `anchor`.
        detector: for each domain, the detector that decides whether an image shows the concept.
        explicit: whether reports blur its images.
        paraphrases: further lists or sets of forget prompts, measured as paraphrases and never trained on.
        measured: lists or sets whose rows are measured in place of the forget prompts and paraphrases of `prompts`, of which
            those with the use train, or none, still train. A row without a split is a forget prompt; one of a retain split
            does not count.
        implicit: lists of descriptions that never name the concept, measured as "implicit" and never trained on; of a list with a
            column `concept` the rows of this one.
        judge: a detector that takes the place of those of `detector`, in every domain; null for none.
    """

    name: str
    words: list[str]
    prompts: str
    anchor: dict[str, str]
    guide: str
    detector: dict[str, Any]
    anchors: dict[str, Any] = field(default_factory=dict)
    explicit: bool = False
    paraphrases: list[str] = field(default_factory=list)
    measured: list[str] = field(default_factory=list)
    implicit: list[str] = field(default_factory=list)
    judge: dict[str, Any] | None = None

    def load(self) -> list[Prompt]:
        """All prompts; those of a plain list are forget prompts, for training and measurement."""
        return [*self.with_measured(load_prompts(self.prompts, "forget")), *self.further_prompts()]

    def with_measured(self, rows: list[Prompt]) -> list[Prompt]:
        """The rows of `prompts`, with those of `measured` in place of the forget prompts and paraphrases that are measured.

        Raises:
            UserError: a list in `measured` has only prompts of retain splits.
        """
        if not self.measured:
            return rows
        trained = [replace(p, use="train") for p in rows if p.base == "forget" and p.use in ("", "train")]
        others = [p for p in rows if p.base not in FORGET_SPLITS]
        measured = []
        for name in self.measured:
            own = [replace(p, use="measure") for p in load_prompts(name, "forget") if p.base in FORGET_SPLITS]
            if not own:
                raise UserError(f"concept.measured: {name} has no row of {', '.join(FORGET_SPLITS)}; list it in retain.measured")
            measured += own
        return [*trained, *others, *measured]

    def further_prompts(self) -> list[Prompt]:
        """The prompts of the lists in `paraphrases` and `implicit`, without those of the use train, which these lists never have.

        Raises:
            UserError: a list of descriptions has none of this concept, or one of them names it.
        """
        paraphrases = [p for name in self.paraphrases for p in load_prompts(name, "paraphrase")]
        return [replace(p, use="measure") for p in [*paraphrases, *self._descriptions()] if p.use != "train"]

    def _descriptions(self) -> list[Prompt]:
        """The prompts of the lists in `implicit`; see `further_prompts`."""
        rows = []
        for name in self.implicit:
            own = [p for p in load_prompts(name, "implicit") if dict(p.columns).get("concept", self.name) == self.name]
            if not own:
                raise UserError(f"concept.implicit: {name} has no description of {self.name}; add rows with concept={self.name}")
            if named := next((p.text for p in own if self.is_named_in(p.text)), None):
                raise UserError(f"{name}: {named!r} names {self.name}; list it in concept.paraphrases, or reword it")
            rows += own
        return rows

    def prompt_sources(self) -> list[str]:
        """The names of all lists and sets of its prompts."""
        return [self.prompts, *self.paraphrases, *self.measured, *self.implicit]

    def name_phrases(self) -> list[str]:
        """The phrases that name the concept: the guide, then the words, without repetition."""
        return list(dict.fromkeys(map(normal_text, [self.guide, *self.words])))

    def concepts_by_split(self, base: str) -> dict[str, Concept]:
        """Each split of this base and its concept: a single concept has one, a group one for each part.

        Args:
            base: one of `FORGET_SPLITS`.
        """
        return {base: self}

    def part_named_in(self, prompt: str) -> int:
        """The index, in `concepts_by_split`, of the first concept that the prompt names; 0 if it names none."""
        parts = self.concepts_by_split("forget").values()
        return next((index for index, part in enumerate(parts) if mentions(prompt, part.name_phrases())), 0)

    def unlearning_stages(self) -> list[Concept]:
        """The concepts to forget one after another: only this one, unless it is a group with `continual`."""
        return [self]

    def substitute(self, prompt: str) -> str:
        """The prompt with the concept's phrases replaced by the anchor's, all at once: no replacement is replaced again.

        The plural of a phrase is replaced by the plural of its anchor, unless the plural has an anchor of its own.

        Examples:
            >>> church = Concept("church", ["church"], "", {"church": "house"}, "church", {})
            >>> church.substitute("a red church beside two churches")
            'a red house beside two houses'
        """
        text = normal_text(prompt)
        spans: list[tuple[int, int, str]] = []
        for phrase, anchor in replacements(tuple(self.anchor.items())):
            matches = (match.span() for match in find_phrases(text, [phrase]))
            spans += [(i, j, anchor) for i, j in matches if all(j <= start or end <= i for start, end, _ in spans)]
        for start, end, anchor in sorted(spans, reverse=True):
            text = text[:start] + anchor + text[end:]
        return re.sub(r"\s+", " ", text).strip(" ,")

    def is_named_in(self, prompt: str) -> bool:
        """Whether the prompt contains one of the concept's words, or its plural."""
        return mentions(prompt, with_plurals(tuple(self.words)))

    def naming_problem(self, prompts: Iterable[str]) -> str | None:
        """The problem of the first prompt that contains none of the concept's phrases; None if there is no such prompt."""
        for prompt in prompts:
            if not mentions(prompt, self.name_phrases()):
                return self.unnamed_problem(prompt)
        return None

    def assignment_problem(self, prompts: Iterable[str]) -> str | None:
        """`naming_problem` where there are several concepts, to one of which each prompt belongs; None for a single one."""
        return self.naming_problem(prompts) if len(self.concepts_by_split("forget")) > 1 else None

    def unnamed_problem(self, prompt: str) -> str:
        """The problem of a forget prompt that contains none of the concept's phrases, and the repair."""
        return f"forget prompt {prompt!r} contains none of {', '.join(self.words)}; reword it or remove it"


@dataclass
class GeneratedConcept(Concept):
    """A concept whose `__post_init__` derives its words, prompts, anchors and detector from other settings."""

    words: list[str] = field(init=False)
    prompts: str = field(init=False)
    anchor: dict[str, str] = field(init=False)
    guide: str = field(init=False)
    detector: dict[str, Any] = field(init=False)
    anchors: dict[str, Any] = field(init=False)
