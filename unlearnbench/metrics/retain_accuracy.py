"""Retention of abilities: do the images still show what the retain prompts name?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from unlearnbench.data.images import Images
from unlearnbench.data.prompts import RETAIN_SPLITS, Prompt
from unlearnbench.metrics.backbones import backbone, clip_problem
from unlearnbench.metrics.base import EvaluationSetting, Metric, MetricInputs
from unlearnbench.metrics.detectors import AttributeReader, nearest_labels
from unlearnbench.metrics.readers import Features, Question, Reader
from unlearnbench.results.run import Value
from unlearnbench.storage.downloads import Download
from unlearnbench.worlds import World, embedded_world


@dataclass
class RetainAccuracy(Metric):
    """The share of retain images that match their prompt.

    On an embedded world, its network must read every attribute that the prompt names (only the subjects if `subject_only`). On
    photographs, CLIP zero-shot must pick the prompt's label out of all labels of the retain set. UnlearnCanvas' accuracies
    by attribute are `unlearn_canvas`.

    Attributes:
        subject_only: count the subject alone.
        backbone: the CLIP for photographs.
    """

    subject_only: bool = False
    backbone: str = "clip"
    least_retain_images: ClassVar[int] = 1

    def unavailable_reason(self, setting: EvaluationSetting) -> str | None:
        """See `Metric.unavailable_reason`."""
        if embedded_world(setting.domain) is not None:
            return backbone("auto", setting.domain).unavailable_reason()
        return clip_problem(self.backbone, setting.domain)

    def downloads(self, setting: EvaluationSetting) -> list[Download]:
        """See `Metric.downloads`."""
        return [] if embedded_world(setting.domain) is not None else backbone(self.backbone, setting.domain).downloads()

    def sample_problem(self, setting: EvaluationSetting, images: Sequence[Prompt]) -> str | None:
        """See `Metric.sample_problem`; zero-shot needs two labels to choose from."""
        labels = {prompt.label for prompt in images if prompt.base in RETAIN_SPLITS and prompt.label}
        if embedded_world(setting.domain) is None and len(labels) == 1:
            return f"the only label of the retain prompts is {labels.pop()!r}, and zero-shot among one label is always right"
        return super().sample_problem(setting, images)

    def measure(self, inputs: MetricInputs) -> list[Value]:
        """retain_accuracy on all retain prompts and on each split; images without a label do not count."""
        splits = inputs.splits()
        retained = inputs.both(*splits[0][1])
        by_file = [dict(zip((record.file for record in images), self.scores(images, inputs), strict=True)) for images in retained]
        values = []
        for split, parts in splits:
            original, unlearned = (
                np.array([scores[record.file] for record in images.where(*parts)])
                for images, scores in zip(retained, by_file, strict=True)
            )
            labelled = ~np.isnan(unlearned)
            if labelled.any():
                prompts = np.array([record.prompt for record in retained[1].where(*parts)])[labelled].tolist()
                unlabelled = int((~labelled).sum())
                sides = original[labelled], unlearned[labelled]
                note = f"{unlabelled} without label left out" if unlabelled else ""
                judge = self.judge(inputs.setting.domain)
                values.append(self.share("retain_accuracy", split, prompts, sides, backbone=judge, note=note))
        return values

    def judge(self, domain: str) -> str:
        """The network that judges the images of a domain."""
        world = embedded_world(domain)
        return self.backbone if world is None else world.judge

    def scores(self, images: Images, inputs: MetricInputs) -> np.ndarray:
        """1 for each image that matches its prompt and 0 for each that does not, nan where the prompt names nothing, (n,)."""
        if embedded_world(inputs.setting.domain) is not None:
            flags = [
                [correct for name, correct in attributes.items() if name == "subject" or not self.subject_only]
                for attributes in correct_attributes(images, inputs)
            ]
            return np.array([float(all(image)) if image else np.nan for image in flags])
        scores, labelled = np.full(len(images), np.nan), _labelled(images)
        labels = sorted({record.label for record in labelled})
        if len(labels) >= 2:  # among one label every image would be right
            features = inputs.answers(self._reader(inputs), labelled)
            pairs = zip(nearest_labels(features, labels, self.backbone), labelled, strict=True)
            scores[[bool(record.label) for record in images]] = [float(label == record.label) for label, record in pairs]
        return scores

    def questions(self, inputs: MetricInputs) -> Iterable[Question]:
        """See `Metric.questions`; on photographs about images with a label alone."""
        photographs = embedded_world(inputs.setting.domain) is None
        for images in inputs.both(*inputs.splits()[0][1]):
            yield Question(self._reader(inputs), (_labelled(images) if photographs else images,))

    def _reader(self, inputs: MetricInputs) -> Reader:
        world = embedded_world(inputs.setting.domain)
        return Features(inputs.backbone(self.backbone)) if world is None else AttributeReader(world)


def _labelled(images: Images) -> Images:
    return Images(images.folder, [record for record in images if record.label])


def correct_attributes(images: Images, inputs: MetricInputs) -> list[dict[str, bool]]:
    """For each image and each attribute that its prompt names, whether the world's network reads that value."""
    world = _world(inputs)
    return world.correct([record.prompt for record in images], inputs.answers(AttributeReader(world), images))


def attribute_questions(inputs: MetricInputs) -> list[Question]:
    """What a metric asks that reads the attributes of all retain images."""
    return [Question(AttributeReader(_world(inputs)), (images,)) for images in inputs.both(*inputs.splits()[0][1])]


def _world(inputs: MetricInputs) -> World:
    world = embedded_world(inputs.setting.domain)
    assert world is not None  # see `world_problem`
    return world


def world_problem(setting: EvaluationSetting, name: str) -> str | None:
    """Why a metric that reads the attributes of an embedded world cannot be measured."""
    if embedded_world(setting.domain) is None:
        return (
            f"{name} reads the attributes of an embedded world, but model.domain is {setting.domain}; "
            f"remove it with '~metrics.{name}'"
        )
    return backbone("auto", setting.domain).unavailable_reason()
