"""A concept out of a catalog of similar ones, with prompts from templates."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from omegaconf import MISSING

from unlearnbench.config.errors import UserError, suggest
from unlearnbench.config.paths import find_file, read_yaml
from unlearnbench.data.concept import GeneratedConcept
from unlearnbench.data.prompts import Prompt, read_prompts

DETECTORS = "unlearnbench.metrics.detectors"


@dataclass
class CatalogConcept(GeneratedConcept):
    """One entry of a catalog, in every template: {} stands for it, and in near prompts for a neighbour.

    The catalog is a yaml of entries `name: {phrase: a golf ball, anchor: a tennis ball, near: [a ping-pong ball, ...]}`.
    Defaults: the anchor is the next entry, near are all other entries. An entry's `synonyms`, in turn, make paraphrases of the
    templates that are measured.

    Attributes:
        which: the entry to forget.
        things: the catalog.
        templates: a csv or text file of prompts with {}.
        exchange: how an anchor replaces the phrase without its article, such as {"{}": "{anchor}"}.
        label: the CLIP label of an image, such as "a painting by {}".
        backbone: the CLIP that classifies images (see `ZeroShot`).
        measure_all: also measure the templates that train, as UnlearnCanvas does.
        attribute: the attribute of an embedded world of which the entries are values, such as subject, in place of a CLIP label;
            "" for a list of photographs.
        world: that world, pictoworld or pictoscenes; without an attribute it does nothing.
        near_entries: the near prompts that are measured are every template with every other entry, each entry on a split of
            its own ("near: tree"), so that all entries have the same prompts, whichever is forgotten.
        column: the column of the index that gets the phrase, for metrics that read it, such as style; "" for none.
    """

    which: str = MISSING
    things: str = MISSING
    templates: str = MISSING
    exchange: dict[str, str] = field(default_factory=dict)
    label: str = "{}"
    backbone: str = "clip"
    column: str = ""
    measure_all: bool = False
    attribute: str = ""
    world: str = "pictoworld"
    near_entries: bool = False

    def __post_init__(self) -> None:
        path = find_file(self.things)
        entries = read_yaml(path)
        for name, entry in entries.items():
            if not well_formed(entry):
                raise UserError(f"{path}: {name}: an entry has a phrase and, optionally, an anchor and lists near and synonyms")
        if self.which not in entries:
            raise ValueError(f"which: {self.which!r} is not in {self.things}; {suggest(self.which, entries)}")
        phrases = {name: entry["phrase"] for name, entry in entries.items()}
        names = list(entries)
        following = phrases[names[(names.index(self.which) + 1) % len(names)]]
        entry = {"anchor": following, "near": [p for n, p in phrases.items() if n != self.which], **entries[self.which]}
        self.phrase = entry["phrase"]
        bare, anchor = without_article(self.phrase), without_article(entry["anchor"])
        self.words, self.guide, self.prompts, self.anchors = [bare], bare, self.templates, {}
        self.synonyms: list[str] = entry.get("synonyms", [])
        self.near = [phrase for phrase in entry["near"] if not self.is_named_in(phrase)]
        self.others = {n: p for n, p in phrases.items() if n != self.which and not self.is_named_in(p)}
        if not self.near:
            raise UserError(f"{path}: {self.which}: it has no near phrases; add them (near: [...]) or add a second entry")
        self.anchor = {k.replace("{}", bare): v.replace("{}", bare).replace("{anchor}", anchor) for k, v in self.exchange.items()}
        if "{}" in self.exchange:
            self.anchor[self.phrase] = entry["anchor"]
        if self.attribute:
            detectors = {
                "pictoworld": {"_target_": f"{DETECTORS}.Attribute", "attribute": self.attribute, "value": self.which},
                "pictoscenes": {"_target_": f"{DETECTORS}.InScene", self.attribute: self.which},
            }
            if self.world not in detectors:
                raise ValueError(f"world: {self.world!r} is no embedded world; {suggest(self.world, detectors)}")
            self.detector = {self.world: detectors[self.world]}
            return
        others = [*dict.fromkeys([entry["anchor"], *self.near, *(p for n, p in phrases.items() if n != self.which)])]
        self.detector = {
            "photo": {
                "_target_": f"{DETECTORS}.ZeroShot",
                "label": self.label.replace("{}", self.phrase),
                "others": [self.label.replace("{}", other) for other in others],
                "backbone": self.backbone,
            }
        }

    def load(self) -> list[Prompt]:
        """Every template, once with the concept's phrase and once with one of the near phrases, in turn (see `near_entries`)."""
        prompts, measured = [], 0
        for i, template in enumerate(read_prompts(self.templates, "forget")):
            if "{}" not in template.text:
                raise UserError(f"{self.templates}: {template.text!r} has no {{}} for the phrase")
            template = replace(template, use="") if self.measure_all and template.use == "train" else template
            near = [("near", self.near[i % len(self.near)])]
            if self.near_entries and template.use != "train":
                near = [(f"near: {name}", phrase) for name, phrase in self.others.items()]
            phrases = [(template.split, self.phrase), *near]
            if self.synonyms and template.use != "train":
                phrases.append(("paraphrase", self.synonyms[measured % len(self.synonyms)]))
                measured += 1
            for split, phrase in phrases:
                label = self.label.replace("{}", self.phrase if split == "paraphrase" else phrase)
                own = ((self.column, phrase),) if self.column else ()
                text = template.text.replace("{}", phrase)
                use = "measure" if split == "paraphrase" else template.use
                prompts.append(Prompt(text, split, use, label, template.seed, (*template.columns, *own)))
        return [*self.with_measured(prompts), *self.further_prompts()]


def well_formed(entry: Any) -> bool:
    """Whether an entry of a catalog has a phrase and at most an anchor and lists near and synonyms, all of them text."""
    if not isinstance(entry, dict) or not {"phrase"} <= entry.keys() <= {"phrase", "anchor", "near", "synonyms"}:
        return False
    lists = [entry.get(name, []) for name in ("near", "synonyms")]
    texts = [entry["phrase"], entry.get("anchor", ""), *(text for of in lists if isinstance(of, list) for text in of)]
    return all(isinstance(of, list) for of in lists) and all(isinstance(text, str) for text in texts)


def without_article(phrase: str) -> str:
    """The phrase without a, an or the before it.

    Examples:
        >>> without_article("an English springer"), without_article("Picasso")
        ('English springer', 'Picasso')
    """
    return re.sub(r"^(an?|the) ", "", phrase)
