"""GenEval: are the things there that a prompt names, as many, of that colour, in that place?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unlearnbench.config.errors import UserError, suggest
from unlearnbench.config.paths import at_home
from unlearnbench.config.ranges import at_least, share
from unlearnbench.data.images import Images
from unlearnbench.data.prompts import read_jsonl
from unlearnbench.metrics.backbones import CLIP, clip_problem, network_problem
from unlearnbench.metrics.base import Metric, MetricInputs
from unlearnbench.results.intervals import bootstrap_interval, share_interval
from unlearnbench.results.run import Value

if TYPE_CHECKING:
    from unlearnbench.experiment.run_spec import RunSpec


COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
COLOR_TEXTS = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")


class Detection(NamedTuple):
    """What a detector found: left, top, right, bottom in pixels, and how sure it is."""

    box: tuple[float, float, float, float]
    score: float


@dataclass
class GenEval(Metric):
    """The share of retain images that a detector finds right, of each of GenEval's tasks, and the mean of the tasks.

    Ghosh et al. 2023 (arXiv 2310.11513), by the rules of the authors' evaluate_images.py: of a thing that is asked for n times
    the n surest count, above `threshold` (above `counting_threshold` for the task "counting"); each must have its colour by
    CLIP on the cut-out box, and its place relative to every one of the thing it is placed by; what is excluded
    must stay below its number. Ours: any detector of transformers (theirs is Mask2Former of mmdetection), whose boxes are cut
    out with their background and stretched to a square (theirs greys the background out by the mask, and crops).

    Attributes:
        specs: the authors' evaluation_metadata.jsonl, or one's own lines like it: prompt, tag, include, exclude.
        detector: an object detector in transformers' layout, a folder or a hub id.
        revision: the hub's branch, tag or commit.
        names: what the detector calls a thing that the specs name otherwise.
        threshold: the least score.
        counting_threshold: the least score where things are counted.
        most: at most so many things of a kind in a picture.
        margin: by how much of their summed sides two things must be apart for one to be left of the other, and so on.
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

    def __post_init__(self) -> None:
        share(self, "threshold", "counting_threshold")
        at_least(self, 0, "margin")
        at_least(self, 1, "most")
        self.detector = at_home(self.detector)

    def unavailable_reason(self, spec: RunSpec) -> str | None:
        """See `Metric.unavailable_reason`."""
        from transformers import AutoConfig

        if not Path(self.specs).is_file():
            theirs = "GenEval's is prompts/evaluation_metadata.jsonl of github.com/djghosh13/geneval"
            return f"metrics.geneval.specs={self.specs}: no such file; {theirs}"
        if lacks := network_problem("detector", self.detector, self.revision):
            return lacks
        asked = self._asked()
        if not any(prompt.text in asked for prompt in spec.retain.load(spec.concept)):
            return f"geneval: no retain prompt is in {self.specs}; take them from there: retain.prompts={self.specs}"
        known = AutoConfig.from_pretrained(self.detector, revision=self.revision, local_files_only=True).id2label.values()
        wanted = [self.names.get(one["class"], one["class"]) for told in asked.values() for one in _clauses(told)]
        if unknown := next((name for name in wanted if name not in known), None):
            repair = f"say in metrics.geneval.names what it is called there ({suggest(unknown, known)})"
            return f"{self.detector} has no label {unknown!r}; {repair}"
        return clip_problem(self.backbone, spec.model.domain)

    def measure(self, evidence: MetricInputs) -> list[Value]:
        """geneval on all retain prompts that the specs know, the mean over tasks, and geneval_<task> for each."""
        asked, judge = self._asked(), self._detector(evidence.device)
        [(split, parts), *_] = evidence.splits()
        sides = [self._right(images.where(*parts), asked, judge, evidence) for images in (evidence.before, evidence.after)]
        there = ~np.isnan(sides[1])
        if not there.any():
            return []
        before, after = (side[there] for side in sides)
        prompts = np.array([shot.prompt for shot in evidence.after.where(*parts)])[there]
        of_task = {
            tag: np.array([asked[prompt]["tag"] == tag for prompt in prompts])
            for tag in dict.fromkeys(asked[prompt]["tag"] for prompt in prompts)
        }
        values, columns = [], []
        for tag, of in of_task.items():
            means = float(before[of].mean()), float(after[of].mean())
            ends = share_interval(prompts[of].tolist(), after[of])
            values.append(Value("Retention", f"geneval_{tag}", split, *means, "higher", int(of.sum()), *ends, self._title()))
            columns += [after * of, of.astype(float)]
        whole = [float(np.mean([side[of].mean() for of in of_task.values()])) for side in (before, after)]
        ends = bootstrap_interval(prompts.tolist(), *columns, of=_mean_of_tasks)
        return [Value("Retention", "geneval", split, whole[0], whole[1], "higher", len(prompts), *ends, self._title()), *values]

    def _asked(self) -> dict[str, dict[str, Any]]:
        """What each prompt asks for.

        Raises:
            UserError: a line that lacks prompt or tag, or a clause without class, count or a placed thing before it.
        """
        asked = {}
        for line, told in read_jsonl(Path(self.specs), "prompt", "tag"):
            for i, one in enumerate(_clauses(told)):
                if not isinstance(one.get("class"), str) or not isinstance(one.get("count"), int):
                    raise UserError(f"{self.specs}, line {line}: clause {i + 1} lacks class or count")
                if "position" in one and not 0 <= one["position"][1] < i:
                    raise UserError(f"{self.specs}, line {line}: clause {i + 1} is placed by one that does not come before it")
            asked[told["prompt"]] = told
        return asked

    def _title(self) -> str:
        return f"{self.detector}{f'@{self.revision}' if self.revision else ''} >= {self.threshold}"

    def _detector(self, device: torch.device) -> tuple[Any, Any]:
        """What prepares images, and the network."""
        from transformers import AutoImageProcessor, AutoModelForObjectDetection

        source = {"revision": self.revision, "local_files_only": True}
        model = AutoModelForObjectDetection.from_pretrained(self.detector, use_safetensors=True, **source)
        return AutoImageProcessor.from_pretrained(self.detector, **source), model.eval().to(device)

    @torch.no_grad()
    def _right(
        self, images: Images, asked: Mapping[str, dict[str, Any]], judge: tuple[Any, Any], evidence: MetricInputs
    ) -> np.ndarray:
        """1 or 0 for each image, nan where nothing is asked."""
        prepare, model = judge
        right = []
        pixels = (image for batch in images.batches(32) for image in batch)
        for shot, image in zip(images, pixels, strict=True):
            told = asked.get(shot.prompt)
            if told is None:
                right.append(np.nan)
                continue
            found = model(**prepare(images=[image.numpy()], return_tensors="pt").to(evidence.device))
            least = self.counting_threshold if told["tag"] == "counting" else self.threshold
            [seen] = prepare.post_process_object_detection(found, threshold=least, target_sizes=[tuple(image.shape[:2])])
            things = self._things(told, seen, model.config.id2label)
            right.append(float(fulfils(told, things, partial(self._colors, image, evidence), self.margin)))
        return np.array(right)

    def _things(
        self, told: Mapping[str, Any], seen: Mapping[str, Tensor], labels: Mapping[int, str]
    ) -> dict[str, list[Detection]]:
        """What was found of each class that is asked for, the surest first."""
        found: dict[str, list[Detection]] = {}
        for i in seen["scores"].argsort(descending=True).tolist():
            thing = Detection(tuple(seen["boxes"][i].tolist()), float(seen["scores"][i]))
            found.setdefault(labels[int(seen["labels"][i])], []).append(thing)
        return {one["class"]: found.get(self.names.get(one["class"], one["class"]), [])[: self.most] for one in _clauses(told)}

    def _colors(self, image: Tensor, evidence: MetricInputs, name: str, things: Sequence[Detection]) -> list[str]:
        """The colour of each thing, by CLIP on its box."""
        network = evidence.backbone(self.backbone)
        assert isinstance(network, CLIP)
        network.load(evidence.device)
        seen = torch.cat([network.features(cut_out(image, thing)[None]).cpu() for thing in things])
        return [COLORS[i] for i in (seen @ color_features(network, name).T).argmax(1).tolist()]


@cache
def color_features(network: CLIP, name: str) -> Tensor:
    """Of each of `COLORS` the mean text feature of a thing of that colour, of unit length, (colours, d)."""
    told = network.text([text.format(color=color, name=name) for color in COLORS for text in COLOR_TEXTS])
    return torch.nn.functional.normalize(told.view(len(COLORS), len(COLOR_TEXTS), -1).mean(1), dim=-1)


def _clauses(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*told.get("include", []), *told.get("exclude", [])]


def fulfils(
    told: Mapping[str, Any],
    things: Mapping[str, Sequence[Detection]],
    colors: Callable[[str, Sequence[Detection]], list[str]],
    margin: float,
) -> bool:
    """Whether a picture shows all that is included and nothing that is excluded.

    Args:
        told: a line of the specs: include and exclude, each a list of {class, count}; of those included some have color,
            and position, such as ["left of", 0], the clause by which they are placed.
        things: what was found, by class, the surest first.
        colors: from a class and some of its things to their colours.
        margin: see `places`.
    """
    groups: list[Sequence[Detection]] = []
    for one in told.get("include", []):
        group = things.get(one["class"], [])[: one["count"]]
        if len(group) < one["count"]:
            return False
        if "color" in one and any(color != one["color"] for color in colors(one["class"], group)):
            return False
        if "position" in one:
            place, by = one["position"]
            if not all(place in places(thing, other, margin) for thing in group for other in groups[by]):
                return False
        groups.append(group)
    return all(len(things.get(one["class"], [])) < one["count"] for one in told.get("exclude", []))


def places(thing: Detection, other: Detection, margin: float) -> set[str]:
    """Where one thing is, seen from the other: left of, right of, above, below; two of them if it is askew, none if near.

    The centres' offset, shortened along each axis by `margin` times the sum of both sides, over the offset's length; a
    direction counts where more than half of it points that way.
    """
    a, b = (np.array(one.box).reshape(2, 2) for one in (thing, other))
    offset = a.mean(0) - b.mean(0)
    apart = np.maximum(np.abs(offset) - margin * (np.ptp(a, axis=0) + np.ptp(b, axis=0)), 0) * np.sign(offset)
    if np.abs(apart).max() < 1e-3:
        return set()
    x, y = apart / np.linalg.norm(offset)
    return {name for name, there in (("left of", -x), ("right of", x), ("above", -y), ("below", y)) if there > 0.5}


def cut_out(image: Tensor, thing: Detection) -> Tensor:
    """The part of an image (h, w, 3) in a thing's box, one pixel at least."""
    height, width = image.shape[:2]
    left, top, right, bottom = thing.box
    left, top = min(max(int(left), 0), width - 1), min(max(int(top), 0), height - 1)
    return image[top : max(int(np.ceil(bottom)), top + 1), left : max(int(np.ceil(right)), left + 1)]


def _mean_of_tasks(*means: np.ndarray) -> np.ndarray:
    """From each task's share of right answers among all, and of answers, the mean over tasks of the share among its own."""
    with np.errstate(invalid="ignore"):
        return np.nanmean([right / answers for right, answers in zip(means[::2], means[1::2], strict=True)], axis=0)
