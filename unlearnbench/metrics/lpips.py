"""LPIPS between both models' images of the same prompt and seed, as ESD, UCE and their successors report it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from unlearnbench.data.prompts import RETAIN_SPLITS
from unlearnbench.metrics.base import EvaluationSetting, Metric, MetricInputs
from unlearnbench.metrics.image_distances import distance_downloads, pair_distances, too_small_for, unavailable_distance
from unlearnbench.results.intervals import prompt_interval
from unlearnbench.results.run import Value
from unlearnbench.storage.downloads import Download


@dataclass
class PairDistance(Metric):
    """The mean distance of the unlearned model's image to the original's, same prompt and seed.

    On forget prompts (LPIPS_e, higher is more changed) and on retain prompts (LPIPS_u, lower is better).

    Attributes:
        distance: as in `integrity`; lpips-alex@64 is ESD's.
    """

    distance: str = "lpips-alex@64"
    table: ClassVar[str] = "Retention"

    def unavailable_reason(self, setting: EvaluationSetting) -> str | None:
        """See `Metric.unavailable_reason`."""
        return unavailable_distance(self.distance) or too_small_for(self.distance, setting.size)

    def downloads(self, setting: EvaluationSetting) -> list[Download]:
        """See `Metric.downloads`."""
        return distance_downloads(self.distance)

    def measure(self, inputs: MetricInputs) -> list[Value]:
        """lpips on forget and on retain prompts."""
        values = []
        for split, parts, better in (("forget", ("forget",), "higher"), ("retain", RETAIN_SPLITS, "lower")):
            original, unlearned = inputs.both(*parts)
            if not len(original):
                continue
            pairs = zip(original.batches(), unlearned.batches(), strict=True)
            distances = np.concatenate([pair_distances(self.distance, a, b, inputs.device).numpy() for a, b in pairs])
            interval = prompt_interval([record.prompt for record in original], distances)
            value = self.value(
                "lpips", split, float(distances.mean()), n=len(distances), backbone=self.distance, interval=interval,
                bounds=(0.0, None),
            )  # fmt: skip
            values.append(replace(value, better=better))
        return values
