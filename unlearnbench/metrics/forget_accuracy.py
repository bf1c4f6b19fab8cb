"""Forgetting: how often a detector still finds the concept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from unlearnbench.config import UserError, build, suggest
from unlearnbench.metrics.base import Evidence, Metric, interval
from unlearnbench.metrics.detectors import Detector
from unlearnbench.results import Value

if TYPE_CHECKING:
    from unlearnbench.spec import Spec


@dataclass
class ForgetAccuracy(Metric):
    """The share of images of forget prompts in which the concept's detector finds it; 1 - it is UnlearnCanvas' UA.

    The detector is the one that the concept names for the model's domain. Paraphrases, which never train, are apart.
    """

    def missing(self, spec: Spec) -> str | None:
        """See `Metric.missing`."""
        return detector(spec).missing()

    def measure(self, evidence: Evidence) -> list[Value]:
        """forget_accuracy on forget prompts and on paraphrases."""
        judge = detector(evidence.spec)
        values = []
        for split in ("forget", "paraphrase"):
            before, after = evidence.before.where(split), evidence.after.where(split)
            if len(before):
                seen = [judge.found(images.pixels(), evidence.device).astype(float) for images in (before, after)]
                low, high = interval([s.prompt for s in after], seen[1])
                values.append(
                    Value(
                        "Forgetting",
                        "forget_accuracy",
                        split,
                        seen[0].mean(),
                        seen[1].mean(),
                        "lower",
                        len(after),
                        low,
                        high,
                        judge.title(),
                    )
                )
        return values


def detector(spec: Spec) -> Detector:
    """The concept's detector for the model's domain.

    Raises:
        UserError: it has none.
    """
    concept, domain = spec.concept, spec.model.domain
    if domain not in concept.detector:
        raise UserError(f"concept.detector: {concept.name} has none for domain {domain}; {suggest(domain, concept.detector)}")
    return build(concept.detector[domain], Detector, f"concept.detector.{domain}")
