"""The pictograms of Pictoscenes' subjects: Pictoworld's, and more that are easily confused with them."""

from __future__ import annotations

import math

from unlearnbench.pictoworld.render import PICTOGRAMS as OF_PICTOWORLD
from unlearnbench.pictoworld.render import Part, box


def _mirrored(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(-x, y) for x, y in points]


def _ears(points: list[tuple[float, float]], role: str = "main") -> list[Part]:
    return [(role, "polygon", points), (role, "polygon", _mirrored(points))]


def _eyes(x: float, y: float, radius: float = 0.12) -> list[Part]:
    return [("eye", "ellipse", [(s * x - radius, y - radius), (s * x + radius, y + radius)]) for s in (-1, 1)]


def _petals(count: int, distance: float, radius: float) -> list[Part]:
    angles = [2 * math.pi * k / count - math.pi / 2 for k in range(count)]
    centres = [(distance * math.cos(a), distance * math.sin(a) - 0.3) for a in angles]
    return [("main", "ellipse", [(x - radius, y - radius), (x + radius, y + radius)]) for x, y in centres]


PICTOGRAMS: dict[str, list[Part]] = {
    **OF_PICTOWORLD,
    "mosque": [
        ("main", "polygon", box(-0.62, 0.2, 0.62, 0.95)),
        ("dark", "pie", [(-0.58, -0.42), (0.58, 0.82)]),
        ("dark", "polygon", box(-0.04, -0.72, 0.04, -0.35)),
        *[
            part
            for left in (-0.98, 0.74)
            for part in (
                ("main", "polygon", box(left, -0.45, left + 0.24, 0.95)),
                ("dark", "polygon", [(left - 0.05, -0.45), (left + 0.12, -0.92), (left + 0.29, -0.45)]),
            )
        ],
        ("dark", "pie", [(-0.2, 0.45), (0.2, 1.45)]),
    ],
    "castle": [
        ("main", "polygon", box(-0.55, -0.1, 0.55, 0.95)),
        *[("main", "polygon", box(left, -0.32, left + 0.2, -0.05)) for left in (-0.3, 0.1)],
        *[
            part
            for left in (-0.98, 0.5)
            for part in (
                ("main", "polygon", box(left, -0.6, left + 0.48, 0.95)),
                ("main", "polygon", box(left, -0.85, left + 0.14, -0.55)),
                ("main", "polygon", box(left + 0.34, -0.85, left + 0.48, -0.55)),
                ("dark", "polygon", box(left + 0.17, -0.3, left + 0.31, 0.05)),
            )
        ],
        ("dark", "polygon", box(-0.2, 0.4, 0.2, 0.95)),
    ],
    "whale": [
        ("main", "pie", [(-1.0, -0.6), (0.72, 1.0)]),
        ("main", "polygon", [(-1.0, 0.18), (0.72, 0.18), (0.45, 0.55), (-0.75, 0.55)]),
        ("main", "polygon", [(0.5, 0.3), (0.78, -0.2), (0.62, -0.62), (0.88, -0.42), (1.12, -0.62), (0.98, -0.15), (0.78, 0.45)]),
        ("line", "line", [(-0.42, -0.62), (-0.42, -0.95)]),
        ("line", "line", [(-0.42, -0.95), (-0.66, -0.8)]),
        ("line", "line", [(-0.42, -0.95), (-0.18, -0.8)]),
        ("eye", "ellipse", [(-0.76, 0.0), (-0.58, 0.18)]),
    ],
    "cat": [
        *_ears([(-0.78, -0.95), (-0.1, -0.55), (-0.72, -0.05)]),
        ("main", "ellipse", [(-0.82, -0.65), (0.82, 0.85)]),
        *_eyes(0.36, -0.02),
        ("dark", "polygon", [(-0.14, 0.24), (0.14, 0.24), (0.0, 0.42)]),
        *[("line", "line", [(s * 0.3, 0.4), (s * 1.05, y)]) for s in (-1, 1) for y in (0.28, 0.56)],
    ],
    "dog": [
        ("main", "ellipse", [(-0.66, -0.85), (0.66, 0.6)]),
        *_ears([(-0.5, -0.8), (-0.95, -0.6), (-1.0, 0.35), (-0.7, 0.45), (-0.5, -0.1)], "dark"),
        ("main", "ellipse", [(-0.42, -0.05), (0.42, 0.95)]),
        *_eyes(0.3, -0.25),
        ("eye", "ellipse", [(-0.22, 0.1), (0.22, 0.42)]),
    ],
    "wolf": [
        *_ears([(-0.85, -1.0), (-0.25, -0.5), (-0.8, 0.0)]),
        ("main", "polygon", [(-0.75, -0.55), (0.75, -0.55), (1.0, 0.2), (0.35, 0.5), (0.0, 1.0), (-0.35, 0.5), (-1.0, 0.2)]),
        ("dark", "polygon", [(-0.22, -0.5), (0.22, -0.5), (0.14, 0.55), (-0.14, 0.55)]),
        *_eyes(0.42, -0.12),
        ("eye", "polygon", [(-0.16, 0.62), (0.16, 0.62), (0.0, 0.95)]),
    ],
    "bird": [
        ("main", "polygon", [(0.3, -0.05), (1.05, -0.35), (0.98, 0.2), (0.4, 0.35)]),
        ("main", "ellipse", [(-0.75, -0.35), (0.6, 0.65)]),
        ("main", "ellipse", [(-0.9, -0.8), (-0.2, -0.1)]),
        ("trunk", "polygon", [(-0.85, -0.55), (-1.15, -0.38), (-0.85, -0.25)]),
        ("dark", "polygon", [(-0.3, -0.02), (0.45, 0.0), (0.1, 0.45)]),
        ("line", "line", [(-0.2, 0.6), (-0.2, 1.0)]),
        ("line", "line", [(0.12, 0.6), (0.12, 1.0)]),
        ("eye", "ellipse", [(-0.68, -0.56), (-0.5, -0.38)]),
    ],
    "boat": [
        ("dark", "polygon", [(-1.0, 0.3), (1.0, 0.3), (0.65, 0.9), (-0.65, 0.9)]),
        ("line", "line", [(-0.05, -1.0), (-0.05, 0.3)]),
        ("main", "polygon", [(0.05, -0.95), (0.9, 0.18), (0.05, 0.18)]),
        ("main", "polygon", [(-0.15, -0.7), (-0.15, 0.18), (-0.8, 0.18)]),
    ],
    "car": [
        ("main", "polygon", [(-0.6, -0.05), (-0.38, -0.55), (0.38, -0.55), (0.62, -0.05)]),
        ("ground", "polygon", [(-0.42, -0.08), (-0.28, -0.42), (-0.04, -0.42), (-0.04, -0.08)]),
        ("ground", "polygon", [(0.06, -0.08), (0.06, -0.42), (0.3, -0.42), (0.44, -0.08)]),
        ("main", "polygon", box(-1.0, -0.08, 1.0, 0.45)),
        *[("eye", "ellipse", [(x - 0.24, 0.2), (x + 0.24, 0.68)]) for x in (-0.52, 0.52)],
    ],
    "flower": [
        ("trunk", "polygon", box(-0.06, 0.1, 0.06, 1.0)),
        *_petals(6, 0.42, 0.3),
        ("dark", "ellipse", [(-0.24, -0.54), (0.24, -0.06)]),
    ],
    "balloon": [
        ("line", "line", [(-0.45, 0.1), (-0.14, 0.72)]),
        ("line", "line", [(0.45, 0.1), (0.14, 0.72)]),
        ("main", "ellipse", [(-0.7, -1.0), (0.7, 0.42)]),
        ("trunk", "polygon", box(-0.22, 0.68, 0.22, 1.0)),
    ],
    "moon": [
        ("main", "ellipse", [(-0.85, -0.9), (0.85, 0.9)]),
        ("ground", "ellipse", [(-0.3, -0.85), (1.15, 0.6)]),
    ],
    "cup": [
        ("dark", "ellipse", [(0.25, -0.35), (0.98, 0.45)]),
        ("ground", "ellipse", [(0.38, -0.16), (0.78, 0.26)]),
        ("main", "polygon", [(-0.75, -0.6), (0.55, -0.6), (0.4, 0.75), (-0.6, 0.75)]),
    ],
    "mushroom": [
        ("pale", "polygon", [(-0.22, 0.0), (0.22, 0.0), (0.34, 0.95), (-0.34, 0.95)]),
        ("main", "pie", [(-0.95, -0.95), (0.95, 1.05)]),
    ],
}  # fmt: skip
"""The parts of each subject, drawn in order: the role that colours it, the kind of shape, its points in [-1, 1] x [-1, 1]."""

SUBJECTS = tuple(PICTOGRAMS)
