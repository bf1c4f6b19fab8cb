"""Pinpointness: does the model still generate the things whose names are nearest to the concept's?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from unlearnbench.config.ranges import at_least
from unlearnbench.data.prompts import RETAIN_SPLITS, Prompt
from unlearnbench.metrics.backbones import CLIP, backbone, clip_problem
from unlearnbench.metrics.base import EvaluationSetting, Metric, MetricInputs
from unlearnbench.metrics.readers import Question
from unlearnbench.metrics.retain_accuracy import RetainAccuracy
from unlearnbench.results.run import Value
from unlearnbench.storage.downloads import Download
from unlearnbench.worlds import embedded_world


@dataclass
class Pinpointness(Metric):
    """The share of images that match their prompt, over the labels nearest to the concept by CLIP's text encoder.

    HUB's pinpoint-ness (Moon et al. 2025, arXiv 2410.05664): there the 100 nearest of WordNet's nouns to "a photo of
    <concept>", ten images of "a photo of <noun>" each, judged by a vision-language model. Here the labels of the retain
    prompts (embedded worlds: their first subjects), all their images, judged as in `retain_accuracy`.

    Attributes:
        nearest: how many labels count.
        backbone: the CLIP whose text encoder ranks the labels and which, on photographs, judges the images: auto-clip or
            clip:<path>.
    """

    nearest: int = 3
    backbone: str = "auto-clip"

    def __post_init__(self) -> None:
        at_least(self, 1, "nearest")

    def unavailable_reason(self, setting: EvaluationSetting) -> str | None:
        """See `Metric.unavailable_reason`."""
        return clip_problem(self.backbone, setting.domain) or self._accuracy().unavailable_reason(setting)

    def downloads(self, setting: EvaluationSetting) -> list[Download]:
        """See `Metric.downloads`."""
        return backbone(self.backbone, setting.domain).downloads()

    def sample_problem(self, setting: EvaluationSetting, images: Sequence[Prompt]) -> str | None:
        """See `Metric.sample_problem`; some retain prompt must have another label than the concept's."""
        if problem := self._accuracy().sample_problem(setting, images):
            return problem
        retained = [prompt for prompt in images if prompt.base in RETAIN_SPLITS]
        if _other_labels({_label(prompt.label, prompt.text, setting.domain) for prompt in retained}, setting):
            return None
        column = "" if embedded_world(setting.domain) else "a column label, "
        return f"no retain prompt has a label other than the concept's: choose retain prompts with {column}such as tree"

    def questions(self, inputs: MetricInputs) -> Iterable[Question]:
        """See `Metric.questions`."""
        return self._accuracy().questions(inputs)

    def measure(self, inputs: MetricInputs) -> list[Value]:
        """pinpointness on the retain prompts of the nearest labels."""
        domain = inputs.setting.domain
        [(split, parts), *_] = inputs.splits()
        records = inputs.unlearned_images.where(*parts)
        named = [_label(record.label, record.prompt, domain) for record in records]
        labels = self._nearest_labels(inputs, {*named})
        accuracy = self._accuracy()
        scores = [accuracy.scores(images, inputs) for images in inputs.both(*parts)]
        counted = np.array([label in labels for label in named]) & ~np.isnan(scores[1])
        if not counted.any():
            return []
        prompts = [record.prompt for record, counts in zip(records, counted, strict=True) if counts]
        note = f"nearest by {inputs.backbone(self.backbone).name}: {', '.join(labels)}"
        sides = scores[0][counted], scores[1][counted]
        return [self.share("pinpointness", split, prompts, sides, backbone=accuracy.judge(domain), note=note)]

    def _nearest_labels(self, inputs: MetricInputs, labels: set[str]) -> list[str]:
        """The labels nearest to any of the concepts, the nearest first; none if there are no others."""
        others = _other_labels(labels, inputs.setting)
        if not others:
            return []
        network = inputs.backbone(self.backbone)
        assert isinstance(network, CLIP)
        network.load(inputs.device)
        guides = [part.guide for part in inputs.setting.concept.concepts_by_split("forget").values()]
        label_features, concept_features = (network.text([f"a photo of {name}" for name in names]) for names in (others, guides))
        order = (label_features @ concept_features.T).amax(1).argsort(descending=True)
        return [others[i] for i in order[: self.nearest].tolist()]

    def _accuracy(self) -> RetainAccuracy:
        return RetainAccuracy(subject_only=True, backbone="clip" if self.backbone == "auto-clip" else self.backbone)


def _label(label: str, prompt: str, domain: str) -> str:
    world = embedded_world(domain)
    return label if world is None else world.subject(prompt)


def _other_labels(labels: set[str], setting: EvaluationSetting) -> list[str]:
    """The labels that do not name the concept."""
    return sorted(label for label in labels if label and not setting.concept.is_named_in(label))
