"""Pinpointness: are the things whose names are nearest to the concept's still painted?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unlearnbench.config.ranges import at_least
from unlearnbench.data.images import ImageRecord
from unlearnbench.metrics.backbones import CLIP, clip_problem
from unlearnbench.metrics.base import Metric, MetricInputs
from unlearnbench.metrics.retain_accuracy import RetainAccuracy
from unlearnbench.pictoworld.captions import parse
from unlearnbench.results.intervals import share_interval
from unlearnbench.results.run import Value

if TYPE_CHECKING:
    from unlearnbench.experiment.run_spec import RunSpec


@dataclass
class Pinpointness(Metric):
    """The share of images that show what they should, over the labels nearest to the concept by CLIP's text encoder.

    HUB's pinpoint-ness (Moon et al. 2025, arXiv 2410.05664): there the 100 nearest of WordNet's nouns to "a photo of
    <concept>", ten images of "a photo of <noun>" each, judged by a vision-language model. Here the labels of the retain
    prompts (Pictoworld: their subjects), all their images, and the judge of `retain_accuracy`.

    Attributes:
        nearest: how many labels count.
        backbone: whose text encoder measures nearness, and on photographs the judge: auto-clip or clip:<path>.
    """

    nearest: int = 3
    backbone: str = "auto-clip"

    def __post_init__(self) -> None:
        at_least(self, 1, "nearest")

    def unavailable_reason(self, spec: RunSpec) -> str | None:
        """See `Metric.unavailable_reason`."""
        return clip_problem(self.backbone, spec.model.domain) or self._accuracy().unavailable_reason(spec)

    def measure(self, evidence: MetricInputs) -> list[Value]:
        """pinpointness on the retain prompts of the nearest labels."""
        domain = evidence.spec.model.domain
        [(split, parts), *_] = evidence.splits()
        shots = evidence.after.where(*parts)
        near = self._near(evidence, {label for shot in shots if (label := _label(shot, domain))})
        accuracy = self._accuracy()
        sides = [accuracy.right(images.where(*parts), evidence) for images in (evidence.before, evidence.after)]
        asked = np.array([_label(shot, domain) in near for shot in shots]) & ~np.isnan(sides[1])
        if not asked.any():
            return []
        ends = share_interval([shot.prompt for shot, counts in zip(shots, asked, strict=True) if counts], sides[1][asked])
        means = float(sides[0][asked].mean()), float(sides[1][asked].mean())
        judge = "classifier" if domain == "pictoworld" else accuracy.backbone
        note = f"nearest by {evidence.backbone(self.backbone).name}: {', '.join(near)}"
        return [Value("Retention", "pinpointness", split, *means, "higher", int(asked.sum()), *ends, judge, note)]

    def _near(self, evidence: MetricInputs, labels: set[str]) -> list[str]:
        """The labels nearest to any of the concepts, the nearest first."""
        network = evidence.backbone(self.backbone)
        assert isinstance(network, CLIP)
        network.load(evidence.device)
        concepts = evidence.spec.concept.by_split("forget").values()
        others = sorted(label for label in labels if not evidence.spec.concept.names(label))
        texts = [network.text([f"a photo of {name}" for name in names]) for names in (others, [c.guide for c in concepts])]
        return [others[i] for i in (texts[0] @ texts[1].T).amax(1).argsort(descending=True)[: self.nearest].tolist()]

    def _accuracy(self) -> RetainAccuracy:
        return RetainAccuracy(subject_only=True, backbone="clip" if self.backbone == "auto-clip" else self.backbone)


def _label(shot: ImageRecord, domain: str) -> str:
    return parse(shot.prompt).get("subject", "") if domain == "pictoworld" else shot.label
