"""Which runs of a sweep trade forgetting against integrity best, and their picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unlearnbench.compare import compare
from unlearnbench.plots import Point, points, save
from unlearnbench.results import Run
from unlearnbench.sweep import settings


def front(placed: Sequence[Point]) -> list[Point]:
    """The points that no other beats: better in one number and not worse in the other; by rising forgetting, equals once."""
    found: list[Point] = []
    for point in sorted(placed, key=lambda point: (-point.x, -point.y)):
        if not found or point.y > found[-1].y:
            found.append(point)
    return found[::-1]


def asked(sweep: Path) -> bool:
    """Whether a sweep was for these two objectives."""
    hydra = settings(sweep)
    return hydra is not None and "ParetoSweeper" in hydra.sweeper["_target_"]


def table(runs: Sequence[Run]) -> tuple[list[str], list[list[str]], int]:
    """The runs on the front, those that forget least first, under a head; how many of its columns are text, not numbers."""
    made = compare(runs)
    cells = {row.runs[0].folder: line for row, line in zip(made.rows, made.body, strict=True)}
    chosen = [point.run.folder for point in front(points(runs)[1])]
    return ["run", *made.head], [[number(folder), *cells[folder]] for folder in chosen], len(made.settings) + 2


def number(folder: Path) -> str:
    """A run's number in its sweep."""
    return folder.name.partition("-")[0]


def draw(runs: Sequence[Run], path: Path) -> None:
    """Draw every run, and the front, each by its number and with its 95 % intervals, joined by a line.

    Raises:
        UserError: no run has both numbers, or the file cannot be written.
    """
    from matplotlib.figure import Figure

    name, placed = points(runs)
    chosen = front(placed)
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    plane = figure.subplots()
    plane.plot([p.x for p in placed], [p.y for p in placed], "o", color="0.7", markersize=4, label="all runs")
    across = [[p.x - p.xs[0] for p in chosen], [p.xs[1] - p.x for p in chosen]]
    along = [[p.y - p.ys[0] for p in chosen], [p.ys[1] - p.y for p in chosen]]
    plane.errorbar(
        [p.x for p in chosen], [p.y for p in chosen], along, across,
        fmt="o-", drawstyle="steps-pre", elinewidth=0.7, label="the front",
    )  # fmt: skip
    for point in chosen:
        plane.annotate(number(point.run.folder), (point.x, point.y), (4, 4), textcoords="offset points", fontsize=7)
    plane.set(xlabel="forgotten: 1 - forget accuracy", ylabel=f"{name} on retain prompts", xlim=(-0.03, 1.03))
    plane.legend(fontsize=8, frameon=False, loc="lower left")
    save(figure, path)
