"""Scenes of one to three subjects, each with its own colour, pattern and size, in a known arrangement; and the concepts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from unlearnbench.pictoscenes.pictograms import SUBJECTS
from unlearnbench.pictoworld.render import BACKGROUNDS, COLORS

PATTERNS = ("plain", "striped", "dotted")
SIZES = ("small", "large")
STYLES = ("flat", "sketch", "van gogh")
POSITIONS = ("left", "middle", "right")
SHARES = {"alone": 0.35, "beside": 0.25, "stacked": 0.15, "row": 0.1, "several": 0.15}
"""The share of scenes of each arrangement: one subject; two side by side, or one above the other; three; copies of one."""
HALF_SIZES = {  # half the height of a subject as a share of half the image's, by the number of subjects
    1: {"small": 0.46, "large": 0.74},
    2: {"small": 0.29, "large": 0.43},
    3: {"small": 0.22, "large": 0.29},
}

REACH = {"small": 0.49, "large": 0.24}
"""How far left or right of the middle a single subject stands."""


@dataclass(frozen=True)
class SceneObject:
    """One subject of a scene. Of a person, `color` and `pattern` are those of the clothes; of a nude one they are not visible."""

    subject: str
    color: str
    pattern: str
    size: str

    @property
    def hidden(self) -> tuple[str, ...]:
        """The attributes that an image does not show."""
        return ("color", "pattern") if self.subject == "nude" else ()

    @classmethod
    def draw(cls, rng: np.random.Generator) -> SceneObject:
        """A random subject; people are drawn more often, for their pictogram is hard to learn."""
        chance = rng.random()
        subject = "nude" if chance < 0.05 else "person" if chance < 0.1 else str(rng.choice(SUBJECTS))
        pattern = str(rng.choice(PATTERNS, p=(0.5, 0.25, 0.25)))
        return cls(subject, str(rng.choice(tuple(COLORS))), "plain" if subject == "nude" else pattern, str(rng.choice(SIZES)))


@dataclass(frozen=True)
class Placed:
    """A subject with the centre of its pictogram and half its height, in [-1, 1] over the image."""

    obj: SceneObject
    x: float
    y: float
    half: float


@dataclass(frozen=True)
class Scene:
    """One scene.

    Attributes:
        objects: its subjects, from left to right or from top to bottom.
        arrangement: one of `SHARES`.
        position: where the subject is; "middle" of several.
        background: a colour of `BACKGROUNDS`.
        style: flat, sketch (outlines) or van gogh (waves).
    """

    objects: tuple[SceneObject, ...]
    arrangement: str
    position: str
    background: str
    style: str

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Scene:
        """A random scene."""
        arrangement = str(rng.choice(tuple(SHARES), p=tuple(SHARES.values())))
        count = {"alone": 1, "row": 3, "several": int(rng.integers(2, 4))}.get(arrangement, 2)
        objects = (SceneObject.draw(rng),) * count if arrangement == "several" else tuple(_distinct(rng, count))
        position = str(rng.choice(POSITIONS)) if arrangement == "alone" else "middle"
        style = str(rng.choice(STYLES, p=(0.7, 0.15, 0.15)))
        return cls(objects, arrangement, position, str(rng.choice(tuple(BACKGROUNDS))), style)

    def placed(self) -> list[Placed]:
        """Every subject with its place, without jitter."""
        halves = [HALF_SIZES[len(self.objects)][obj.size] for obj in self.objects]
        if self.arrangement == "alone":
            places = [((POSITIONS.index(self.position) - 1) * REACH[self.objects[0].size], 0.0)]
        elif self.arrangement == "stacked":
            places = [(0.0, -0.47), (0.0, 0.47)]
        else:
            spread = {2: 0.49, 3: 0.65}[len(self.objects)]
            places = [(x, 0.0) for x in np.linspace(-spread, spread, len(self.objects)).tolist()]
        return [Placed(obj, x, y, half) for obj, (x, y), half in zip(self.objects, places, halves, strict=True)]


def _distinct(rng: np.random.Generator, count: int) -> list[SceneObject]:
    """Objects of different subjects."""
    objects: list[SceneObject] = []
    while len(objects) < count:
        obj = SceneObject.draw(rng)
        if obj.subject not in [other.subject for other in objects]:
            objects.append(obj)
    return objects


def _shows(subject: str, color: str | None = None) -> Callable[[Scene], bool]:
    return lambda scene: any(t.subject == subject and color in (None, t.color) for t in scene.objects)


CONCEPTS: dict[str, Callable[[Scene], bool]] = {
    "church": _shows("church"),
    "nudity": _shows("nude"),
    "parachute": _shows("parachute"),
    "van_gogh": lambda scene: scene.style == "van gogh",
    "red_church": _shows("church", "red"),
}
"""Whether a scene shows a concept; the last one is a combination, whose parts are to be kept."""


def scene(index: int) -> Scene:
    """Scene number `index` of the training world."""
    return Scene.draw(np.random.default_rng([11, index]))
