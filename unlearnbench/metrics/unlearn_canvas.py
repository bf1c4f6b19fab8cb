"""UnlearnCanvas' three accuracies by attribute: the concept's own kind of attribute, and all others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from unlearnbench.metrics.base import EvaluationSetting, Metric, MetricInputs
from unlearnbench.metrics.detectors import Attribute, concept_detector
from unlearnbench.metrics.forget_accuracy import ForgetAccuracy
from unlearnbench.metrics.retain_accuracy import correct_attributes, pictoworld_problem
from unlearnbench.results.intervals import Interval
from unlearnbench.results.run import Value


@dataclass
class UnlearnCanvas(Metric):
    """UA, IRA and CRA of UnlearnCanvas (Zhang et al. 2024, arXiv 2402.11846), on Pictoworld's attributes.

    ua: the share of images of forget prompts that are not classified as the concept. ira: over the other images, the share
    whose attribute of the concept's kind (the subject for a church, the style for van Gogh) is classified as the prompt
    says. cra: the same share for the other attributes. In the paper the kinds are style and object, each image has both,
    and all classes have equally many images, so that the mean over classes is the mean over images, as it is here. An
    image whose prompt names no attribute of a kind does not count for that kind.
    """

    least_retain_images: ClassVar[int] = 1

    def unavailable_reason(self, setting: EvaluationSetting) -> str | None:
        """See `Metric.unavailable_reason`."""
        return pictoworld_problem(setting, "unlearn_canvas")

    def measure(self, inputs: MetricInputs) -> list[Value]:
        """ua on forget prompts, ira and cra on retain prompts."""
        kinds = _concept_kinds(inputs.setting)
        [(split, parts), *_] = inputs.splits()
        correct = [correct_attributes(images, inputs.device) for images in inputs.both(*parts)]
        prompts = [record.prompt for record in inputs.unlearned_images.where(*parts)]
        values = [self._ua(inputs)]
        selections: dict[str, Callable[[str], bool]] = {"ira": lambda name: name in kinds, "cra": lambda name: name not in kinds}
        for metric, counts in selections.items():
            flags = [[[right for name, right in image.items() if counts(name)] for image in images] for images in correct]
            rows = [i for i, image in enumerate(flags[1]) if image]
            if rows:
                original, unlearned = (np.array([np.mean(images[i]) for i in rows]) for images in flags)
                note = ", ".join(sorted(kinds)) if metric == "ira" else ""
                sides = original, unlearned
                values.append(self.share(metric, split, [prompts[i] for i in rows], sides, backbone="classifier", note=note))
        return values

    def _ua(self, inputs: MetricInputs) -> Value:
        """1 - forget_accuracy on the forget prompts."""
        forget = next(value for value in ForgetAccuracy().measure(inputs) if value.split == "forget")
        assert forget.original is not None
        return self.value(
            "ua",
            "forget",
            1 - forget.unlearned,
            n=forget.n,
            backbone=forget.backbone,
            original=1 - forget.original,
            interval=Interval(forget.low, forget.high, forget.interval).complement(),
            table="Forgetting",
        )


def _concept_kinds(setting: EvaluationSetting) -> set[str]:
    """The attributes of which the concepts are values."""
    detectors = [concept_detector(concept, setting.domain) for concept in setting.concept.concepts_by_split("forget").values()]
    return {detector.attribute for detector in detectors if isinstance(detector, Attribute)}
