"""Several concepts in one run, forgotten at once or one after another."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

from unlearnbench.config.build import build
from unlearnbench.config.ranges import above_zero, at_least, one_of, share_above_zero
from unlearnbench.data.concept import Concept, GeneratedConcept
from unlearnbench.data.prompts import Prompt

PRECEDENCE = ("train", "", "measure")  # if the lists of several concepts hold a prompt with different uses, the last wins


@dataclass
class ConceptGroup(GeneratedConcept):
    """Concepts joined to one: with the words, the anchors and the prompts of all.

    The splits of forget prompts and paraphrases name the concept: "forget: church". Near prompts of each part stay "near",
    without those that name any of the concepts. A prompt in the lists of two parts counts once.

    Attributes:
        of: the settings of each part, by name, in the order in which they are forgotten if `continual`.
        continual: forget one after another, each from the model that the previous step left; else all at once.
        l2_to_start: with `continual`, the weight of the mean squared distance of what trains to the original model's values;
            CUIG's are 10,000 to 300,000. 0 for none.
        selective: with `continual`, the share of the weights that train for each concept, those that matter most to its loss;
            CUIG's is 0.01. 1 for all.
        merge: with `continual`, "ties" unlearns each concept from the original model alone and merges what changed; "" does not.
        density: the share of each concept's changes that the merging uses.
        scale: the factor on what was merged.
    """

    explicit: bool = field(init=False)
    paraphrases: list[str] = field(init=False)
    measured: list[str] = field(init=False)
    implicit: list[str] = field(init=False)
    judge: dict[str, Any] | None = field(init=False)
    of: dict[str, Any] = field(default_factory=dict)
    continual: bool = False
    l2_to_start: float = 0.0
    selective: float = 1.0
    merge: str = ""
    density: float = 0.3
    scale: float = 1.0

    def __post_init__(self) -> None:
        self._check_options()
        self.parts = [build(node, Concept, f"concept.of.{name}") for name, node in self.of.items()]
        names = [part.name for part in self.parts]
        if len(set(names)) < max(2, len(names)):
            raise ValueError(f"of: name at least two concepts, each once, not {', '.join(names) or 'none'}")
        self.words = [word for part in self.parts for word in part.words]
        self.prompts = ", ".join(part.prompts for part in self.parts)
        self.guide = ", ".join(part.guide for part in self.parts)
        self.detector, self.anchors, self.anchor = {}, {}, {}
        self.paraphrases = [name for part in self.parts for name in part.paraphrases]
        self.measured, self.judge = [], None
        self.implicit = [name for part in self.parts for name in part.implicit]
        self.explicit = any(part.explicit for part in self.parts)
        for part in self.parts:
            for phrase, anchor in part.anchor.items():
                where = f"of.{part.name}.anchor: {phrase!r} becomes {anchor!r}"
                if self.anchor.setdefault(phrase, anchor) != anchor:
                    raise ValueError(f"{where} here but {self.anchor[phrase]!r} in another concept; choose one")
                if self.is_named_in(anchor):
                    raise ValueError(f"{where}, which names a concept that is also forgotten; choose another anchor")

    def _check_options(self) -> None:
        """Check what the settings of `continual` say."""
        at_least(self, 0, "l2_to_start")
        above_zero(self, "scale")
        share_above_zero(self, "selective", "density")
        one_of(self, "merge", "", "ties")
        if self.binds_to_start and not self.continual:
            raise ValueError("l2_to_start, selective and merge are for concepts one after another: set continual=true")

    @property
    def binds_to_start(self) -> bool:
        """Whether later concepts are bound to the original model or merged with the earlier ones."""
        return self.l2_to_start > 0 or self.selective < 1 or self.merge != ""

    def load(self) -> list[Prompt]:
        """The prompts of all parts, in turn; a prompt in several lists is measured if one of them measures it, else it trains."""
        prompts: dict[tuple[str, str], Prompt] = {}
        lists = [
            [replace(p, split=p.split if p.base == "near" else f"{p.split}: {part.name}") for p in part.load()]
            for part in self.parts
        ]
        for prompt in (p for row in zip_longest(*lists) for p in row if p is not None):
            key = prompt.split, prompt.text.lower()
            if key not in prompts or PRECEDENCE.index(prompt.use) > PRECEDENCE.index(prompts[key].use):
                prompts[key] = prompt
        return list(prompts.values())

    def prompt_sources(self) -> list[str]:
        """See `Concept.prompt_sources`."""
        return [name for part in self.parts for name in part.prompt_sources()]

    def name_phrases(self) -> list[str]:
        """See `Concept.name_phrases`."""
        return list(dict.fromkeys(phrase for part in self.parts for phrase in part.name_phrases()))

    def concepts_by_split(self, base: str) -> dict[str, Concept]:
        """See `Concept.concepts_by_split`."""
        return {f"{base}: {part.name}": part for part in self.parts}

    def unlearning_stages(self) -> list[Concept]:
        """See `Concept.unlearning_stages`."""
        return [*self.parts] if self.continual else [self]
