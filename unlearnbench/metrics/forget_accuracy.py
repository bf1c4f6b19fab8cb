"""Forgetting: how often a detector still finds the concept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from unlearnbench.metrics.base import Metric, MetricInputs
from unlearnbench.metrics.detectors import concept_detector
from unlearnbench.results.intervals import share_interval
from unlearnbench.results.run import Value

if TYPE_CHECKING:
    from unlearnbench.experiment.run_spec import RunSpec


@dataclass
class ForgetAccuracy(Metric):
    """The share of images of forget prompts in which the concept's detector finds it; 1 - it is UnlearnCanvas' UA.

    The detector is the one that the concept names for the model's domain. Paraphrases, which never train, are apart.
    Where several concepts are forgotten, each has its rows ("forget: church"), and "forget" stands for all their images,
    each judged by its own concept's detector.
    """

    each_stage: ClassVar[bool] = True

    def unavailable_reason(self, spec: RunSpec) -> str | None:
        """See `Metric.unavailable_reason`."""
        lacks = [
            concept_detector(concept, spec.model.domain).unavailable_reason()
            for concept in spec.concept.by_split("forget").values()
        ]
        return next(filter(None, lacks), None)

    def measure(self, evidence: MetricInputs) -> list[Value]:
        """forget_accuracy on forget prompts and on paraphrases."""
        return [value for base in ("forget", "paraphrase") for value in self._on(base, evidence)]

    def _on(self, base: str, evidence: MetricInputs) -> list[Value]:
        found: list[tuple[Any, ...]] = []
        for split, concept in evidence.spec.concept.by_split(base).items():
            before, after = (images.where(split) for images in (evidence.before, evidence.after))
            if len(before):
                judge = concept_detector(concept, evidence.spec.model.domain)
                seen = [
                    np.concatenate([judge.found(batch, evidence.device) for batch in images.batches(128)]).astype(float)
                    for images in (before, after)
                ]
                found.append((split, judge.title(), np.array([f"{split} {shot.prompt}" for shot in after]), *seen))
        if len(found) > 1:
            columns = [np.concatenate(column) for column in list(zip(*found, strict=True))[2:]]
            found.insert(0, (base, "the detector of each", *columns))
        values = []
        for split, title, prompts, original, unlearned in found:
            ends = share_interval(prompts.tolist(), unlearned)
            means = original.mean(), unlearned.mean()
            values.append(Value("Forgetting", "forget_accuracy", split, *means, "lower", len(unlearned), *ends, title))
        return values
