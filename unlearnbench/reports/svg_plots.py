"""Geometry of the report's interactive plots, in a drawing 440 units wide; the template writes it as SVG.

matplotlib does not draw these. In the page each point is an element that lights up with its row of the summary, has a
tooltip and takes the colours of the light or dark theme; and a report needs no matplotlib, which is an optional extra.
What is drawn (points, intervals, axis labels) comes from `plots`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from unlearnbench.reports.plots import LOWEST_Y, Point, off_scale, run_points, y_label
from unlearnbench.results.intervals import has_width
from unlearnbench.results.run import Run

WIDTH, HEIGHT, LEFT, BOTTOM = 440, 330, 46, 42
CHARACTER_WIDTH, LINE_HEIGHT = 6.4, 13  # as wide as the page draws text on a phone
LABEL_OFFSETS = (
    (6, -7, "start"), (6, 15, "start"), (-6, -7, "end"), (-6, 15, "end"), (10, 4, "start"), (-10, 4, "end"),
    (0, -10, "middle"), (0, 19, "middle"),
)  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """Maps values from `low` to `high` to coordinates from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The coordinate of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[tuple[float, str]]:
        """Coordinates and labels at round values: steps of 1, 2 or 5 times a power of ten.

        Examples:
            >>> Axis(0, 1, 0, 100).ticks()
            [(0.0, '0'), (20.0, '0.2'), (40.0, '0.4'), (60.0, '0.6'), (80.0, '0.8'), (100.0, '1')]
        """
        rough = (self.high - self.low) / most
        power = 10 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [(round(self.at(i * step), 1), f"{round(i * step, 12):g}") for i in range(first, last + 1)]


class LabelPlace(NamedTuple):
    """Where a label stands: coordinates and SVG's text-anchor."""

    x: float
    y: float
    anchor: str


@dataclass(frozen=True)
class Mark:
    """A run as it is drawn.

    Attributes:
        index: the run's place in the report.
        label: its name.
        tooltip: its name and numbers.
        x: coordinate of the point.
        y: likewise.
        x_interval: coordinates of the ends of its horizontal interval.
        y_interval: and of its vertical one.
        label_place: None where no free place is left; the tooltip still names the point.
        off_scale: whether the point lies below the plot; it is marked at the edge, and its label has the value.
        cut: whether its vertical interval reaches below the plot.
    """

    index: int
    label: str
    tooltip: str
    x: float
    y: float
    x_interval: tuple[float, float]
    y_interval: tuple[float, float]
    label_place: LabelPlace | None
    off_scale: bool = False
    cut: bool = False


@dataclass(frozen=True)
class Plane:
    """Forgetting against integrity for the runs of one concept."""

    concept: str
    y_label: str
    x: Axis
    y: Axis
    marks: list[Mark]


@dataclass(frozen=True)
class Histogram:
    """Distances of one split's images.

    Attributes:
        split: the split.
        mean: the mean distance.
        mean_at: its coordinate.
        bars: coordinate, width, height from 0 to 1, and tooltip of each bar that is not empty.
    """

    split: str
    mean: float
    mean_at: float
    bars: list[tuple[float, float, float, str]]


class Curve(NamedTuple):
    """A loss curve: its axes, and coordinates and tooltip of each of its points."""

    x: Axis
    y: Axis
    points: list[tuple[float, float, str]]


def planes(runs: Sequence[Run], labels: Sequence[str]) -> list[Plane]:
    """Forgetting against integrity, one plane for each concept that has a point."""
    result = []
    for concept in dict.fromkeys(run.concept for run in runs):
        indices = [i for i, run in enumerate(runs) if run.concept == concept]
        metric, points = run_points([runs[i] for i in indices], [labels[i] for i in indices])
        if points:
            result.append(_plane(concept, metric, [replace(point, index=indices[point.index]) for point in points]))
    return result


def _plane(concept: str, metric: str, points: Sequence[Point]) -> Plane:
    x = Axis(-0.02, 1.02, LEFT, WIDTH - 12)
    lowest = min(point.y_interval[0] for point in points)
    y = Axis(min(0.0, max(lowest, LOWEST_Y)) - 0.04, 1.04, HEIGHT - BOTTOM, 10)
    coordinates = [(x.at(point.x), y.at(max(point.y, y.low))) for point in points]
    labels = [" ".join(filter(None, (point.label, off_scale(point.y)))) for point in points]
    places = place_labels(coordinates, labels, (LEFT, WIDTH), (6, HEIGHT - BOTTOM))
    marks = []
    for point, label, (px, py), place in zip(points, labels, coordinates, places, strict=True):
        left, right = (x.at(value) for value in point.x_interval)
        bottom, top = (y.at(max(value, y.low)) for value in point.y_interval)
        edges = bool(off_scale(point.y)), point.y_interval[0] < y.low
        marks.append(Mark(point.index, label, _tooltip(point, metric), px, py, (left, right), (bottom, top), place, *edges))
    return Plane(concept, y_label(metric), x, y, marks)


def _tooltip(point: Point, metric: str) -> str:
    forgotten, integrity = (
        f"{value:.3f}" + (f" ({low:.3f} to {high:.3f})" if has_width(low, high) else "")
        for value, (low, high) in ((point.x, point.x_interval), (point.y, point.y_interval))
    )
    return f"{point.label}\nforgotten {forgotten}\n{metric} {integrity}"


def place_labels(
    points: Sequence[tuple[float, float]], labels: Sequence[str], x_range: tuple[float, float], y_range: tuple[float, float]
) -> list[LabelPlace | None]:
    """A place beside each point where its label overlaps no point and no other label and stays in the plot, or None."""
    boxes = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    places: list[LabelPlace | None] = []
    for point, label in zip(points, labels, strict=True):
        candidates = [_label_box(point, label, *offset) for offset in LABEL_OFFSETS]
        place, box = next(
            ((place, box) for place, box in candidates if _inside(box, x_range, y_range) and not _overlaps(box, boxes)),
            (None, None),
        )
        places.append(place)
        boxes += [box] if box else []
    return places


Box = tuple[float, float, float, float]


def _label_box(point: tuple[float, float], label: str, dx: float, dy: float, anchor: str) -> tuple[LabelPlace, Box]:
    """The place of a label at an offset from its point, and its box: left, top, right, bottom."""
    width = CHARACTER_WIDTH * len(label)
    x, y = point[0] + dx, point[1] + dy
    left = x - {"start": 0, "end": width, "middle": width / 2}[anchor]
    return LabelPlace(x, y, anchor), (left, y - LINE_HEIGHT + 3, left + width, y + 3)


def _inside(box: Box, x_range: tuple[float, float], y_range: tuple[float, float]) -> bool:
    return x_range[0] <= box[0] and box[2] <= x_range[1] and y_range[0] <= box[1] and box[3] <= y_range[1]


def _overlaps(box: Box, others: Sequence[Box]) -> bool:
    return any(a[0] < box[2] and box[0] < a[2] and a[1] < box[3] and box[1] < a[3] for a in others)


def histograms(distances: dict[str, list[float]], bins: int = 36) -> tuple[Axis, list[Histogram]] | None:
    """Histograms of distances by split on one axis; None if there is no distance above 0."""
    top = max((d for values in distances.values() for d in values), default=0.0)
    if top <= 0:
        return None
    axis = Axis(0, top, 60, WIDTH - 12)
    return axis, [_histogram(split, values, axis, bins) for split, values in distances.items()]


def _histogram(split: str, distances: Sequence[float], axis: Axis, bins: int) -> Histogram:
    counts = [0] * bins
    for distance in distances:
        counts[min(bins - 1, int(distance / axis.high * bins))] += 1
    edges = [axis.high * i / bins for i in range(bins + 1)]
    bars = [
        (axis.at(a), axis.at(b) - axis.at(a), n / max(counts), f"{split}: {n} of {len(distances)} images, {a:.3f} to {b:.3f}")
        for (a, b), n in zip(pairwise(edges), counts, strict=True)
        if n
    ]
    mean = math.fsum(distances) / len(distances)
    return Histogram(split, mean, axis.at(mean), bars)


def loss_curve(losses: Sequence[tuple[int, float]], most: int = 120) -> Curve | None:
    """A curve of at most `most` points, each the mean loss of equally many steps; None for fewer than two steps."""
    if len(losses) < 2:
        return None
    size = math.ceil(len(losses) / most)
    parts = [losses[i : i + size] for i in range(0, len(losses), size)]
    means = [(part[0][0], part[-1][0], math.fsum(loss for _, loss in part) / len(part)) for part in parts]
    low, high = min(m for *_, m in means), max(m for *_, m in means)
    margin = (high - low or abs(high) or 1) * 0.06
    x = Axis(losses[0][0], losses[-1][0], 60, WIDTH - 12)
    y = Axis(low - margin, high + margin, 156, 8)
    points = [
        (x.at((a + b) / 2), y.at(m), f"step {a}: loss {m:.4g}" if a == b else f"steps {a} to {b}: mean loss {m:.4g}")
        for a, b, m in means
    ]
    return Curve(x, y, points)
