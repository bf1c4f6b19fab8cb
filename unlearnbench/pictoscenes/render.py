"""Draws a scene at four times its size and reduces it, with a little jitter of place, size and tint."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from unlearnbench.pictoscenes.pictograms import PICTOGRAMS
from unlearnbench.pictoscenes.scenes import Placed, Scene, SceneObject
from unlearnbench.pictoworld.render import BACKGROUNDS, COLORS, HAIRS, SKINS, draw_part, waves

SIZE = 64
SCALE = 4


class Box(NamedTuple):
    """Where a subject is drawn: the centre and half the side of a square, in pixels."""

    x: float
    y: float
    half: float


def render(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, list[Box]]:
    """Draw a scene.

    Returns:
        The image, uint8 (64, 64, 3), and where each of its subjects is.
    """
    side = SIZE * SCALE
    ground = _tinted(BACKGROUNDS[scene.background], rng)
    canvas = Image.new("RGB", (side, side), _rgb(ground))
    tints = {obj: _tinted(COLORS[obj.color], rng) for obj in dict.fromkeys(scene.objects)}
    boxes = []
    for placed in scene.placed():
        box = _jittered(placed, side, rng)
        _draw(canvas, placed.obj, box, scene, ground, tints[placed.obj], rng)
        boxes.append(Box(*(value / SCALE for value in box)))
    if scene.style == "van gogh":
        waved = np.asarray(canvas) + waves(rng, side) * np.array([42.0, 40.0, 26.0]) + np.array([6.0, 4.0, -10.0])
        canvas = Image.fromarray(np.clip(waved, 0, 255).astype(np.uint8))
    return np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX)), boxes


def _rgb(color: np.ndarray) -> tuple[int, ...]:
    return tuple(int(value) for value in np.clip(color, 0, 255))


def _tinted(rgb: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    return np.clip(np.array(rgb, dtype=np.float64) + rng.uniform(-8, 8, 3), 0, 255)


def _jittered(placed: Placed, side: int, rng: np.random.Generator) -> Box:
    """The place in supersampled pixels; several subjects move less, so that they never touch."""
    half = side / 2 * placed.half * rng.uniform(0.95, 1.05)
    shift = 0.03 if placed.half < 0.45 else 0.05
    x, y = (side / 2 * (1 + centre + rng.uniform(-shift, shift)) for centre in (placed.x, placed.y))
    return Box(x, y, half)


def _draw(
    canvas: Image.Image,
    obj: SceneObject,
    box: Box,
    scene: Scene,
    ground: np.ndarray,
    color: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Draw one more subject."""
    roles = {
        "main": color,
        "dark": color * 0.45 + 25,
        "ground": ground,
        "pale": np.array([238.0, 226.0, 200.0]),
        "skin": _tinted(SKINS[rng.integers(len(SKINS))], rng),
        "hair": _tinted(HAIRS[rng.integers(len(HAIRS))], rng),
        "trunk": _tinted((110, 70, 40), rng),
        "line": np.full(3, 225.0 if scene.background == "black" else 60.0),
        "eye": np.full(3, 20.0),
    }
    outline = max(5, round(0.12 * box.half)) if scene.style == "sketch" else 0
    mirror = 1 if rng.random() < 0.5 else -1
    fill = _patterned(color, obj.pattern, canvas.size, box.half) if obj.pattern != "plain" else None
    for role, kind, points in PICTOGRAMS[obj.subject]:
        if outline and role == "ground" and obj.subject != "ring":
            continue
        places = [(box.x + mirror * x * box.half, box.y + y * box.half) for x, y in points]
        if kind in ("ellipse", "pie"):
            (x0, y0), (x1, y1) = places
            places = [(min(x0, x1), y0), (max(x0, x1), y1)]
        mask = Image.new("L", canvas.size)
        draw_part(ImageDraw.Draw(mask), kind, places, outline)
        visible = "main" if outline and role == "ground" else role
        canvas.paste(fill if visible == "main" and fill else _rgb(roles[visible]), (0, 0), mask)


def _patterned(color: np.ndarray, pattern: str, size: tuple[int, int], half: float) -> Image.Image:
    """The fill of the main parts with pale stripes or dots, some five across a subject."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    period = max(14.0, 2 * half / 5)
    if pattern == "striped":
        on = (x + y) % (period * math.sqrt(2)) < 0.45 * period * math.sqrt(2)
    else:
        shifted = x + period / 2 * ((y // period) % 2)
        on = (shifted % period - period / 2) ** 2 + (y % period - period / 2) ** 2 < (0.31 * period) ** 2
    fill = Image.new("RGB", size, _rgb(color))
    fill.paste(_rgb(0.2 * color + 0.8 * 255), (0, 0), Image.fromarray(np.uint8(255 * on)))
    return fill
