"""The settings of sampling: steps, guidance, seeds, how many prompts."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from unlearnbench.config.errors import UserError
from unlearnbench.config.ranges import at_least
from unlearnbench.data.prompts import LARGEST_SEED, Prompt, image_seed

if TYPE_CHECKING:
    from unlearnbench.models.base import ImageShape

GUIDANCE_COLUMNS = ("evaluation_guidance", "sd_guidance_scale", "guidance_scale", "guidance")
SIZE_COLUMNS = ("sd_image_height", "sd_image_width")


@dataclass
class Sampling:
    """The settings of sampling.

    Attributes:
        seed: the seed of all measured images; unlearning has its own seed.
        per_prompt: images for each prompt, each with its own seed.
        prompts: the largest number of prompts of each split; null takes all.
        steps: sampling steps.
        guidance: the classifier-free guidance scale.
        batch: images in a batch; 32 was fastest on two cores.
        seeds: the seeds of the images of each prompt that has none of its own; their number is then that of images for each
            prompt, instead of `per_prompt`. Empty takes a hash of seed, prompt and number.
        row_size: a row of a prompt file with `sd_image_width` and `sd_image_height` is sampled at that size, not at the model's.
        row_guidance: a row of a prompt file with a guidance scale of its own (one of `GUIDANCE_COLUMNS`) is sampled with that.
    """

    seed: int = 0
    per_prompt: int = 2
    prompts: int | None = None
    steps: int = 20
    guidance: float = 4.0
    batch: int = 32
    row_guidance: bool = False
    row_size: bool = False
    seeds: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.per_prompt = len(self.seeds) or self.per_prompt
        if len(set(self.seeds)) < len(self.seeds) or any(not 0 <= seed <= LARGEST_SEED for seed in self.seeds):
            raise ValueError(f"seeds: {self.seeds}: give different whole numbers from 0 to {LARGEST_SEED}")
        at_least(self, 1, "per_prompt", "steps", "batch")
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance: {self.guidance} is not a finite number")
        if self.prompts is not None:
            at_least(self, 1, "prompts")

    def image_seed(self, prompt: Prompt, repeat: int) -> int:
        """The seed of a prompt's image of this number."""
        is_listed = prompt.seed is None and repeat < len(self.seeds)
        return self.seeds[repeat] if is_listed else image_seed(self.seed, prompt, repeat)

    def of_seeded_prompts(self) -> Sampling:
        """These settings for prompts that have a seed each: one image of every prompt, by that seed."""
        return replace(self, seed=0, per_prompt=1, prompts=None, seeds=[])

    def scale(self, prompt: Prompt) -> float:
        """The guidance scale of a prompt's images.

        Raises:
            UserError: the prompt's own scale is asked for, and is no number of at least 0.
        """
        own = dict(prompt.columns)
        cell = next((own[name] for name in GUIDANCE_COLUMNS if name in own), None) if self.row_guidance else None
        if cell is None:
            return self.guidance
        try:
            value = float(cell)
        except ValueError:
            value = -1.0
        if not 0 <= value < math.inf:
            raise UserError(f"the guidance {cell!r} of the prompt {prompt.text!r} is no number of at least 0")
        return value

    def shape(self, prompt: Prompt) -> ImageShape | None:
        """Height and width in pixels of a prompt's images; None for the model's size.

        Raises:
            UserError: the prompt's own size is asked for, and one of the two is absent or no whole number of at least 1.
        """
        own = dict(prompt.columns)
        if not self.row_size or not any(own.get(name) for name in SIZE_COLUMNS):
            return None
        cells = [re.sub(r"\.0+$", "", own.get(name, "")) for name in SIZE_COLUMNS]
        if not all(cell.isdecimal() and int(cell) > 0 for cell in cells):
            sides = f"the height {cells[0]!r} and the width {cells[1]!r} of the prompt {prompt.text!r}"
            raise UserError(f"{sides} are not two whole numbers of at least 1")
        return int(cells[0]), int(cells[1])

    def limit(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The first `prompts` of every split."""
        counts: Counter[str] = Counter()
        limited = []
        for prompt in prompts:
            counts[prompt.split] += 1
            if self.prompts is None or counts[prompt.split] <= self.prompts:
                limited.append(prompt)
        return limited
