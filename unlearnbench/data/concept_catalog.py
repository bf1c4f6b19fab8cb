"""Concepts of a list: one of many things of a kind, with prompts made of templates."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from unlearnbench.config.errors import UserError, suggest
from unlearnbench.config.paths import find_file, read_yaml
from unlearnbench.data.concept import GeneratedConcept
from unlearnbench.data.prompts import Prompt, read_prompts


@dataclass
class CatalogConcept(GeneratedConcept):
    """One thing of a list, in every template: {} stands for it, and for what is near it in near prompts.

    The list is a yaml, each entry `name: {phrase: a golf ball, anchor: a tennis ball, near: [a ping-pong ball, ...]}`, where
    anchor and near may be left out: they are then the next entry, and all the others.

    Attributes:
        which: the entry that is to be forgotten.
        things: the list.
        templates: a csv or text file of prompts with {}.
        exchange: what becomes of the phrase, without its article, in an anchor: such as {"{}": "{anchor}"}.
        label: what a picture shows, to CLIP: such as "a painting by {}".
        backbone: the CLIP that tells them apart (see `ZeroShot`).
    """

    which: str = MISSING
    things: str = MISSING
    templates: str = MISSING
    exchange: dict[str, str] = field(default_factory=dict)
    label: str = "{}"
    backbone: str = "clip"

    def __post_init__(self) -> None:
        path = find_file(self.things)
        things = read_yaml(path)
        for name, thing in things.items():
            if not well_formed(thing):
                raise UserError(f"{path}: {name}: give a phrase, and if you like an anchor and what is near")
        if self.which not in things:
            raise ValueError(f"which: {self.which!r} is not in {self.things}; {suggest(self.which, things)}")
        phrases = {name: thing["phrase"] for name, thing in things.items()}
        names = list(things)
        following = phrases[names[(names.index(self.which) + 1) % len(names)]]
        chosen = {"anchor": following, "near": [p for n, p in phrases.items() if n != self.which], **things[self.which]}
        self.phrase = chosen["phrase"]
        bare, anchor = without_article(self.phrase), without_article(chosen["anchor"])
        self.words, self.guide, self.prompts, self.anchors = [bare], bare, self.templates, {}
        self.near = [phrase for phrase in chosen["near"] if not self.names(phrase)]
        if not self.near:
            raise UserError(f"{path}: {self.which}: nothing is near it; say what is (near: [...]), or give a second entry")
        self.anchor = {k.replace("{}", bare): v.replace("{}", bare).replace("{anchor}", anchor) for k, v in self.exchange.items()}
        if "{}" in self.exchange:
            self.anchor[self.phrase] = chosen["anchor"]
        others = [*dict.fromkeys([chosen["anchor"], *self.near, *(p for n, p in phrases.items() if n != self.which)])]
        self.detector = {
            "photo": {
                "_target_": "unlearnbench.metrics.detectors.ZeroShot",
                "label": self.label.replace("{}", self.phrase),
                "others": [self.label.replace("{}", other) for other in others],
                "backbone": self.backbone,
            }
        }

    def load(self) -> list[Prompt]:
        """Every template with the thing, and with one of what is near it in turn."""
        found = []
        for i, template in enumerate(read_prompts(self.templates, "forget")):
            if "{}" not in template.text:
                raise UserError(f"{self.templates}: {template.text!r} has no {{}} for the thing")
            for split, phrase in ((template.split, self.phrase), ("near", self.near[i % len(self.near)])):
                label = self.label.replace("{}", phrase)
                found.append(Prompt(template.text.replace("{}", phrase), split, template.use, label))
        return [*found, *self.more()]


def well_formed(thing: Any) -> bool:
    """Whether an entry of a list has a phrase, and nothing but an anchor and what is near besides, all of them text."""
    if not isinstance(thing, dict) or not {"phrase"} <= thing.keys() <= {"phrase", "anchor", "near"}:
        return False
    near = thing.get("near", [])
    return isinstance(near, list) and all(isinstance(text, str) for text in [thing["phrase"], thing.get("anchor", ""), *near])


def without_article(phrase: str) -> str:
    """The phrase without a, an or the before it.

    Examples:
        >>> without_article("an English springer"), without_article("Picasso")
        ('English springer', 'Picasso')
    """
    return re.sub(r"^(an?|the) ", "", phrase)
