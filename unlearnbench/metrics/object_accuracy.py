"""MACE's accuracies of objects: erased, retained and synonyms, by CLIP, and their harmonic means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch

from unlearnbench.data.images import Images
from unlearnbench.data.prompts import RETAIN_SPLITS, Prompt
from unlearnbench.metrics.backbones import CLIP, backbone, clip_problem
from unlearnbench.metrics.base import EvaluationSetting, Metric, MetricInputs
from unlearnbench.metrics.readers import Features, Question
from unlearnbench.results.run import Value
from unlearnbench.storage.downloads import Download

LOGIT_SCALE = 100.0  # of the released CLIP models


@dataclass
class ObjectAccuracy(Metric):
    """Acc_e on forget, Acc_s on retain images, Acc_g on paraphrases (synonyms), their harmonic mean (MACE, arXiv 2403.06135).

    An image's score is the probability softmax(100 cos(image, "a photo of the <label>")) of its own label among all labels,
    as in the authors' evaluate_clip_accuracy.py; with `top1`, 1 where that label is the likeliest. H_o = 3 / (1 / (1 - Acc_e)
    + 1 / Acc_s + 1 / (1 - Acc_g)); without paraphrases H_c = 2 / (1 / (1 - Acc_e) + 1 / Acc_s). The forget and paraphrase
    images' label is that of the forget prompts; retain images with none of the labels do not count.

    Attributes:
        labels: what the images may show; empty takes the labels of all prompts.
        template: the text of a label, with {}.
        backbone: the CLIP.
        top1: count the likeliest label instead of the probability.
    """

    labels: list[str] = field(default_factory=list)
    template: str = "a photo of the {}"
    backbone: str = "clip:openai/clip-vit-base-patch32"
    top1: bool = False
    table: ClassVar[str] = "Object accuracy"
    least_retain_images: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if "{}" not in self.template:
            raise ValueError(f"template: {self.template!r} has no {{}} for the label")

    def unavailable_reason(self, setting: EvaluationSetting) -> str | None:
        """See `Metric.unavailable_reason`."""
        return clip_problem(self.backbone, setting.domain)

    def downloads(self, setting: EvaluationSetting) -> list[Download]:
        """See `Metric.downloads`."""
        return backbone(self.backbone, setting.domain).downloads()

    def sample_problem(self, setting: EvaluationSetting, images: Sequence[Prompt]) -> str | None:
        """See `Metric.sample_problem`; forget prompts need one label, retain prompts another, and `labels` all of them."""
        labels = {prompt.label for prompt in images if prompt.base == "forget"}
        if len(labels) != 1 or labels == {""}:
            return "the forget prompts need a column label with one name, such as ship"
        if len({*self._labels([prompt.label for prompt in images])}) < 2:
            return "there is no other label than the concept's, and among one label every image is right"
        known = {*self._labels([prompt.label for prompt in images])}
        if unknown := labels - known:
            return f"metrics.object_accuracy.labels: add {unknown.pop()!r}, the label of the forget prompts"
        if not known & {prompt.label for prompt in images if prompt.base in RETAIN_SPLITS}:
            return "no retain prompt has one of the labels, so that there is no acc_s: add some with a column label, such as bird"
        return None

    def _labels(self, of_images: Sequence[str]) -> list[str]:
        return self.labels or sorted({*of_images} - {""})

    def questions(self, inputs: MetricInputs) -> Iterable[Question]:
        """See `Metric.questions`."""
        reader = Features(inputs.backbone(self.backbone))
        for images in inputs.both("forget", "paraphrase"):
            yield Question(reader, (images,))
        for images in inputs.both(*RETAIN_SPLITS):
            yield Question(reader, (_with_label(images, self._labels([record.label for record in images])),))

    def measure(self, inputs: MetricInputs) -> list[Value]:
        """acc_e, acc_s, acc_g where there are paraphrases, and h_o or h_c."""
        labels = self._labels([record.label for record in inputs.original_images])
        forget, _ = inputs.both("forget")
        [concept] = {record.label for record in forget}
        values, means = [], {}
        for name, splits, better in (
            ("acc_e", ("forget",), "lower"),
            ("acc_s", RETAIN_SPLITS, "higher"),
            ("acc_g", ("paraphrase",), "lower"),
        ):
            sides = [_with_label(images, labels) if name == "acc_s" else images for images in inputs.both(*splits)]
            if not len(sides[0]):
                continue
            own = [[record.label if name == "acc_s" else concept for record in images] for images in sides]
            scores = [self._scores(images, side, labels, inputs) for images, side in zip(sides, own, strict=True)]
            prompts = [record.prompt for record in sides[1]]
            split = "retain" if name == "acc_s" else splits[0]
            left_out = sum(bool(record.label) for record in inputs.both(*splits)[1]) - len(prompts) if name == "acc_s" else 0
            note = f"{left_out} of other labels left out" if left_out else ""
            value = self.share(name, split, prompts, (scores[0], scores[1]), backbone=self.backbone, note=note)
            values.append(replace(value, better=better))
            means[name] = [float(side.mean()) for side in scores]
        return [*values, self._harmonic(means, sum(value.n for value in values))]

    def _scores(self, images: Images, own: Sequence[str], labels: Sequence[str], inputs: MetricInputs) -> np.ndarray:
        network = inputs.backbone(self.backbone)
        assert isinstance(network, CLIP)
        features = inputs.features(images, self.backbone)
        network.load(inputs.device)
        text = network.text([self.template.replace("{}", label) for label in labels])
        probabilities = (LOGIT_SCALE * features @ text.T).softmax(1)
        columns = torch.tensor([labels.index(label) for label in own])
        chosen = probabilities.gather(1, columns[:, None])[:, 0]
        return (probabilities.argmax(1) == columns).float().numpy() if self.top1 else chosen.numpy()

    def _harmonic(self, means: dict[str, list[float]], n: int) -> Value:
        """H_o of three accuracies, or H_c of two."""
        original, unlearned = (
            harmonic_mean([accuracies[side] if name == "acc_s" else 1 - accuracies[side] for name, accuracies in means.items()])
            for side in (0, 1)
        )
        name = "h_o" if len(means) == 3 else "h_c"
        return self.value(name, "all", unlearned, n=n, backbone=self.backbone, original=original, bounds=(0.0, 1.0))


def _with_label(images: Images, labels: Sequence[str]) -> Images:
    """The images that show one of the labels."""
    return Images(images.folder, [record for record in images if record.label in labels])


def harmonic_mean(shares: Sequence[float]) -> float:
    """The harmonic mean; 0 if one of them is 0.

    Examples:
        >>> harmonic_mean([0.5, 1.0, 1.0])
        0.75
    """
    return 0.0 if min(shares) <= 0 else len(shares) / sum(1 / share for share in shares)
