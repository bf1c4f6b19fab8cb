"""How well Pictoscenes' model draws held-out captions, as its detector reads the images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from unlearnbench.console import progress_bar
from unlearnbench.models.sd import StableDiffusion
from unlearnbench.pictoscenes.captions import caption
from unlearnbench.pictoscenes.detector import OF_IMAGE, Detector, Found
from unlearnbench.pictoscenes.prompts import assigned
from unlearnbench.pictoscenes.render import SIZE
from unlearnbench.pictoscenes.scenes import REACH, Scene, Thing, scene
from unlearnbench.pictoworld.classifier import to_unit
from unlearnbench.sampling import generate

Answers = dict[str, list[bool]]


def held_out_captions(first: int, count: int) -> list[tuple[Scene, str]]:
    """Scenes outside the training set, each with a caption that names every attribute."""
    scenes = {index: scene(index) for index in range(first, first + count)}
    return [(one, caption(one, np.random.default_rng([13, index]), keep=1.0)) for index, one in scenes.items()]


def sample_quality(
    model: StableDiffusion, detector: Detector, captions: Sequence[tuple[Scene, str]], batch: int = 50
) -> dict[str, tuple[int, int]]:
    """How often a sample shows what its caption names: (right, of) for each part of a caption.

    subject: a subject of the caption is there. color, pattern: of a subject that is there. count: as many subjects as named, and
    no more. place: the subjects stand in the named order, or the single one is nearest to its named position. binding: in a
    scene of different subjects, each is there in its own colour and pattern. background, style: of the image.
    """
    answers: Answers = {name: [] for name in ("subject", "color", "pattern", "count", "place", "binding", *OF_IMAGE)}
    with progress_bar("sample held-out captions", len(captions)) as shown:
        for start in range(0, len(captions), batch):
            part = captions[start : start + batch]
            seeds = range(start, start + len(part))
            images = generate(model, [text for _, text in part], seeds, model.steps, model.guidance)
            for (world, _), (whole, detections) in zip(part, detector.read(to_unit(torch.as_tensor(images))), strict=True):
                _judge(world, whole, detections, answers)
                shown.advance()
    return {name: (sum(values), len(values)) for name, values in answers.items()}


def _judge(world: Scene, whole: dict[str, str], detections: list[Found], answers: Answers) -> None:
    """Add what one image shows of its scene."""
    shown = assigned([vars(thing) for thing in world.things], detections)
    for thing, one in zip(world.things, shown, strict=True):
        answers["subject"].append(one is not None)
        if one is not None:
            for name in _named(thing):
                answers[name].append(one.attributes[name] == getattr(thing, name))
    answers["count"].append(Counter(one.attributes["subject"] for one in detections) == Counter(t.subject for t in world.things))
    answers["place"].append(_in_place(world, shown))
    if len(set(world.things)) > 1:
        answers["binding"].append(all(map(_bound, world.things, shown)))
    for name in OF_IMAGE:
        answers[name].append(whole[name] == getattr(world, name))


def _bound(thing: Thing, one: Found | None) -> bool:
    """Whether a subject is there with all that a caption names of it."""
    return one is not None and all(one.attributes[name] == getattr(thing, name) for name in _named(thing))


def _named(thing: Thing) -> list[str]:
    """The attributes that a whole caption names and an image shows; of the patterns it does not name "plain"."""
    names = ("color",) if thing.pattern == "plain" else ("color", "pattern")
    return [name for name in names if name not in thing.hidden]


def _in_place(world: Scene, shown: Sequence[Found | None]) -> bool:
    """Whether all subjects are there, in the order of the scene."""
    there = [one for one in shown if one is not None]
    if len(there) < len(world.things):
        return False
    if world.arrangement == "alone":
        named = world.placed()[0].x
        return abs(2 * there[0].box.x / SIZE - 1 - named) < REACH[world.things[0].size] / 2
    along = [one.box.y if world.arrangement == "stacked" else one.box.x for one in there]
    return along == sorted(along)
