"""Integrity: does the unlearned model still generate the same image for the same prompt and seed?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations, compress
from typing import ClassVar, NamedTuple

import numpy as np
from torch import Tensor

from unlearnbench.config.errors import UserError
from unlearnbench.data.images import Images
from unlearnbench.metrics.base import EvaluationSetting, Metric, MetricInputs
from unlearnbench.metrics.forget_accuracy import detector_downloads, detector_questions, shows_concept, unavailable_detector
from unlearnbench.metrics.image_distances import Distances, distance_downloads, too_small_for, unavailable_distance
from unlearnbench.metrics.readers import Question
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
        reasons = [unavailable_distance(name) or too_small_for(name, setting.size) for name in self.distances]
        return next(filter(None, reasons), detector)

    def downloads(self, setting: EvaluationSetting) -> list[Download]:
        """See `Metric.downloads`."""
        downloads = [download for name in self.distances for download in distance_downloads(name)]
        return downloads + (detector_downloads(setting) if self.where_shown else [])

    def questions(self, inputs: MetricInputs) -> Iterable[Question]:
        """See `Metric.questions`: each image of both models, and the original's images of one prompt by pairs."""
        original, unlearned = inputs.both(*inputs.splits()[0][1])
        check_pairs(original, unlearned)
        for name in self.distances:
            yield Question(Distances(name), (original, unlearned))
            if (pairs := reseed_pairs(original)) is not None:
                yield Question(Distances(name), (pairs.left, pairs.right))
        if self.where_shown:
            yield from detector_questions(original, inputs)

    def measure(self, inputs: MetricInputs) -> list[Value]:
        """integrity and integrity_norm on all retain prompts and on each split."""
        return [value for name in self.distances for value in self._by_distance(name, inputs)]

    def _by_distance(self, name: str, inputs: MetricInputs) -> Iterator[Value]:
        for split, parts in inputs.splits():
            original, unlearned = inputs.both(*parts)
            check_pairs(original, unlearned)
            distances = inputs.answers(Distances(name), original, unlearned).numpy()
            if split == "retain":
                of_images = zip(unlearned, distances, strict=True)
                inputs.per_image[name] = {record.file: float(distance) for record, distance in of_images}
            prompts = [record.prompt for record in original]
            interval = prompt_interval(prompts, distances).complement()
            yield self.value("integrity", split, 1 - distances.mean(), n=len(distances), backbone=name, interval=interval)
            pairs = reseed_pairs(original)
            if pairs is None:
                continue
            reseed = pairs.means(inputs.answers(Distances(name), pairs.left, pairs.right))
            scale = np.array([reseed[prompt] for prompt in prompts])
            if scale.mean() > 0:
                yield normalized(self, ("integrity_norm", split, name), prompts, distances, scale)
            if split == "retain" and self.where_shown:
                shown = shows_concept(original, inputs)
                for part, rows in (("retain that shows it", shown), ("retain without it", ~shown)):
                    if rows.any() and scale[rows].mean() > 0:
                        of_part = list(compress(prompts, rows)), distances[rows], scale[rows]
                        yield normalized(self, ("integrity_norm", part, name), *of_part)


def normalized(
    metric: Metric, value: tuple[str, str, str], prompts: list[str], distances: np.ndarray, scale: np.ndarray
) -> Value:
    """1 - D / D_reseed of images, with the distance between two seeds of each one's prompt.

    Args:
        metric: whose table the value belongs to.
        value: its name, its split and the network of the distance.
        prompts: that of each image.
        distances: of each image from the original's.
        scale: of each image, the distance of its prompt's seeds.
    """
    name, split, network = value
    return metric.value(
        name,
        split,
        1 - distances.mean() / scale.mean(),
        n=len(distances),
        backbone=network,
        interval=prompt_interval(prompts, distances, scale, of=lambda d, r: 1 - d / r),
        extras={"D_reseed": float(scale.mean())},
    )


def check_pairs(original: Images, unlearned: Images) -> None:
    """Check that both models have images of the same prompts and seeds in the same order."""
    if [(record.prompt, record.seed) for record in original] != [(record.prompt, record.seed) for record in unlearned]:
        raise UserError(f"{original.folder} and {unlearned.folder} do not hold the same prompts and seeds")


class ReseedPairs(NamedTuple):
    """Pairs of the original's images of one prompt and two seeds, side by side."""

    left: Images
    right: Images

    def means(self, distances: Tensor) -> dict[str, float]:
        """The mean distance for each prompt, from that of each pair, (n,)."""
        by_prompt: dict[str, list[float]] = defaultdict(list)
        for record, distance in zip(self.left, distances.tolist(), strict=True):
            by_prompt[record.prompt].append(distance)
        return {prompt: float(np.mean(of_prompt)) for prompt, of_prompt in by_prompt.items()}


def reseed_pairs(original: Images) -> ReseedPairs | None:
    """The pairs of all prompts; None if a prompt has one seed only."""
    rows_by_prompt: dict[str, list[int]] = defaultdict(list)
    for row, record in enumerate(original):
        rows_by_prompt[record.prompt].append(row)
    if any(len(rows) < 2 for rows in rows_by_prompt.values()):
        return None
    pairs = [pair for rows in rows_by_prompt.values() for pair in combinations(rows, 2)]
    left, right = (Images(original.folder, [original[pair[side]] for pair in pairs]) for side in (0, 1))
    return ReseedPairs(left, right)
