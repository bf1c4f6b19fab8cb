"""Retention of abilities: do the pictures still show what retain prompts ask for?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unlearnbench.data.images import Images
from unlearnbench.metrics.backbones import backbone, clip_problem
from unlearnbench.metrics.base import Metric, MetricInputs
from unlearnbench.metrics.detectors import classify, zero_shot
from unlearnbench.pictoworld.captions import parse
from unlearnbench.results.intervals import share_interval
from unlearnbench.results.run import Value

if TYPE_CHECKING:
    from unlearnbench.experiment.run_spec import RunSpec


@dataclass
class RetainAccuracy(Metric):
    """The share of retain images that show what their prompt asks for.

    On Pictoworld: every attribute that the prompt names is read so by the classifier (subject alone where
    `subject_only`). On photographs: CLIP zero-shot picks the prompt's label out of all labels of the retain set.
    UnlearnCanvas' accuracies by attribute are `unlearn_canvas`.

    Attributes:
        subject_only: count the subject alone.
        backbone: the CLIP for photographs.
    """

    subject_only: bool = False
    backbone: str = "clip"

    def unavailable_reason(self, spec: RunSpec) -> str | None:
        """See `Metric.unavailable_reason`."""
        if spec.model.domain == "pictoworld":
            return backbone("classifier", "pictoworld").unavailable_reason()
        return clip_problem(self.backbone, spec.model.domain)

    def measure(self, evidence: MetricInputs) -> list[Value]:
        """retain_accuracy on all retain prompts and on each split; images without a label do not count."""
        values, sides, splits = [], [], evidence.splits()
        for images in (evidence.before, evidence.after):
            retained = images.where(*splits[0][1])
            found = dict(zip((shot.file for shot in retained), self.right(retained, evidence), strict=True))
            sides.append((images, found))
        for split, parts in splits:
            before, after = (np.array([found[shot.file] for shot in images.where(*parts)]) for images, found in sides)
            asked = ~np.isnan(after)
            if asked.any():
                prompts = np.array([s.prompt for s in evidence.after.where(*parts)])[asked]
                out = int((~asked).sum())
                low, high = share_interval(prompts.tolist(), after[asked])
                judge = "classifier" if evidence.spec.model.domain == "pictoworld" else self.backbone
                note = f"{out} without label left out" if out else ""
                mean = float(before[asked].mean()), float(after[asked].mean())
                values.append(
                    Value("Retention", "retain_accuracy", split, *mean, "higher", int(asked.sum()), low, high, judge, note)
                )
        return values

    def right(self, images: Images, evidence: MetricInputs) -> np.ndarray:
        """1 or 0 for each image, nan where nothing is asked."""
        if evidence.spec.model.domain == "pictoworld":
            told = [
                [right for name, right in found.items() if name == "subject" or not self.subject_only]
                for found in attribute_right(images, evidence)
            ]
            return np.array([float(all(found)) if found else np.nan for found in told])
        labels = sorted({s.label for s in images if s.label})
        if not labels:
            return np.full(len(images), np.nan)
        chosen = [label for batch in images.batches() for label in zero_shot(batch, labels, self.backbone, evidence.device)]
        return np.array([float(c == s.label) if s.label else np.nan for c, s in zip(chosen, images, strict=True)])


def attribute_right(images: Images, evidence: MetricInputs) -> list[dict[str, bool]]:
    """For each image, whether each attribute that its prompt names is read so by Pictoworld's classifier."""
    read = [seen for batch in images.batches(128) for seen in classify(batch, evidence.device)]
    return [
        {name: seen[name] == value for name, value in parse(shot.prompt).items()} for shot, seen in zip(images, read, strict=True)
    ]


def pictoworld_problem(spec: RunSpec, name: str) -> str | None:
    """What a metric lacks that reads Pictoworld's attributes."""
    if spec.model.domain != "pictoworld":
        return (
            f"{name} reads Pictoworld's attributes, and model.domain is {spec.model.domain}; leave it out with '~metrics.{name}'"
        )
    return backbone("classifier", "pictoworld").unavailable_reason()
