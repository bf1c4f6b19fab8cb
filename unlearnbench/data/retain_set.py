"""What is to be retained: prompts, and real images for FID."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from unlearnbench.config.errors import UserError
from unlearnbench.config.paths import at_home
from unlearnbench.data.concept import Concept
from unlearnbench.data.prompt_sets import load_prompts
from unlearnbench.data.prompts import RETAIN_SPLITS, Prompt

if TYPE_CHECKING:
    pass


@dataclass
class Retain:
    """What is to be kept.

    Attributes:
        prompts: a csv, a text file or a set of conf/prompts: prompts far from any concept, and generic ones; near ones come
            with the concept.
        splits: which of near, far, generic count.
        images: a folder of real images for FID, a set of conf/prompts that has images, or null; Pictoworld draws its own.
    """

    prompts: str
    splits: list[str] = field(default_factory=lambda: list(RETAIN_SPLITS))
    images: str | None = None

    def __post_init__(self) -> None:
        for split in self.splits:
            if split not in RETAIN_SPLITS:
                raise ValueError(f"splits: {split!r} is none of {', '.join(RETAIN_SPLITS)}")
        if self.images is not None:
            self.images = at_home(self.images)

    def load(self, concept: Concept) -> list[Prompt]:
        """The retain prompts: the concept's near ones and those of the list, less any that says the concept's words."""
        near = [p for p in concept.load() if p.split == "near"]
        listed = [replace(p, split=p.split or "far") for p in load_prompts(self.prompts)]
        kept = [p for p in [*near, *listed] if p.split in self.splits and not concept.names(p.text)]
        if not kept:
            raise UserError(f"retain.prompts={self.prompts}: no prompt of {', '.join(self.splits)} is left beside {concept.name}")
        return kept
