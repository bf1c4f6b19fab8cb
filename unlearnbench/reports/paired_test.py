"""A paired comparison of two runs, image by image: which one changes retain images less, by a bootstrap over prompts."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from unlearnbench.config.errors import UserError, first_line
from unlearnbench.config.quoting import command_text
from unlearnbench.console.tables import format_number
from unlearnbench.data.images import Images
from unlearnbench.results.intervals import has_width, holm, paired_difference
from unlearnbench.results.run import Run

PAIRED_HEAD = ["run", "distance", "on", "left", "right", "change", "95 % interval", "p", "p, Holm", "n", "prompts"]
Distances = dict[tuple[str, int], tuple[str, float]]  # prompt and seed -> split and distance


@dataclass(frozen=True)
class PairedTest:
    """Two runs' distances to the original model's images; a negative difference favours the right run.

    Attributes:
        distance: the name of the distance, such as lpips-alex; it is 0 for equal images.
        split: near, far, generic, or retain for all of them.
        left: the left run's mean.
        right: the right run's mean.
        difference: right - left.
        low: the lower end of its 95 % interval, by bootstrap over prompts; None for one prompt, as high, p and corrected are.
        high: the upper end.
        p: two-sided (see `intervals.paired_difference`).
        corrected: p corrected for the number of right runs that the left one is compared with, by Holm.
        images: pairs of images of one prompt and seed.
        prompts: distinct prompts among them.
    """

    distance: str
    split: str
    left: float
    right: float
    difference: float
    low: float | None
    high: float | None
    p: float | None
    images: int
    prompts: int
    run: str = ""
    corrected: float | None = None

    @property
    def cells(self) -> list[str]:
        """The row of the table, under `PAIRED_HEAD`; one prompt has neither interval nor p."""
        interval = f"{self.low:+.3f}..{self.high:+.3f}" if has_width(self.low, self.high) else ""
        test = [interval, *("" if p is None else f"{p:.4f}" for p in (self.p, self.corrected))]
        return [
            self.run, self.distance, self.split, format_number(self.left), format_number(self.right), f"{self.difference:+.3f}",
            *test, str(self.images), str(self.prompts),
        ]  # fmt: skip


def per_image_distances(folder: Path) -> dict[str, dict[str, float]]:
    """The distances of a run's images to the original's, by distance and file; empty if none was measured.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / "per_image.json"
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        repair = f"remove it, and {command_text('measure', folder)} writes it again"
        raise UserError(f"{path}: is damaged ({first_line(error)}); {repair}") from error


def paired_tests(left: Run, *others: Run) -> list[PairedTest]:
    """Compare a run with each of some others on the prompts and seeds that both have.

    For each other run and distance: all retain splits, and then each of them. The p of one distance and split are corrected for
    the number of other runs.

    Raises:
        UserError: the runs share no distance, or no prompt and seed; or a run's index of images is incomplete.
    """
    tests = [test for right in others for test in _tests_of_pair(left, right)]
    groups: dict[tuple[str, str], list[int]] = {}
    for i, test in enumerate(tests):
        groups.setdefault((test.distance, test.split), []).append(i)
    for places in groups.values():
        ps = {i: p for i in places if (p := tests[i].p) is not None}
        for i, corrected in zip(ps, holm([*ps.values()]), strict=True):
            tests[i] = replace(tests[i], corrected=corrected)
    return tests


def _tests_of_pair(left: Run, right: Run) -> list[PairedTest]:
    left_distances, right_distances = _distances(left), _distances(right)
    tests = []
    for name in left_distances:
        if name in right_distances:
            pair = _tests_of_distance(name, left_distances[name], right_distances[name])
            tests += [replace(test, run=right.log["algo"]) for test in pair]
    if not tests:
        missing = "per-image distance (per_image.json, by metrics=integrity)"
        if left_distances.keys() & right_distances.keys():
            missing = "prompt and seed; compare runs with the same ones"
        raise UserError(f"{left.folder} and {right.folder} share no {missing}")
    return tests


def _distances(run: Run) -> dict[str, Distances]:
    """A run's distances by name.

    Raises:
        UserError: per_image.json has images that the index has not.
    """
    records = {record.file: record for record in Images(run.folder / "images" / "after")}
    by_file = per_image_distances(run.folder)
    if absent := {file for distances in by_file.values() for file in distances} - records.keys():
        raise UserError(
            f"{run.folder}: incomplete; {len(absent)} images of per_image.json are missing in images/after/index.jsonl"
        )
    return {
        name: {(records[file].prompt, records[file].seed): (records[file].split, value) for file, value in distances.items()}
        for name, distances in by_file.items()
    }


def _tests_of_distance(name: str, left: Distances, right: Distances) -> list[PairedTest]:
    shared = [key for key in left if key in right]
    splits = list(dict.fromkeys(left[key][0] for key in shared))
    tests = []
    for split in ["retain", *(splits if len(splits) > 1 else [])] if shared else []:
        keys = [key for key in shared if split in ("retain", left[key][0])]
        x, y = (np.array([side[key][1] for key in keys]) for side in (left, right))
        prompts = [prompt for prompt, _ in keys]
        means = float(x.mean()), float(y.mean()), float(y.mean() - x.mean())
        several = len(set(prompts)) > 1
        low, high, p = paired_difference(prompts, x, y) if several else (None, None, None)
        tests.append(PairedTest(name, split, *means, low, high, p, len(keys), len(set(prompts))))
    return tests
