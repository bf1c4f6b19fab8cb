"""UnlearnCanvas' three accuracies, by attribute: the concept's own kind, and all others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unlearnbench.metrics.base import Metric, MetricInputs
from unlearnbench.metrics.detectors import Attribute, concept_detector
from unlearnbench.metrics.forget_accuracy import ForgetAccuracy
from unlearnbench.metrics.retain_accuracy import attribute_right, pictoworld_problem
from unlearnbench.results.intervals import share_interval
from unlearnbench.results.run import Value

if TYPE_CHECKING:
    from unlearnbench.experiment.run_spec import RunSpec


@dataclass
class UnlearnCanvas(Metric):
    """UA, IRA and CRA of UnlearnCanvas (Zhang et al. 2024, arXiv 2402.11846), on Pictoworld's attributes.

    ua: the share of images of forget prompts that are not classified as the concept. ira: of the other images, the share
    whose attribute of the concept's kind (the subject for a church, the style for van Gogh) is classified as the prompt
    says. cra: the share of the other attributes that are classified so. There the kinds are style and object, each image
    has both, and all classes have as many images, so that the mean over classes is the mean over images, as it is here; an
    image that names no attribute of a kind does not count in it.
    """

    def unavailable_reason(self, spec: RunSpec) -> str | None:
        """See `Metric.unavailable_reason`."""
        return pictoworld_problem(spec, "unlearn_canvas")

    def measure(self, evidence: MetricInputs) -> list[Value]:
        """ua on forget prompts, ira and cra on retain prompts."""
        kinds = self._kinds(evidence.spec)
        forget = next(value for value in ForgetAccuracy().measure(evidence) if value.split == "forget")
        assert forget.original is not None
        assert forget.low is not None
        assert forget.high is not None
        shares = 1 - forget.original, 1 - forget.unlearned
        ends = 1 - forget.high, 1 - forget.low
        values = [Value("Forgetting", "ua", "forget", *shares, "higher", forget.n, *ends, forget.backbone)]
        [(split, parts), *_] = evidence.splits()
        sides = [attribute_right(images.where(*parts), evidence) for images in (evidence.before, evidence.after)]
        prompts = [shot.prompt for shot in evidence.after.where(*parts)]
        choices: dict[str, Callable[[str], bool]] = {"ira": lambda name: name in kinds, "cra": lambda name: name not in kinds}
        for metric, counts in choices.items():
            told = [[[right for name, right in side.items() if counts(name)] for side in rows] for rows in sides]
            asked = [i for i, right in enumerate(told[1]) if right]
            if asked:
                before, after = (np.array([np.mean(rows[i]) for i in asked]) for rows in told)
                ends = share_interval([prompts[i] for i in asked], after)
                means = float(before.mean()), float(after.mean())
                note = f"{metric}: {', '.join(sorted(kinds))}" if metric == "ira" else ""
                values.append(Value("Retention", metric, split, *means, "higher", len(asked), *ends, "classifier", note))
        return values

    @staticmethod
    def _kinds(spec: RunSpec) -> set[str]:
        """The attributes of which the concepts are values."""
        judges = [concept_detector(concept, spec.model.domain) for concept in spec.concept.by_split("forget").values()]
        return {judge.attribute for judge in judges if isinstance(judge, Attribute)}
