"""Forgetting: the fraction of images in which a detector still finds the concept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from unlearnbench.data.images import Images
from unlearnbench.data.prompts import FORGET_SPLITS
from unlearnbench.metrics.base import EvaluationSetting, Metric, MetricInputs
from unlearnbench.metrics.detectors import concept_detector
from unlearnbench.metrics.readers import Question
from unlearnbench.results.run import Value
from unlearnbench.storage.downloads import Download


class _Detections(NamedTuple):
    """The images of a split in which a detector finds the concept, as 0 or 1, (n,) each, and the groups of the bootstrap."""

    split: str
    detector: str
    groups: np.ndarray
    original: np.ndarray
    unlearned: np.ndarray


@dataclass
class ForgetAccuracy(Metric):
    """The fraction of images in which the concept's detector still finds it; 1 - it is UnlearnCanvas' UA.

    Measured on forget prompts and, apart from them, on paraphrases and on descriptions that never name the concept
    ("implicit"), both of which never train. The concept names the detector for
    the model's domain. If several concepts are forgotten, each has its rows ("forget: church"), and "forget" stands for
    the images of all, each judged by the detector of its own concept.
    """

    table: ClassVar[str] = "Forgetting"
    better: ClassVar[str] = "lower"
    each_stage: ClassVar[bool] = True

    def unavailable_reason(self, setting: EvaluationSetting) -> str | None:
        """See `Metric.unavailable_reason`."""
        return unavailable_detector(setting)

    def downloads(self, setting: EvaluationSetting) -> list[Download]:
        """See `Metric.downloads`."""
        return detector_downloads(setting)

    def questions(self, inputs: MetricInputs) -> Iterable[Question]:
        """See `Metric.questions`."""
        for base in FORGET_SPLITS:
            for split, concept in inputs.setting.concept.concepts_by_split(base).items():
                reader = concept_detector(concept, inputs.setting.domain).reader()
                yield from (Question(reader, (images,)) for images in inputs.both(split))

    def measure(self, inputs: MetricInputs) -> list[Value]:
        """forget_accuracy on forget prompts, on paraphrases and on descriptions."""
        return [value for base in FORGET_SPLITS for value in self._on(base, inputs)]

    def _on(self, base: str, inputs: MetricInputs) -> list[Value]:
        rows = []
        for split, concept in inputs.setting.concept.concepts_by_split(base).items():
            sides = inputs.both(split)
            if len(sides[0]):
                detector = concept_detector(concept, inputs.setting.domain)
                answers = [inputs.answers(detector.reader(), images) for images in sides]
                original, unlearned = (detector.decide(of_side).astype(float) for of_side in answers)
                groups = np.array([f"{split} {record.prompt}" for record in sides[1]])
                rows.append(_Detections(split, detector.title(), groups, original, unlearned))
        if len(rows) > 1:
            columns = zip(*((row.groups, row.original, row.unlearned) for row in rows), strict=True)
            rows.insert(0, _Detections(base, "the detector of each", *(np.concatenate(column) for column in columns)))
        return [
            self.share("forget_accuracy", row.split, row.groups.tolist(), (row.original, row.unlearned), backbone=row.detector)
            for row in rows
        ]


def unavailable_detector(setting: EvaluationSetting) -> str | None:
    """What is missing for the detector of a forgotten concept; None if nothing is."""
    concepts = setting.concept.concepts_by_split("forget").values()
    reasons = [concept_detector(concept, setting.domain).unavailable_reason() for concept in concepts]
    return next(filter(None, reasons), None)


def detector_downloads(setting: EvaluationSetting) -> list[Download]:
    """What the detectors of the forgotten concepts still have to download."""
    concepts = setting.concept.concepts_by_split("forget").values()
    return [download for concept in concepts for download in concept_detector(concept, setting.domain).downloads()]


def shows_concept(images: Images, inputs: MetricInputs) -> np.ndarray:
    """Whether an image shows a forgotten concept, by the detector of each, (n,) bool."""
    shown = np.zeros(len(images), bool)
    for concept in inputs.setting.concept.concepts_by_split("forget").values():
        detector = concept_detector(concept, inputs.setting.domain)
        shown |= detector.decide(inputs.answers(detector.reader(), images)).astype(bool)
    return shown


def detector_questions(images: Images, inputs: MetricInputs) -> list[Question]:
    """What `shows_concept` asks."""
    concepts = inputs.setting.concept.concepts_by_split("forget").values()
    return [Question(concept_detector(concept, inputs.setting.domain).reader(), (images,)) for concept in concepts]
