"""GenEval: does the image show the objects that a prompt names, in the right number, colour and place?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unlearnbench.config.errors import UserError, suggest
from unlearnbench.config.paths import at_home
from unlearnbench.config.quoting import quoted_override
from unlearnbench.config.ranges import at_least, share
from unlearnbench.data.images import Images, Picture
from unlearnbench.data.table_reader import Columns, read_table
from unlearnbench.metrics.backbones import CLIP, backbone, clip_problem, network_downloads, network_problem, network_version
from unlearnbench.metrics.base import EvaluationSetting, Metric, MetricInputs
from unlearnbench.metrics.devices import move
from unlearnbench.metrics.readers import Question, Reader
from unlearnbench.results.intervals import has_width, prompt_interval, wilson_over_prompts
from unlearnbench.results.run import Value
from unlearnbench.storage.downloads import Download

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
SPEC_COLUMNS = Columns(("prompt", "tag"), ("include", "exclude"), ignored=frozenset(), text=("prompt", "tag"))
COLOR_TEXTS = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")


class Detection(NamedTuple):
    """An object that the detector found: its box (left, top, right, bottom, in pixels) and its score."""

    box: tuple[float, float, float, float]
    score: float


@dataclass
class GenEval(Metric):
    """The share of retain images that a detector judges correct, for each of GenEval's tasks, and the mean over tasks.

    Ghosh et al. 2023 (arXiv 2310.11513), by the rules of the authors' evaluate_images.py. If a class is required n times,
    its n detections of highest score count, above `threshold` (above `counting_threshold` for the task "counting"). Each must
    have its colour by CLIP on the cropped box, and its position relative to every detection of the clause it refers to. An
    excluded class must stay below its count. Ours: any detector of transformers (theirs is Mask2Former of mmdetection);
    boxes are cropped with their background and stretched to a square (theirs greys the background out by the mask).

    Attributes:
        specs: the authors' evaluation_metadata.jsonl, or a file of the same form: prompt, tag, include, exclude.
        detector: an object detector in transformers' layout, a folder or a hub id.
        revision: the hub's branch, tag or commit.
        names: the detector's label for a class that it names differently from the specs.
        threshold: the minimum score.
        counting_threshold: the minimum score for the task "counting".
        most: the maximum number of detections of a class in an image.
        margin: the distance of two boxes, as a fraction of their summed sides, beyond which one is left of the other, etc.
        backbone: the CLIP that names colours.
    """

    specs: str = "???"
    detector: str = "facebook/detr-resnet-50"
    revision: str | None = "no_timm"
    names: dict[str, str] = field(default_factory=dict)
    threshold: float = 0.3
    counting_threshold: float = 0.9
    most: int = 16
    margin: float = 0.1
    backbone: str = "clip"
    least_retain_images: ClassVar[int] = 1

    def __post_init__(self) -> None:
        share(self, "threshold", "counting_threshold")
        at_least(self, 0, "margin")
        at_least(self, 1, "most")
        self.detector = at_home(self.detector)

    def unavailable_reason(self, setting: EvaluationSetting) -> str | None:
        """See `Metric.unavailable_reason`."""
        from transformers import AutoConfig

        if not Path(self.specs).is_file():
            source = "GenEval's is prompts/evaluation_metadata.jsonl of github.com/djghosh13/geneval"
            return f"metrics.geneval.specs={self.specs}: no such file; {source}"
        if reason := network_problem("detector", self.detector, self.revision):
            return reason
        specs = self._read_specs()
        if not any(prompt.text in specs for prompt in setting.retain.load(setting.concept)):
            retain = quoted_override("retain.prompts", self.specs)
            return f"geneval: no retain prompt is in {self.specs}; take the prompts from it: {retain}"
        labels = AutoConfig.from_pretrained(self.detector, revision=self.revision, local_files_only=True).id2label.values()
        required = [self._label(clause) for spec in specs.values() for clause in _clauses(spec)]
        if unknown := next((label for label in required if label not in labels), None):
            repair = f"map it to the detector's label in metrics.geneval.names ({suggest(unknown, labels)})"
            return f"{self.detector} has no label {unknown!r}; {repair}"
        return clip_problem(self.backbone, setting.domain)

    def downloads(self, setting: EvaluationSetting) -> list[Download]:
        """See `Metric.downloads`."""
        detector = network_downloads("detector", self.detector, self.revision)
        return [*detector, *backbone(self.backbone, setting.domain).downloads()]

    def measure(self, inputs: MetricInputs) -> list[Value]:
        """geneval, the mean over tasks, on all retain prompts that the specs hold, and geneval_<task> for each task."""
        specs = self._read_specs()
        [(split, parts), *_] = inputs.splits()
        scores = [self._scores(images, specs, inputs) for images in inputs.both(*parts)]
        scored = ~np.isnan(scores[1])
        if not scored.any():
            return []
        original, unlearned = (side[scored] for side in scores)
        prompts = np.array([record.prompt for record in inputs.unlearned_images.where(*parts)])[scored]
        tags = np.array([specs[prompt]["tag"] for prompt in prompts])
        tasks = {tag: tags == tag for tag in dict.fromkeys(tags.tolist())}
        values, columns = [], []
        for tag, rows in tasks.items():
            sides = original[rows], unlearned[rows]
            values.append(self.share(f"geneval_{tag}", split, prompts[rows].tolist(), sides, backbone=self._title()))
            columns += [unlearned * rows, rows.astype(float)]
        means = [float(np.mean([side[rows].mean() for rows in tasks.values()])) for side in (original, unlearned)]
        interval = prompt_interval(prompts.tolist(), *columns, of=_mean_of_tasks)
        if not has_width(interval.low, interval.high):  # equal answers, or one prompt
            interval = wilson_over_prompts(means[1], len(set(prompts.tolist())))
        whole = self.value(
            "geneval",
            split,
            means[1],
            n=len(prompts),
            backbone=self._title(),
            original=means[0],
            interval=interval,
            bounds=(0.0, 1.0),
        )
        return [whole, *values]

    def _label(self, clause: Mapping[str, Any]) -> str:
        """The detector's label for the class of a clause."""
        return self.names.get(clause["class"], clause["class"])

    def _read_specs(self) -> dict[str, dict[str, Any]]:
        """The line of the specs for each prompt.

        Raises:
            UserError: a line has no prompt or tag, or a clause has no class or count or refers to a clause after it.
        """
        specs = {}
        for where, spec in read_table(Path(self.specs), SPEC_COLUMNS):
            if problem := _spec_problem(spec):
                raise UserError(f"{where}: {problem}")
            specs[spec["prompt"]] = spec
        return specs

    def _title(self) -> str:
        return f"{self.detector}{f'@{self.revision}' if self.revision else ''} >= {self.threshold}"

    def questions(self, inputs: MetricInputs) -> Iterable[Question]:
        """See `Metric.questions`; the detector looks at the images whose prompts the specs hold."""
        specs, [(_, parts), *_] = self._read_specs(), inputs.splits()
        return [Question(self._reader(), (_of_specs(images, specs),)) for images in inputs.both(*parts)]

    def _reader(self) -> ObjectDetections:
        return ObjectDetections(self.detector, self.revision)

    def _scores(self, images: Images, specs: Mapping[str, dict[str, Any]], inputs: MetricInputs) -> np.ndarray:
        """1 for each correct image and 0 for each incorrect one, nan where the specs do not hold the prompt, (n,)."""
        scores = np.full(len(images), np.nan)
        places = [i for i, record in enumerate(images) if record.prompt in specs]
        if not places:
            return scores
        reader = self._reader()
        labels, pictures = reader.labels(), _of_specs(images, specs)
        for i, picture, rows in zip(places, pictures, inputs.answers(reader, pictures), strict=True):
            spec = specs[images[i].prompt]
            threshold = self.counting_threshold if spec["tag"] == "counting" else self.threshold
            rows = rows[rows[:, 4] > threshold]
            objects = {"boxes": rows[:, :4], "scores": rows[:, 4], "labels": rows[:, 5].long()}
            colors = partial(self._colors, picture, inputs)
            scores[i] = fulfils(spec, self._detections(spec, objects, labels), colors, self.margin)
        return scores

    def _detections(
        self, spec: Mapping[str, Any], objects: Mapping[str, Tensor], labels: Mapping[int, str]
    ) -> dict[str, list[Detection]]:
        """The detections of each class in the spec, by falling score."""
        by_label: dict[str, list[Detection]] = {}
        for i in objects["scores"].argsort(descending=True).tolist():
            detection = Detection(tuple(objects["boxes"][i].tolist()), float(objects["scores"][i]))
            by_label.setdefault(labels[int(objects["labels"][i])], []).append(detection)
        return {clause["class"]: by_label.get(self._label(clause), [])[: self.most] for clause in _clauses(spec)}

    @torch.no_grad()
    def _colors(self, picture: Picture, inputs: MetricInputs, name: str, detections: Sequence[Detection]) -> list[str]:
        """The colour of each detection, by CLIP on its box."""
        network, image = inputs.backbone(self.backbone), torch.from_numpy(picture.open())
        assert isinstance(network, CLIP)
        network.load(inputs.device)
        features = torch.cat([network.features(crop(image, detection)[None]).cpu() for detection in detections])
        return [COLORS[i] for i in (features @ color_features(network, name).T).argmax(1).tolist()]


class ObjectDetections(Reader):
    """What an object detector finds in an image, in any order: (n, queries, 6) of left, top, right, bottom, score and label.

    Args:
        path: a folder in transformers' layout, or a hub id.
        revision: the hub's branch, tag or commit.
    """

    kind = "objects"

    def __init__(self, path: str, revision: str | None) -> None:
        self.path, self.revision = path, revision

    def key(self) -> list[Any]:
        """See `Reader.key`."""
        processor, model = _load_detector(self.path, self.revision)
        return [network_version(model), processor.to_json_string()]

    def labels(self) -> dict[int, str]:
        """The labels by their numbers."""
        return _load_detector(self.path, self.revision)[1].config.id2label

    def read(self, images: Sequence[Tensor], device: torch.device) -> Tensor:
        """See `Reader.read`; one image after another, as the detector's processor resizes them."""
        processor, model = _load_detector(self.path, self.revision)
        move(model, device)
        return torch.stack([self._detect(image, processor, model) for image in images[0]])

    def _detect(self, image: Tensor, processor: Any, model: Any) -> Tensor:
        output = model(**processor(images=[image.numpy()], return_tensors="pt").to(model.device))
        sizes = [tuple(image.shape[:2])]
        [objects] = processor.post_process_object_detection(output, threshold=-1.0, target_sizes=sizes)
        return torch.cat(
            [objects["boxes"], objects["scores"][:, None], objects["labels"][:, None].to(objects["scores"])], dim=1
        ).cpu()


@cache
def _load_detector(path: str, revision: str | None) -> tuple[Any, Any]:
    """The image processor and the network, on the CPU at first."""
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    source = {"revision": revision, "local_files_only": True}
    model = AutoModelForObjectDetection.from_pretrained(path, use_safetensors=True, **source)
    return AutoImageProcessor.from_pretrained(path, **source), model.eval().requires_grad_(False)


def _of_specs(images: Images, specs: Mapping[str, Any]) -> list[Picture]:
    """The images whose prompts the specs hold."""
    return [picture for record, picture in zip(images, images.pictures(), strict=True) if record.prompt in specs]


@cache
def color_features(network: CLIP, name: str) -> Tensor:
    """For each of `COLORS`, the mean text feature of an object of that colour, of unit length, (colours, d)."""
    features = network.text([text.format(color=color, name=name) for color in COLORS for text in COLOR_TEXTS])
    return torch.nn.functional.normalize(features.view(len(COLORS), len(COLOR_TEXTS), -1).mean(1), dim=-1)


def _clauses(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*(spec.get("include") or []), *(spec.get("exclude") or [])]


def _spec_problem(spec: Mapping[str, Any]) -> str | None:
    """Why a line of the specs cannot be read; None if it can."""
    for name in ("include", "exclude"):
        if spec.get(name) and not (isinstance(spec[name], list) and all(isinstance(clause, dict) for clause in spec[name])):
            return f"{name} is not a list of clauses"
    for i, clause in enumerate(_clauses(spec)):
        if not isinstance(clause.get("class"), str) or not isinstance(clause.get("count"), int):
            return f"clause {i + 1} has no class or count"
        if "position" in clause:
            position = clause["position"]
            if not (isinstance(position, list) and len(position) == 2 and isinstance(position[1], int)):
                return f"clause {i + 1} has no position such as [left of, 0]"
            if not 0 <= position[1] < i:
                return f"clause {i + 1} refers to a clause that does not come before it"
    return None


def fulfils(
    spec: Mapping[str, Any],
    detections: Mapping[str, Sequence[Detection]],
    colors: Callable[[str, Sequence[Detection]], list[str]],
    margin: float,
) -> bool:
    """Whether an image shows everything that a spec includes and nothing that it excludes.

    Args:
        spec: a line of the specs: include and exclude, each a list of {class, count}; an included clause may also have a
            color, and a position such as ["left of", 0], relative to clause 0.
        detections: the detections of each class, by falling score.
        colors: from a class and some of its detections to their colours.
        margin: see `places`.
    """
    groups: list[Sequence[Detection]] = []
    for clause in spec.get("include", []):
        group = detections.get(clause["class"], [])[: clause["count"]]
        if len(group) < clause["count"]:
            return False
        if "color" in clause and any(color != clause["color"] for color in colors(clause["class"], group)):
            return False
        if "position" in clause:
            place, reference = clause["position"]
            if not all(place in places(detection, other, margin) for detection in group for other in groups[reference]):
                return False
        groups.append(group)
    return all(len(detections.get(clause["class"], [])) < clause["count"] for clause in spec.get("exclude", []))


def places(detection: Detection, other: Detection, margin: float) -> set[str]:
    """The position relative to another detection: left of, right of, above, below; two on a diagonal, none if near.

    The offset of the centres is shortened along each axis by `margin` times the sum of both sides, and divided by the
    offset's length. A direction counts if its component is above one half.
    """
    a, b = (np.array(one.box).reshape(2, 2) for one in (detection, other))
    offset = a.mean(0) - b.mean(0)
    shortened = np.maximum(np.abs(offset) - margin * (np.ptp(a, axis=0) + np.ptp(b, axis=0)), 0) * np.sign(offset)
    if np.abs(shortened).max() < 1e-3:
        return set()
    x, y = shortened / np.linalg.norm(offset)
    components = {"left of": -x, "right of": x, "above": -y, "below": y}
    return {name for name, component in components.items() if component > 0.5}


def crop(image: Tensor, detection: Detection) -> Tensor:
    """The part of an image (h, w, 3) in the box of a detection, at least one pixel."""
    height, width = image.shape[:2]
    left, top, right, bottom = detection.box
    left, top = min(max(int(left), 0), width - 1), min(max(int(top), 0), height - 1)
    return image[top : max(int(np.ceil(bottom)), top + 1), left : max(int(np.ceil(right)), left + 1)]


def _mean_of_tasks(*means: np.ndarray) -> np.ndarray:
    """The mean over tasks of the share correct, from each task's share of correct images and of images among all."""
    with np.errstate(invalid="ignore"):
        return np.nanmean([correct / images for correct, images in zip(means[::2], means[1::2], strict=True)], axis=0)
