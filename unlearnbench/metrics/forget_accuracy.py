"""Forgetting: how often a detector still finds the concept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from unlearnbench.config import UserError, build, suggest
from unlearnbench.data import Concept
from unlearnbench.intervals import share_interval
from unlearnbench.metrics.base import Evidence, Metric
from unlearnbench.metrics.detectors import Detector
from unlearnbench.results import Value

if TYPE_CHECKING:
    from unlearnbench.spec import Spec


@dataclass
class ForgetAccuracy(Metric):
    """The share of images of forget prompts in which the concept's detector finds it; 1 - it is UnlearnCanvas' UA.

    The detector is the one that the concept names for the model's domain. Paraphrases, which never train, are apart.
    Where several concepts are forgotten, each has its rows ("forget: church"), and "forget" stands for all their images,
    each judged by its own concept's detector.
    """

    each_stage: ClassVar[bool] = True

    def missing(self, spec: Spec) -> str | None:
        """See `Metric.missing`."""
        lacks = [detector(concept, spec.model.domain).missing() for concept in spec.concept.by_split("forget").values()]
        return next(filter(None, lacks), None)

    def measure(self, evidence: Evidence) -> list[Value]:
        """forget_accuracy on forget prompts and on paraphrases."""
        return [value for base in ("forget", "paraphrase") for value in self._on(base, evidence)]

    def _on(self, base: str, evidence: Evidence) -> list[Value]:
        found: list[tuple[Any, ...]] = []
        for split, concept in evidence.spec.concept.by_split(base).items():
            before, after = (images.where(split) for images in (evidence.before, evidence.after))
            if len(before):
                judge = detector(concept, evidence.spec.model.domain)
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


def detector(concept: Concept, domain: str) -> Detector:
    """The concept's detector for the model's domain.

    Raises:
        UserError: it has none.
    """
    if domain not in concept.detector:
        raise UserError(f"concept.detector: {concept.name} has none for domain {domain}; {suggest(domain, concept.detector)}")
    return build(concept.detector[domain], Detector, f"concept.detector.{domain}")
