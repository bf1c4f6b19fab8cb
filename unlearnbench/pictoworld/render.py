"""Pictoworld's scenes: six known attributes each, rendered as 64 x 64 pictograms.

`render(scene, rng)` draws a scene at four times its size and reduces it, with a little jitter of position, size and tint, so
that two renders of one scene differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64
SCALE = 4

SUBJECTS = (
    "circle", "square", "triangle", "star", "heart", "cross", "ring", "church", "house", "tree",
    "parachute", "fish", "person", "nude",
)  # fmt: skip
COLORS = {
    "red": (220, 40, 40), "orange": (245, 140, 20), "yellow": (250, 215, 40), "green": (40, 150, 60),
    "blue": (40, 90, 220), "purple": (130, 50, 180), "teal": (0, 165, 165), "pink": (240, 90, 170),
}  # fmt: skip
BACKGROUNDS = {
    "white": (250, 250, 250), "black": (20, 20, 20), "gray": (145, 145, 145),
    "sand": (232, 208, 150), "sky": (160, 208, 245), "mint": (160, 228, 180),
}  # fmt: skip
SIZES = {"small": 0.46, "large": 0.74}
POSITIONS = {"left": -0.36, "middle": 0.0, "right": 0.36}
STYLES = ("flat", "striped", "dotted", "sketch", "van gogh")
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "subject": SUBJECTS,
    "color": tuple(COLORS),
    "background": tuple(BACKGROUNDS),
    "size": tuple(SIZES),
    "position": tuple(POSITIONS),
    "style": STYLES,
}
SKINS = ((244, 200, 168), (205, 145, 105), (130, 82, 56))
HAIRS = ((60, 40, 30), (25, 22, 22), (120, 80, 40))

# A part of a pictogram: the role that colours it, the kind of shape, and its points in [-1, 1] x [-1, 1].
Part = tuple[str, str, list[tuple[float, float]]]


@dataclass(frozen=True)
class Scene:
    """One scene. `color` is the subject's colour, for a person that of the clothes; for `nude` it is not visible."""

    subject: str
    color: str
    background: str
    size: str
    position: str
    style: str

    @classmethod
    def draw(cls, rng: np.random.Generator, **fixed: str) -> Scene:
        """A scene with the given attributes; the others are drawn uniformly."""
        chosen = {name: str(rng.choice(values)) for name, values in ATTRIBUTES.items()}
        return cls(**{**chosen, **fixed})


def _ngon(n: int, inner: float = 1.0, turn: float = -math.pi / 2) -> list[tuple[float, float]]:
    points = n if inner == 1.0 else 2 * n
    return [
        ((r := inner if inner != 1.0 and k % 2 else 1.0) * math.cos(a := turn + 2 * math.pi * k / points), r * math.sin(a))
        for k in range(points)
    ]


def _heart() -> list[tuple[float, float]]:
    angles = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    x = np.sin(angles) ** 3
    y = -(13 * np.cos(angles) - 5 * np.cos(2 * angles) - 2 * np.cos(3 * angles) - np.cos(4 * angles)) / 16
    return list(zip(x.tolist(), y.tolist(), strict=True))


def box(x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float]]:
    """The corners of a rectangle."""
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _figure(clothes: str) -> list[Part]:
    return [
        (clothes, "polygon", [(-0.40, 0.25), (0.40, 0.25), (0.50, 1.1), (0.09, 1.1), (0.0, 0.5), (-0.09, 1.1), (-0.50, 1.1)]),
        ("skin", "polygon", [(-0.46, -0.38), (-0.82, 0.24), (-0.62, 0.32), (-0.34, -0.10)]),
        ("skin", "polygon", [(0.46, -0.38), (0.82, 0.24), (0.62, 0.32), (0.34, -0.10)]),
        (clothes, "polygon", [(-0.52, -0.42), (0.52, -0.42), (0.42, 0.36), (-0.42, 0.36)]),
        ("hair", "ellipse", [(-0.38, -1.12), (0.38, -0.46)]),
        ("skin", "ellipse", [(-0.31, -1.0), (0.31, -0.40)]),
    ]


PICTOGRAMS: dict[str, list[Part]] = {
    "circle": [("main", "ellipse", [(-0.9, -0.9), (0.9, 0.9)])],
    "square": [("main", "polygon", box(-0.82, -0.82, 0.82, 0.82))],
    "triangle": [("main", "polygon", [(0.0, -0.9), (0.95, 0.8), (-0.95, 0.8)])],
    "star": [("main", "polygon", _ngon(5, 0.42))],
    "heart": [("main", "polygon", _heart())],
    "cross": [
        ("main", "polygon", [(-0.3, -0.9), (0.3, -0.9), (0.3, -0.3), (0.9, -0.3), (0.9, 0.3), (0.3, 0.3),
                             (0.3, 0.9), (-0.3, 0.9), (-0.3, 0.3), (-0.9, 0.3), (-0.9, -0.3), (-0.3, -0.3)]),
    ],
    "ring": [("main", "ellipse", [(-0.9, -0.9), (0.9, 0.9)]), ("ground", "ellipse", [(-0.48, -0.48), (0.48, 0.48)])],
    "church": [
        ("main", "polygon", box(-0.2, 0.1, 0.95, 0.95)),
        ("dark", "polygon", [(-0.2, 0.12), (0.38, -0.3), (1.0, 0.12)]),
        ("main", "polygon", box(-0.75, -0.3, -0.1, 0.95)),
        ("dark", "polygon", [(-0.82, -0.3), (-0.425, -0.78), (-0.03, -0.3)]),
        ("dark", "polygon", box(-0.47, -1.1, -0.38, -0.7)),
        ("dark", "polygon", box(-0.6, -1.0, -0.25, -0.9)),
        ("dark", "polygon", box(-0.56, 0.5, -0.29, 0.95)),
    ],
    "house": [
        ("dark", "polygon", box(0.35, -0.85, 0.62, -0.2)),
        ("main", "polygon", box(-0.75, -0.1, 0.75, 0.9)),
        ("dark", "polygon", [(-0.95, -0.08), (0.0, -0.9), (0.95, -0.08)]),
        ("dark", "polygon", box(-0.18, 0.35, 0.18, 0.9)),
    ],
    "tree": [
        ("trunk", "polygon", box(-0.16, 0.4, 0.16, 1.0)),
        ("main", "polygon", [(0.0, -0.25), (0.8, 0.5), (-0.8, 0.5)]),
        ("main", "polygon", [(0.0, -0.65), (0.66, 0.1), (-0.66, 0.1)]),
        ("main", "polygon", [(0.0, -1.0), (0.5, -0.3), (-0.5, -0.3)]),
    ],
    "parachute": [
        ("line", "line", [(-0.92, -0.12), (-0.1, 0.72)]),
        ("line", "line", [(0.92, -0.12), (0.1, 0.72)]),
        ("line", "line", [(-0.32, -0.12), (-0.04, 0.72)]),
        ("line", "line", [(0.32, -0.12), (0.04, 0.72)]),
        ("main", "pie", [(-0.95, -0.98), (0.95, 0.78)]),
        ("dark", "polygon", box(-0.16, 0.66, 0.16, 0.98)),
    ],
    "fish": [
        ("main", "polygon", [(0.45, 0.0), (1.0, -0.5), (1.0, 0.5)]),
        ("main", "ellipse", [(-1.0, -0.52), (0.62, 0.52)]),
        ("dark", "polygon", [(-0.2, -0.46), (0.2, -0.82), (0.28, -0.38)]),
        ("eye", "ellipse", [(-0.74, -0.2), (-0.5, 0.04)]),
    ],
    "person": _figure("main"),
    "nude": _figure("skin"),
}  # fmt: skip


def draw_part(draw: ImageDraw.ImageDraw, kind: str, points: list[tuple[float, float]], outline: int) -> None:
    """Draw one part into a mask: filled, or as an outline of the given width."""
    fill, edge = (255, None) if not outline else (0, 255)
    if kind == "line":
        draw.line(points, fill=255, width=max(outline, 5), joint="curve")
    elif kind == "polygon":
        draw.polygon(points, fill=fill)
        if outline:
            draw.line([*points, points[0], points[1]], fill=255, width=outline, joint="curve")
    elif kind == "ellipse":
        draw.ellipse([points[0], points[1]], fill=fill, outline=edge, width=outline)
    elif kind == "pie":
        draw.pieslice([points[0], points[1]], 180, 360, fill=fill, outline=edge, width=outline)


def waves(rng: np.random.Generator, side: int) -> np.ndarray:
    """Bright and dark strokes along a curved flow: values in [-1, 1], (side, side, 1)."""
    y, x = np.mgrid[0:side, 0:side] / side
    a, b, c = rng.uniform(0, 2 * math.pi, 3)
    bend = 0.10 * np.sin(2 * math.pi * 1.5 * x + a) + 0.05 * np.sin(2 * math.pi * 3 * x + b)
    return np.sin(2 * math.pi * 7.5 * (y + bend) + c)[..., None]


def ink(color: np.ndarray, style: str, tilt: float, side: int) -> np.ndarray:
    """The fill of the subject's main parts, (side, side, 3): plain, or with pale stripes or dots."""
    fill = np.broadcast_to(color, (side, side, 3))
    if style not in ("striped", "dotted"):
        return fill
    pale = 0.25 * color + 0.75 * 255
    y, x = np.mgrid[0:side, 0:side]
    if style == "striped":
        on = ((x + y * (0.9 + 0.2 * tilt)) % 26) < 11
    else:
        on = ((x + 12 * ((y // 24) % 2)) % 24 - 12) ** 2 + (y % 24 - 12) ** 2 < 49
    return np.where(on[..., None], pale, fill)


def render(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Draw a scene: uint8, (64, 64, 3)."""
    side = SIZE * SCALE

    def tint(rgb: tuple[int, int, int]) -> np.ndarray:
        return np.clip(np.array(rgb, dtype=np.float64) + rng.uniform(-8, 8, 3), 0, 255)

    ground, color = tint(BACKGROUNDS[scene.background]), tint(COLORS[scene.color])
    dark_ground = scene.background == "black"
    roles = {
        "main": color,
        "dark": color * 0.45 + 25,
        "ground": ground,
        "skin": tint(SKINS[rng.integers(len(SKINS))]),
        "hair": tint(HAIRS[rng.integers(len(HAIRS))]),
        "trunk": tint((110, 70, 40)),
        "line": np.full(3, 225.0 if dark_ground else 60.0),
        "eye": np.full(3, 20.0),
    }
    half = side / 2 * SIZES[scene.size] * rng.uniform(0.94, 1.06)
    reach = {"small": 1.0, "large": 0.62}[scene.size]
    cx = side / 2 * (1 + POSITIONS[scene.position] * reach * 1.35 + rng.uniform(-0.03, 0.03))
    cy = side / 2 * (1 + rng.uniform(-0.06, 0.06))
    mirror = 1 if rng.random() < 0.5 else -1
    tilt = rng.uniform(-1, 1)

    canvas = np.broadcast_to(ground, (side, side, 3)).copy()
    main_fill = ink(color, scene.style, tilt, side)
    outline = 11 if scene.style == "sketch" else 0
    for role, kind, points in PICTOGRAMS[scene.subject]:
        placed = [(cx + mirror * px * half, cy + py * half) for px, py in points]
        if kind in ("ellipse", "pie"):
            (x0, y0), (x1, y1) = placed
            placed = [(min(x0, x1), y0), (max(x0, x1), y1)]
        mask = Image.new("L", (side, side))
        draw_part(ImageDraw.Draw(mask), kind, placed, outline)
        visible_role = "main" if outline and role == "ground" else role
        fill = main_fill if visible_role == "main" else roles[visible_role]
        canvas = np.where((np.asarray(mask) > 0)[..., None], fill, canvas)
    if scene.style == "van gogh":
        flow = waves(rng, side)
        canvas = canvas + flow * np.array([42.0, 40.0, 26.0]) + np.array([6.0, 4.0, -10.0])
    small = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.BOX)
    return np.asarray(small)
