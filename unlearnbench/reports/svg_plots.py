"""What the report draws, as places in a drawing 440 wide: points in a plane, histograms, curves; the template makes them SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from unlearnbench.reports.plots import run_points
from unlearnbench.results.run import Run

WIDTH, HEIGHT, LEFT, BOTTOM = 440, 330, 46, 42
GLYPH, LINE = 6.4, 13  # a letter's width and a line's height, as wide as the page draws them on a phone


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` along a line of the drawing from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The place of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[tuple[float, str]]:
        """Places and labels at round values: steps of 1, 2 or 5 times a power of ten.

        Examples:
            >>> Axis(0, 1, 0, 100).ticks()
            [(0.0, '0'), (20.0, '0.2'), (40.0, '0.4'), (60.0, '0.6'), (80.0, '0.8'), (100.0, '1')]
        """
        rough = (self.high - self.low) / most
        power = 10 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [(round(self.at(i * step), 1), f"{round(i * step, 12):g}") for i in range(first, last + 1)]


@dataclass(frozen=True)
class Mark:
    """A run in the plane: its place, the ends of its intervals, and where its label goes."""

    index: int
    label: str
    tip: str
    x: float
    y: float
    xs: tuple[float, float]
    ys: tuple[float, float]
    at: tuple[float, float, str] | None


@dataclass(frozen=True)
class Plane:
    """Forgetting against integrity for the runs of one concept."""

    concept: str
    name: str
    x: Axis
    y: Axis
    marks: list[Mark]


@dataclass(frozen=True)
class Bars:
    """How the distances of a split's pictures are spread: bars (place, width, height from 0 to 1, what it says)."""

    split: str
    mean: float
    mean_at: float
    bars: list[tuple[float, float, float, str]]


def planes(runs: Sequence[Run], labels: Sequence[str]) -> list[Plane]:
    """One plane for each concept."""
    found = []
    for concept in dict.fromkeys(run.concept for run in runs):
        name, placed = run_points([run for run in runs if run.concept == concept])
        if not placed:
            continue
        lowest = min(p.ys[0] for p in placed)
        x = Axis(-0.02, 1.02, LEFT, WIDTH - 12)
        y = Axis(min(0.0, max(lowest, -1.0)) - 0.04, 1.04, HEIGHT - BOTTOM, 10)
        places = [(x.at(p.x), y.at(max(p.y, y.low))) for p in placed]
        index = [next(i for i, run in enumerate(runs) if run is p.run) for p in placed]
        spots = arrange(places, [labels[i] for i in index], (LEFT, WIDTH), (6, HEIGHT - BOTTOM))
        marks = []
        for i, p, place, spot in zip(index, placed, places, spots, strict=True):
            forgotten, kept = (f"{v:.3f} ({low:.3f} to {high:.3f})" for v, (low, high) in ((p.x, p.xs), (p.y, p.ys)))
            tip = f"{labels[i]}\nforgotten {forgotten}\n{name} {kept}"
            across, down = [x.at(v) for v in p.xs], [y.at(max(v, y.low)) for v in p.ys]
            marks.append(Mark(i, labels[i], tip, *place, (across[0], across[1]), (down[0], down[1]), spot))
        found.append(Plane(concept, name, x, y, marks))
    return found


def arrange(
    places: Sequence[tuple[float, float]], labels: Sequence[str], across: tuple[float, float], down: tuple[float, float]
) -> list[tuple[float, float, str] | None]:
    """Where each label can stand beside its point (x, y, text-anchor) and touch no point, no other label and no edge.

    None where it cannot; the tooltip still names the point.
    """
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    found: list[tuple[float, float, str] | None] = []
    for (x, y), text in zip(places, labels, strict=True):
        width, spot = GLYPH * len(text), None
        for dx, dy, anchor in (
            (6, -7, "start"), (6, 15, "start"), (-6, -7, "end"), (-6, 15, "end"), (10, 4, "start"), (-10, 4, "end"),
            (0, -10, "middle"), (0, 19, "middle"),
        ):  # fmt: skip
            left = x + dx - {"start": 0, "end": width, "middle": width / 2}[anchor]
            box = left, y + dy - LINE + 3, left + width, y + dy + 3
            inside = across[0] <= box[0] and box[2] <= across[1] and down[0] <= box[1] and box[3] <= down[1]
            if inside and not any(a[0] < box[2] and box[0] < a[2] and a[1] < box[3] and box[1] < a[3] for a in taken):
                spot = (x + dx, y + dy, anchor)
                taken.append(box)
                break
        found.append(spot)
    return found


def spread(distances: dict[str, list[float]], bins: int = 36) -> tuple[Axis, list[Bars]] | None:
    """Histograms of distances by split on one axis; None where there is nothing to show."""
    top = max((d for values in distances.values() for d in values), default=0.0)
    if top <= 0:
        return None
    axis = Axis(0, top, 60, WIDTH - 12)
    found = []
    for split, values in distances.items():
        counts = [0] * bins
        for d in values:
            counts[min(bins - 1, int(d / top * bins))] += 1
        ends = [top * i / bins for i in range(bins + 1)]
        bars = [
            (axis.at(a), axis.at(b) - axis.at(a), n / max(counts), f"{split}: {n} of {len(values)} pictures, {a:.3f} to {b:.3f}")
            for (a, b), n in zip(pairwise(ends), counts, strict=True)
            if n
        ]
        mean = math.fsum(values) / len(values)
        found.append(Bars(split, mean, axis.at(mean), bars))
    return axis, found


def curve(found: Sequence[tuple[int, float]], most: int = 120) -> tuple[Axis, Axis, list[tuple[float, float, str]]] | None:
    """A loss curve of at most so many places, each the mean of as many steps; None for fewer than two steps."""
    if len(found) < 2:
        return None
    size = math.ceil(len(found) / most)
    parts = [found[i : i + size] for i in range(0, len(found), size)]
    means = [(part[0][0], part[-1][0], math.fsum(loss for _, loss in part) / len(part)) for part in parts]
    low, high = min(m for *_, m in means), max(m for *_, m in means)
    margin = (high - low or abs(high) or 1) * 0.06
    x = Axis(found[0][0], found[-1][0], 60, WIDTH - 12)
    y = Axis(low - margin, high + margin, 156, 8)
    told = [
        (x.at((a + b) / 2), y.at(m), f"step {a}: loss {m:.4g}" if a == b else f"steps {a} to {b}: mean loss {m:.4g}")
        for a, b, m in means
    ]
    return x, y, told
