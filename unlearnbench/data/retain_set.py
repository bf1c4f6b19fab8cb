"""The retain set: prompts, and real images for FID."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from unlearnbench.config.errors import UserError
from unlearnbench.config.paths import at_home
from unlearnbench.data.concept import Concept
from unlearnbench.data.prompt_sets import load_prompts
from unlearnbench.data.prompts import RETAIN_SPLITS, Prompt

DEFAULT_IMAGES = {"photo": "coco3k"}  # by the model's domain, a set of conf/prompts


@dataclass
class Retain:
    """The retain set.

    Attributes:
        prompts: a csv, a text file or a set of conf/prompts with prompts far from any concept and generic ones; the concept
            brings the near ones.
        splits: which of near, far, generic are retained.
        images: a folder of real images for FID, a set of conf/prompts that has images, or null: embedded worlds render their own,
            and photographs are compared to those of coco3k where these can be downloaded.
        measured: lists or sets whose rows are measured in place of those of `prompts` and of the concept's near prompts, which
            then only train; a row without a split is generic, and one of another split than `splits` does not count.
        keep_named: also retain prompts that name the concept, as published protocols do.
    """

    prompts: str
    splits: list[str] = field(default_factory=lambda: list(RETAIN_SPLITS))
    images: str | None = None
    measured: list[str] = field(default_factory=list)
    keep_named: bool = False

    def __post_init__(self) -> None:
        for split in self.splits:
            if split not in RETAIN_SPLITS:
                raise ValueError(f"splits: {split!r} is not one of {', '.join(RETAIN_SPLITS)}")
        if self.images is not None:
            self.images = at_home(self.images)

    def load(self, concept: Concept) -> list[Prompt]:
        """The concept's near prompts and those of the list, without prompts that name the concept.

        Raises:
            UserError: no prompt remains, or `measured` has none of `splits`.
        """
        near = [p for p in concept.load() if p.base == "near"]
        listed = [replace(p, split=p.split or "far") for p in load_prompts(self.prompts)]
        rows = [p for p in [*near, *listed] if p.base in self.splits]
        if self.measured:
            listed = [replace(p, split=p.split or "generic") for name in self.measured for p in load_prompts(name)]
            measured = [replace(p, use="measure") for p in listed if p.base in self.splits]
            if not measured:
                splits = ", ".join(dict.fromkeys(p.split for p in listed))
                raise UserError(f"retain.measured: its rows are of {splits}, retain.splits is {', '.join(self.splits)}; add one")
            rows = [*(replace(p, use="train") for p in rows if p.use in ("", "train")), *measured]
        retained = [p for p in rows if (self.keep_named and p.use == "measure") or not concept.is_named_in(p.text)]
        if not retained:
            raise UserError(
                f"retain.prompts={self.prompts}: no prompt of {', '.join(self.splits)} remains without {concept.name}"
            )
        return retained
