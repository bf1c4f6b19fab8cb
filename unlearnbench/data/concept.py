"""What is to be forgotten."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from unlearnbench.data.prompt_sets import load_prompts
from unlearnbench.data.prompts import RETAIN_SPLITS as RETAIN_SPLITS
from unlearnbench.data.prompts import Prompt as Prompt
from unlearnbench.data.prompts import read_prompts as read_prompts

if TYPE_CHECKING:
    pass


@dataclass
class Concept:
    """What is to be forgotten.

    Attributes:
        name: a word for folders and tables.
        words: the words that name the concept; a retain prompt that has one is left out.
        prompts: a csv, a text file or a set of conf/prompts: prompts that ask for it (in a csv, near ones and paraphrases too).
        anchor: what to paint instead: phrase to phrase, applied to forget prompts, longest first.
        guide: the concept as a bare phrase, for methods that edit one.
        anchors: per domain, the anchor that `anchor` takes unless given.
        detector: per domain, the detector that decides whether a picture shows the concept.
        explicit: blur its images in reports.
        paraphrases: further lists or sets of prompts that ask for it, measured as paraphrases and never trained on.
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

    def load(self) -> list[Prompt]:
        """All its prompts; those of a plain list are forget prompts, both to train and to measure."""
        return [*load_prompts(self.prompts, "forget"), *self.more()]

    def more(self) -> list[Prompt]:
        """The prompts of its further lists."""
        return [replace(p, use=p.use or "measure") for name in self.paraphrases for p in load_prompts(name, "paraphrase")]

    def sources(self) -> list[str]:
        """The names of all lists and sets that its prompts come from."""
        return [self.prompts, *self.paraphrases]

    def phrases(self) -> list[str]:
        """The bare phrase, then the words, none twice."""
        return list(dict.fromkeys([self.guide, *self.words]))

    def by_split(self, base: str) -> dict[str, Concept]:
        """The splits of forget prompts or of paraphrases, each with the concept that it is of: one, or as many as there are."""
        return {base: self}

    def stages(self) -> list[Concept]:
        """What is forgotten in turn: all at once, unless there are several."""
        return [self]

    def substitute(self, prompt: str) -> str:
        """The prompt with the concept's words exchanged for the anchor's.

        Examples:
            >>> church = Concept("church", ["church"], "", {"church": "house"}, "church", {})
            >>> church.substitute("a red church on a white background")
            'a red house on a white background'
        """
        for phrase in sorted(self.anchor, key=len, reverse=True):
            prompt = re.sub(rf"\b{re.escape(phrase)}\b", self.anchor[phrase].replace("\\", r"\\"), prompt, flags=re.IGNORECASE)
        return re.sub(r"\s+", " ", prompt).strip(" ,")

    def names(self, prompt: str) -> bool:
        """Whether the prompt says one of the concept's words."""
        return mentions(prompt, self.words)

    def unspoken(self, prompts: Iterable[str]) -> str | None:
        """What is wrong with the first prompt that says none of its phrases, with the repair; None if each says one."""
        for prompt in prompts:
            if not mentions(" ".join(prompt.split()), self.phrases()):
                return self.missed(prompt)
        return None

    def missed(self, prompt: str) -> str:
        """What is wrong with a forget prompt that says none of its phrases, with the repair."""
        return f"forget prompt {prompt!r} says none of {', '.join(self.words)}; reword it, or drop it"


@dataclass
class GeneratedConcept(Concept):
    """A concept that finds its words, prompts, anchors and detector from settings of its own, in `__post_init__`."""

    words: list[str] = field(init=False)
    prompts: str = field(init=False)
    anchor: dict[str, str] = field(init=False)
    guide: str = field(init=False)
    detector: dict[str, Any] = field(init=False)
    anchors: dict[str, Any] = field(init=False)


def mentions(prompt: str, words: Iterable[str]) -> bool:
    """Whether one of the words stands in the prompt, whole."""
    return any(re.search(rf"\b{re.escape(word)}\b", prompt, re.IGNORECASE) for word in words)
