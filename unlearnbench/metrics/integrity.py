"""Integrity: does the unlearned model still generate the same image for the same prompt and seed?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations, compress
from typing import ClassVar

import numpy as np

from unlearnbench.config.errors import UserError
from unlearnbench.data.images import Images
from unlearnbench.metrics.base import EvaluationSetting, Metric, MetricInputs
from unlearnbench.metrics.forget_accuracy import detector_downloads, shows_concept, unavailable_detector
from unlearnbench.metrics.image_distances import distance_downloads, pair_distances, unavailable_distance
from unlearnbench.results.intervals import prompt_interval
from unlearnbench.results.run import Value
from unlearnbench.storage.downloads import Download


@dataclass
class Integrity(Metric):
    """integrity = 1 - D, with D the mean of d(original's image, unlearned model's image), same prompt and seed.

    The idea is that of Schioppa, Hoogeboom, Heek (arXiv 2411.02068); the formula is ours, and with d = LPIPS it is the
    prior preservation of DUO (arXiv 2407.21035). Ours too: integrity_norm = 1 - D / D_reseed, where D_reseed is the mean
    distance between the original's images of one prompt and two seeds: 1 means unchanged images, 0 means as different as
    two random seeds. Intervals: bootstrap over prompts.

    Attributes:
        distances: names of distances; the first one is the headline.
        where_shown: also the rows "retain that shows it" and "retain without it": retain images whose original shows the
            concept by its detector ("an image of a purple cottage" generated as a church) and has to change, and the others.
    """

    distances: list[str] = field(default_factory=lambda: ["lpips-alex"])
    where_shown: bool = False
    least_retain_images: ClassVar[int] = 1
    each_stage: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.distances:
            raise ValueError("distances: name at least one")

    def unavailable_reason(self, setting: EvaluationSetting) -> str | None:
        """See `Metric.unavailable_reason`."""
        detector = unavailable_detector(setting) if self.where_shown else None
        return next((reason for name in self.distances if (reason := unavailable_distance(name))), detector)

    def downloads(self, setting: EvaluationSetting) -> list[Download]:
        """See `Metric.downloads`."""
        downloads = [download for name in self.distances for download in distance_downloads(name)]
        return downloads + (detector_downloads(setting) if self.where_shown else [])

    def measure(self, inputs: MetricInputs) -> list[Value]:
        """integrity and integrity_norm on all retain prompts and on each split."""
        return [value for name in self.distances for value in self._by_distance(name, inputs)]

    def _by_distance(self, name: str, inputs: MetricInputs) -> Iterator[Value]:
        for split, parts in inputs.splits():
            original, unlearned = inputs.both(*parts)
            if [(record.prompt, record.seed) for record in original] != [(record.prompt, record.seed) for record in unlearned]:
                raise UserError(f"{original.folder} and {unlearned.folder} do not hold the same prompts and seeds")
            distances = _distances(name, original, unlearned, inputs)
            if split == "retain":
                pairs = zip(unlearned, distances, strict=True)
                inputs.per_image[name] = {record.file: float(distance) for record, distance in pairs}
            prompts = [record.prompt for record in original]
            interval = prompt_interval(prompts, distances).complement()
            yield self.value("integrity", split, 1 - distances.mean(), n=len(distances), backbone=name, interval=interval)
            reseed = _reseed_distances(name, original, inputs)
            if reseed is None:
                continue
            scale = np.array([reseed[prompt] for prompt in prompts])
            if scale.mean() > 0:
                yield self._normalized(name, split, prompts, distances, scale)
            if split == "retain" and self.where_shown:
                shown = shows_concept(original, inputs)
                for part, rows in (("retain that shows it", shown), ("retain without it", ~shown)):
                    if rows.any() and scale[rows].mean() > 0:
                        yield self._normalized(name, part, list(compress(prompts, rows)), distances[rows], scale[rows])

    def _normalized(self, name: str, split: str, prompts: list[str], distances: np.ndarray, scale: np.ndarray) -> Value:
        """integrity_norm of images, with the distance between two seeds of each one's prompt."""
        return self.value(
            "integrity_norm",
            split,
            1 - distances.mean() / scale.mean(),
            n=len(distances),
            backbone=name,
            interval=prompt_interval(prompts, distances, scale, of=lambda d, r: 1 - d / r),
            extras={"D_reseed": float(scale.mean())},
        )


def _distances(name: str, left: Images, right: Images, inputs: MetricInputs) -> np.ndarray:
    pairs = zip(left.batches(), right.batches(), strict=True)
    return np.concatenate([pair_distances(name, a, b, inputs.device).numpy() for a, b in pairs])


def _reseed_distances(name: str, original: Images, inputs: MetricInputs) -> dict[str, float] | None:
    """Per prompt, the mean distance between the original's images of different seeds; None if a prompt has one seed only."""
    rows_by_prompt: dict[str, list[int]] = defaultdict(list)
    for row, record in enumerate(original):
        rows_by_prompt[record.prompt].append(row)
    pairs = [(prompt, i, j) for prompt, rows in rows_by_prompt.items() for i, j in combinations(rows, 2)]
    if len({prompt for prompt, _, _ in pairs}) < len(rows_by_prompt):
        return None
    left, right = (Images(original.folder, [original[pair[side]] for pair in pairs]) for side in (1, 2))
    by_prompt: dict[str, list[float]] = defaultdict(list)
    for (prompt, _, _), distance in zip(pairs, _distances(name, left, right, inputs).tolist(), strict=True):
        by_prompt[prompt].append(distance)
    return {prompt: float(np.mean(distances)) for prompt, distances in by_prompt.items()}
