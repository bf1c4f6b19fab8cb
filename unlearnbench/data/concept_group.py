"""Several concepts in one run: forgotten at once, or one after another."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

from unlearnbench.config.build import build
from unlearnbench.data.concept import Concept, GeneratedConcept
from unlearnbench.data.prompts import Prompt

PRECEDENCE = ("train", "", "measure")  # of uses of one prompt in the lists of several concepts, the last wins


@dataclass
class ConceptGroup(GeneratedConcept):
    """Concepts joined to one: its words are all their words, its anchors all their anchors, its prompts all theirs.

    The splits of forget prompts and paraphrases say which concept they are of: "forget: church". Near prompts of each
    stay "near", less those that name any of the concepts; a prompt in the lists of two counts once.

    Attributes:
        of: the settings of each, by name, in the order in which they are forgotten if `continual`.
        continual: one after another, each from the model that the last one left; else all at once.
    """

    explicit: bool = field(init=False)
    paraphrases: list[str] = field(init=False)
    of: dict[str, Any] = field(default_factory=dict)
    continual: bool = False

    def __post_init__(self) -> None:
        self.parts = [build(node, Concept, f"concept.of.{name}") for name, node in self.of.items()]
        names = [part.name for part in self.parts]
        if len(set(names)) < max(2, len(names)):
            raise ValueError(f"of: two concepts at least, each once, not {', '.join(names) or 'none'}")
        self.words = [word for part in self.parts for word in part.words]
        self.prompts = ", ".join(part.prompts for part in self.parts)
        self.guide = ", ".join(part.guide for part in self.parts)
        self.detector, self.anchors, self.anchor = {}, {}, {}
        self.paraphrases = [name for part in self.parts for name in part.paraphrases]
        self.explicit = any(part.explicit for part in self.parts)
        for part in self.parts:
            for phrase, anchor in part.anchor.items():
                where = f"of.{part.name}.anchor: {phrase!r} becomes {anchor!r}"
                if self.anchor.setdefault(phrase, anchor) != anchor:
                    raise ValueError(f"{where} here and {self.anchor[phrase]!r} in another concept; choose one")
                if self.names(anchor):
                    raise ValueError(f"{where}, which names a concept that is forgotten too; choose another anchor")

    def load(self) -> list[Prompt]:
        """The prompts of all, in turn; one in several lists is measured if one of them measures it, and else trains."""
        found: dict[tuple[str, str], Prompt] = {}
        named = [
            [replace(p, split=p.split if p.split == "near" else f"{p.split}: {c.name}") for p in c.load()] for c in self.parts
        ]
        for prompt in (p for row in zip_longest(*named) for p in row if p is not None):
            at = prompt.split, prompt.text.lower()
            if at not in found or PRECEDENCE.index(prompt.use) > PRECEDENCE.index(found[at].use):
                found[at] = prompt
        return list(found.values())

    def sources(self) -> list[str]:
        """See `Concept.sources`."""
        return [name for part in self.parts for name in part.sources()]

    def phrases(self) -> list[str]:
        """See `Concept.phrases`."""
        return list(dict.fromkeys(phrase for part in self.parts for phrase in part.phrases()))

    def by_split(self, base: str) -> dict[str, Concept]:
        """See `Concept.by_split`."""
        return {f"{base}: {part.name}": part for part in self.parts}

    def stages(self) -> list[Concept]:
        """See `Concept.stages`."""
        return [*self.parts] if self.continual else [self]
