"""Depth: how much of the concept is gone when something other than its prompt leads the model there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unlearnbench.config.errors import UserError
from unlearnbench.config.ranges import at_least
from unlearnbench.metrics.base import EvaluationSetting, Metric, MetricInputs
from unlearnbench.metrics.forget_accuracy import detector_downloads, unavailable_detector
from unlearnbench.results.depth import POOLED, ProbeRow, depth_rows
from unlearnbench.results.run import Value
from unlearnbench.storage.downloads import Download


@dataclass
class Depth(Metric):
    """depth = sum of (original - unlearned) / sum of (original - oracle), over the probes of images (`results.depth`).

    The shares of images in which the concept's detector finds it, under the probes `completion`, `sdedit`, `inpaint` and, for
    itself, `text_states`. 0 is as the original, 1 as the model retrained without the concept; without an oracle it counts from
    0. Intervals: bootstrap over prompts.

    Attributes:
        oracle: the folder of a run of algo=oracle with the same concept, prompts and sampling; null takes the one that
            the world includes for the concept, and otherwise none.
        prompts: the largest number of forget prompts; null takes all.
        per_prompt: images of each prompt and probe.
    """

    oracle: str | None = None
    prompts: int | None = None
    per_prompt: int = 2
    table: ClassVar[str] = "Depth"
    probes_model: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least(self, 1, "per_prompt")
        if self.prompts is not None:
            at_least(self, 1, "prompts")

    def unavailable_reason(self, setting: EvaluationSetting) -> str | None:
        """See `Metric.unavailable_reason`."""
        return unavailable_detector(setting)

    def downloads(self, setting: EvaluationSetting) -> list[Download]:
        """See `Metric.downloads`."""
        return detector_downloads(setting)

    def measure(self, inputs: MetricInputs) -> list[Value]:
        """depth of the pooled probes and of each, and the share that shows the concept under each."""
        if inputs.probe is None:
            raise UserError("metrics.depth: these images come without the weights of their model, and depth probes it")
        settings = [f"attack.prompts={'null' if self.prompts is None else self.prompts}", f"attack.per_prompt={self.per_prompt}"]
        try:
            rows = depth_rows(*inputs.probe(self.oracle, settings))
        except ValueError as error:
            raise UserError(f"metrics.depth.oracle: {error}; run the oracle with the same prompts and sample.seed") from error
        depths = [self._depth(row) for row in reversed(rows) if row.depth is not None]
        return [*depths, *(self._share(row) for row in rows if row.probe != POOLED)]

    def _depth(self, row: ProbeRow) -> Value:
        note = "without an oracle, so it counts from 0" if row.oracle is None else ""
        return self.value(
            "depth", row.title, row.depth or 0.0, n=row.n, backbone="the concept's detector", interval=row.interval, note=note
        )

    def _share(self, row: ProbeRow) -> Value:
        oracle = {} if row.oracle is None else {"oracle": row.oracle}
        return self.value(
            "probe_accuracy", row.title, row.unlearned, n=row.n, backbone="the concept's detector", original=row.original,
            better="lower", extras=oracle, interval=row.share_interval, bounds=(0.0, 1.0),
        )  # fmt: skip
