"""Compositional damage: do the attributes that a prompt names still come together in one picture?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from unlearnbench.metrics.base import Metric, MetricInputs
from unlearnbench.metrics.retain_accuracy import attribute_right, pictoworld_problem
from unlearnbench.pictoworld.render import ATTRIBUTES
from unlearnbench.results.intervals import share_interval
from unlearnbench.results.run import Value

if TYPE_CHECKING:
    from unlearnbench.experiment.run_spec import RunSpec


@dataclass
class Binding(Metric):
    """The share of retain images in which all attributes are right that the prompt names, of prompts that name two at least.

    And for each pair of attributes the share in which both are right, of prompts that name both. Pictoworld only, where
    prompts say every attribute in words of its own and the classifier reads each from the picture: exact, but for the
    classifier's errors (docs/world-quality.md).

    Attributes:
        attributes: which of subject, color, background, size, position and style count.
    """

    attributes: list[str] = field(default_factory=lambda: ["subject", "color", "style", "position", "background"])

    def __post_init__(self) -> None:
        for name in self.attributes:
            if name not in ATTRIBUTES:
                raise ValueError(f"attributes: {name!r} is none of {', '.join(ATTRIBUTES)}")
        if len(set(self.attributes)) < 2:
            raise ValueError("attributes: name two at least")

    def unavailable_reason(self, spec: RunSpec) -> str | None:
        """See `Metric.unavailable_reason`."""
        return pictoworld_problem(spec, "binding")

    def measure(self, evidence: MetricInputs) -> list[Value]:
        """binding on all retain prompts and on each split, and binding_<a>_<b> on all retain prompts."""
        values = []
        for split, parts in evidence.splits():
            sides = [attribute_right(images.where(*parts), evidence) for images in (evidence.before, evidence.after)]
            prompts = [shot.prompt for shot in evidence.after.where(*parts)]
            values += self._value("binding", split, prompts, sides, self.attributes)
            if split == "retain":
                for pair in combinations(self.attributes, 2):
                    values += self._value(f"binding_{'_'.join(pair)}", split, prompts, sides, pair)
        return values

    def _value(
        self, name: str, split: str, prompts: list[str], sides: list[list[dict[str, bool]]], among: Sequence[str]
    ) -> list[Value]:
        told = [[[right[a] for a in among if a in right] for right in side] for side in sides]
        asked = [i for i, right in enumerate(told[1]) if len(right) >= 2]
        if not asked:
            return []
        before, after = (np.array([all(side[i]) for i in asked], dtype=float) for side in told)
        ends = share_interval([prompts[i] for i in asked], after)
        means = float(before.mean()), float(after.mean())
        return [Value("Retention", name, split, *means, "higher", len(asked), *ends, "classifier")]
