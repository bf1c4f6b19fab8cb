"""Two runs image by image: whether one keeps more than the other, by a bootstrap over prompts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unlearnbench.config.errors import UserError
from unlearnbench.console import format_number
from unlearnbench.data.images import Images
from unlearnbench.results.intervals import paired_difference
from unlearnbench.results.run import Run


@dataclass(frozen=True)
class PairedTest:
    """Two runs' distances to the original, image by image: negative differences say that the right one keeps more.

    Attributes:
        distance: its name, such as lpips-alex; of equal pictures it is 0.
        split: near, far, generic, or retain for all of them.
        left: the left run's mean.
        right: the right run's.
        difference: right - left.
        low: the lower end of its 95 % interval, by bootstrap over prompts.
        high: the upper end.
        p: two-sided (see `intervals.difference`).
        images: pairs of the same prompt and seed.
        prompts: different prompts among them.
    """

    distance: str
    split: str
    left: float
    right: float
    difference: float
    low: float
    high: float
    p: float
    images: int
    prompts: int

    @property
    def cells(self) -> list[str]:
        """As they are printed, under `HEAD`."""
        return [
            self.distance, self.split, format_number(self.left), format_number(self.right), f"{self.difference:+.3f}",
            f"{self.low:+.3f}..{self.high:+.3f}", f"{self.p:.4f}", str(self.images), str(self.prompts),
        ]  # fmt: skip


PAIRED_HEAD = ["distance", "on", "left", "right", "change", "95 % interval", "p", "n", "prompts"]


def per_image_distances(folder: Path) -> dict[str, dict[str, float]]:
    """The distances of a run's images to the original's, by name and file; empty where none was measured."""
    path = folder / "per_image.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def paired_tests(left: Run, right: Run) -> list[PairedTest]:
    """Compare two runs on the prompts and seeds that both have.

    Raises:
        UserError: they share no distance, or no prompt and seed.
    """
    sides = []
    for run in (left, right):
        named = {shot.file: shot for shot in Images(run.folder / "images" / "after")}
        by_distance = per_image_distances(run.folder).items()
        if lost := {file for _, distances in by_distance for file in distances} - named.keys():
            raise UserError(f"{run.folder}: not whole; images/after/index.jsonl lacks {len(lost)} images of per_image.json")
        sides.append({d: {(named[f].prompt, named[f].seed): (named[f].split, x) for f, x in v.items()} for d, v in by_distance})
    found = []
    for distance in [name for name in sides[0] if name in sides[1]]:
        a, b = sides[0][distance], sides[1][distance]
        both = [key for key in a if key in b]
        splits = list(dict.fromkeys(a[key][0] for key in both))
        for split in ["retain", *(splits if len(splits) > 1 else [])] if both else []:
            keys = [key for key in both if split in ("retain", a[key][0])]
            x, y = (np.array([side[key][1] for key in keys]) for side in (a, b))
            prompts = [prompt for prompt, _ in keys]
            apart = paired_difference(prompts, x, y)
            means = float(x.mean()), float(y.mean()), float(y.mean() - x.mean())
            found.append(PairedTest(distance, split, *means, *apart, len(keys), len(set(prompts))))
    if not found:
        raise UserError(f"{left.folder} and {right.folder} share no per-image distance (per_image.json, by metrics=integrity)")
    return found
