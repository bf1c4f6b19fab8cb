"""UnlearnCanvas' three accuracies by attribute: the concept's own kind of attribute, and all others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from unlearnbench.config.build import build
from unlearnbench.config.errors import suggest
from unlearnbench.data.images import Images
from unlearnbench.data.prompts import RETAIN_SPLITS, Prompt
from unlearnbench.metrics.backbones import backbone, clip_problem
from unlearnbench.metrics.base import EvaluationSetting, Metric, MetricInputs
from unlearnbench.metrics.detectors import LabelClassifier, concept_detector, nearest_labels
from unlearnbench.metrics.forget_accuracy import ForgetAccuracy
from unlearnbench.metrics.readers import Features, Question, Reader
from unlearnbench.metrics.retain_accuracy import attribute_questions, correct_attributes, world_problem
from unlearnbench.results.intervals import Interval
from unlearnbench.results.run import Value
from unlearnbench.storage.downloads import Download
from unlearnbench.worlds import embedded_world


@dataclass
class UnlearnCanvas(Metric):
    """UA, IRA and CRA of UnlearnCanvas (Zhang et al. 2024, arXiv 2402.11846), on the attributes of an embedded world.

    ua: the share of images of forget prompts that are not classified as the concept. ira: over the other images, the share
    whose attribute of the concept's kind (the subject for a church, the style for van Gogh) is classified as the prompt
    says. cra: the same share for the other attributes. In the paper the kinds are style and object, each image has both,
    and all classes have equally many images, so that the mean over classes is the mean over images, as it is here. An
    image whose prompt names no attribute of a kind does not count for that kind.

    On photographs the kinds are the columns `kinds` of the prompt file, and each row says what its image shows: "Crayon" in
    the column style, "Bears" in the column object. The concept's kind is the one in which all forget prompts agree. Each kind
    is judged by its classifier among `classifiers`, else by CLIP zero-shot among all names in its column.

    Attributes:
        kinds: on photographs, the columns with what an image shows.
        classifiers: for a kind, the settings of a `LabelClassifier`, such as `TimmClassifier` with UnlearnCanvas' own weights.
        backbone: the CLIP of kinds without a classifier.
    """

    kinds: list[str] = field(default_factory=lambda: ["style", "object"])
    classifiers: dict[str, Any] = field(default_factory=dict)
    backbone: str = "clip"
    least_retain_images: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if unknown := [kind for kind in self.classifiers if kind not in self.kinds]:
            raise ValueError(f"classifiers: {unknown[0]!r} is not one of the kinds; {suggest(unknown[0], self.kinds)}")

    def unavailable_reason(self, setting: EvaluationSetting) -> str | None:
        """See `Metric.unavailable_reason`."""
        if embedded_world(setting.domain) is not None:
            return world_problem(setting, "unlearn_canvas")
        reasons = [classifier.unavailable_reason() for classifier in self._built().values()]
        if len(self.classifiers) < len(self.kinds):
            reasons.append(clip_problem(self.backbone, setting.domain))
        return next(filter(None, reasons), None)

    def downloads(self, setting: EvaluationSetting) -> list[Download]:
        """See `Metric.downloads`."""
        own = [download for classifier in self._built().values() for download in classifier.downloads()]
        zero_shot = embedded_world(setting.domain) is None and len(self.classifiers) < len(self.kinds)
        return own + (backbone(self.backbone, setting.domain).downloads() if zero_shot else [])

    def sample_problem(self, setting: EvaluationSetting, images: Sequence[Prompt]) -> str | None:
        """See `Metric.sample_problem`; photographs need the columns of the kinds, and zero-shot two names to choose from."""
        forget = [dict(prompt.columns) for prompt in images if prompt.base == "forget"]
        if embedded_world(setting.domain) is not None:
            return super().sample_problem(setting, images) if forget else "needs an image of a forget prompt"
        if not self._concept_kind(forget):
            needed = f"a prompt file whose forget prompts have one and the same {' or '.join(self.kinds)}"
            return f"on photographs it needs {needed}, in columns of these names"
        for kind in self.kinds:
            names = {dict(prompt.columns).get(kind, "") for prompt in images} - {""}
            if len(names) == 1 and kind not in self.classifiers:
                only = f"the only {kind} of the prompts is {names.pop()!r}, and zero-shot among one name is always right"
                return f"{only}: add prompts of another, or set metrics.unlearn_canvas.classifiers.{kind}"
        return super().sample_problem(setting, images)

    def _concept_kind(self, rows: Sequence[Mapping[str, str]]) -> str | None:
        """The kind in which all forget prompts agree; None if there is none."""
        return next(
            (kind for kind in self.kinds if rows and len({row.get(kind) for row in rows} - {""}) == 1 and rows[0].get(kind)), None
        )

    def _built(self) -> dict[str, LabelClassifier]:
        return {
            kind: build(node, LabelClassifier, f"metrics.unlearn_canvas.classifiers.{kind}")
            for kind, node in self.classifiers.items()
        }

    def questions(self, inputs: MetricInputs) -> Iterable[Question]:
        """See `Metric.questions`; also those of `forget_accuracy`."""
        if embedded_world(inputs.setting.domain) is not None:
            return [*attribute_questions(inputs), *ForgetAccuracy().questions(inputs)]
        sides = inputs.both("forget", *RETAIN_SPLITS)
        return [Question(self._reader(kind, inputs), (self._with_kind(images, kind),)) for kind in self.kinds for images in sides]

    def measure(self, inputs: MetricInputs) -> list[Value]:
        """ua on forget prompts, ira and cra on retain prompts."""
        return self._of_attributes(inputs) if embedded_world(inputs.setting.domain) is not None else self._of_columns(inputs)

    def _of_columns(self, inputs: MetricInputs) -> list[Value]:
        """The three accuracies on photographs."""
        own = self._concept_kind([record.columns for record in inputs.original_images.where("forget")])
        assert own is not None
        values = []
        for metric, splits, kinds in (
            ("ua", ("forget",), [own]),
            ("ira", RETAIN_SPLITS, [own]),
            ("cra", RETAIN_SPLITS, [kind for kind in self.kinds if kind != own]),
        ):
            for kind in kinds:
                original, unlearned = (self._with_kind(images, kind) for images in inputs.both(*splits))
                if not len(original):
                    continue
                scores = [self._right(images, kind, inputs) for images in (original, unlearned)]
                if metric == "ua":
                    scores = [1 - right for right in scores]
                split, prompts = ("forget" if metric == "ua" else "retain"), [record.prompt for record in unlearned]
                value = self.share(metric, split, prompts, (scores[0], scores[1]), backbone=self._judge(kind), note=kind)
                values.append(replace(value, table="Forgetting") if metric == "ua" else value)
        return values

    def _with_kind(self, images: Images, kind: str) -> Images:
        return Images(images.folder, [record for record in images if record.columns.get(kind)])

    def _judge(self, kind: str) -> str:
        classifier = self._built().get(kind)
        return classifier.title() if classifier else f"{self.backbone} zero-shot {kind}"

    def _right(self, images: Images, kind: str, inputs: MetricInputs) -> np.ndarray:
        """Whether each image is classified as its row says, (n,)."""
        names = sorted({record.columns[kind] for record in inputs.original_images if record.columns.get(kind)})
        classifier = self._built().get(kind)
        answers = inputs.answers(self._reader(kind, inputs), images)
        shown = classifier.likeliest(answers) if classifier else nearest_labels(answers, names, self.backbone)
        return np.array([float(_same(name, record.columns[kind])) for name, record in zip(shown, images, strict=True)])

    def _reader(self, kind: str, inputs: MetricInputs) -> Reader:
        classifier = self._built().get(kind)
        return classifier.reader() if classifier else Features(inputs.backbone(self.backbone))

    def _of_attributes(self, inputs: MetricInputs) -> list[Value]:
        """The three accuracies on an embedded world."""
        kinds = _concept_kinds(inputs.setting)
        [(split, parts), *_] = inputs.splits()
        correct = [correct_attributes(images, inputs) for images in inputs.both(*parts)]
        prompts = [record.prompt for record in inputs.unlearned_images.where(*parts)]
        values, judge = self._ua(inputs), inputs.backbone("auto").name
        selections: dict[str, Callable[[str], bool]] = {"ira": lambda name: name in kinds, "cra": lambda name: name not in kinds}
        for metric, counts in selections.items():
            flags = [[[right for name, right in image.items() if counts(name)] for image in images] for images in correct]
            rows = [i for i, image in enumerate(flags[1]) if image]
            if rows:
                original, unlearned = (np.array([np.mean(images[i]) for i in rows]) for images in flags)
                note = ", ".join(sorted(kinds)) if metric == "ira" else ""
                sides = original, unlearned
                values.append(self.share(metric, split, [prompts[i] for i in rows], sides, backbone=judge, note=note))
        return values

    def _ua(self, inputs: MetricInputs) -> list[Value]:
        """1 - forget_accuracy on the forget prompts, if they have images."""
        return [
            self.value(
                "ua",
                "forget",
                1 - forget.unlearned,
                n=forget.n,
                backbone=forget.backbone,
                original=None if forget.original is None else 1 - forget.original,
                interval=Interval(forget.low, forget.high, forget.interval).complement(),
                table="Forgetting",
            )
            for forget in ForgetAccuracy().measure(inputs)
            if forget.split == "forget"
        ]


def _same(name: str, expected: str) -> bool:
    """Whether two names of a class are equal but for case and underscores: Artist_Sketch is Artist Sketch."""
    return name.replace("_", " ").casefold() == expected.replace("_", " ").casefold()


def _concept_kinds(setting: EvaluationSetting) -> set[str]:
    """The attributes of which the concepts are values."""
    detectors = [concept_detector(concept, setting.domain) for concept in setting.concept.concepts_by_split("forget").values()]
    return {name for detector in detectors for name in detector.attributes()}
