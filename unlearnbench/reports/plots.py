"""Plots of runs by matplotlib: forgetting against integrity with the Pareto front, and the training losses."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from unlearnbench.config.errors import UserError
from unlearnbench.reports.comparison import compare, first_value
from unlearnbench.results.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


FORMATS = ("svg", "png", "pdf")


class Point(NamedTuple):
    """A run in the plane of forgetting and integrity: right and up is better.

    Attributes:
        run: the run.
        x: 1 - forget accuracy on forget prompts, 0 to 1.
        y: integrity on retain prompts, 1 is untouched.
        xs: the 95 % interval of x.
        ys: the 95 % interval of y.
    """

    run: Run
    x: float
    y: float
    xs: tuple[float, float]
    ys: tuple[float, float]


def run_points(runs: Sequence[Run]) -> tuple[str, list[Point]]:
    """The runs that have both numbers, and which integrity: integrity_norm where each of them has it, else integrity."""
    both = [run for run in runs if first_value(run, "forget_accuracy", "forget") and first_value(run, "integrity", "retain")]
    name = "integrity_norm" if both and all(first_value(run, "integrity_norm", "retain") for run in both) else "integrity"
    found = []
    for run in both:
        forget, kept = run.find("forget_accuracy", "forget"), run.find(name, "retain")
        xs = (forget.unlearned, forget.unlearned) if forget.low is None or forget.high is None else (forget.low, forget.high)
        ys = (kept.unlearned, kept.unlearned) if kept.low is None or kept.high is None else (kept.low, kept.high)
        found.append(Point(run, 1 - forget.unlearned, kept.unlearned, (1 - xs[1], 1 - xs[0]), ys))
    return name, found


def read_losses(folder: Path) -> list[tuple[int, float]]:
    """Step and loss of a run's train.csv; empty for a method that trains nothing."""
    path = folder / "train.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]
    return [(step, loss) for step, loss in rows if math.isfinite(loss)]


def draw_runs(runs: Sequence[Run], path: Path) -> None:
    """Write the plots to one file.

    Raises:
        UserError: matplotlib is not installed, the ending is unknown, or the runs have nothing to draw.
    """
    if find_spec("matplotlib") is None:
        raise UserError("--plot needs matplotlib: pip install 'unlearnbench[plot]'")
    if path.suffix[1:] not in FORMATS:
        raise UserError(f"--plot {path}: the ending must be one of {', '.join(FORMATS)}")
    (name, placed), curves = run_points(runs), [(run, found) for run in runs if (found := read_losses(run.folder))]
    if not placed and not curves:
        raise UserError("nothing to draw: no run here has a loss, or forget_accuracy beside integrity")
    from matplotlib.figure import Figure

    labels = {id(run): label for run, label in zip(runs, compare(runs).labels(), strict=True)}
    parts = [part for part, there in (("points", placed), ("losses", curves)) if there]
    figure = Figure(figsize=(5.6 * len(parts), 4.4), layout="constrained")
    axes = dict(zip(parts, figure.subplots(1, len(parts), squeeze=False)[0], strict=True))
    if placed:
        for point in placed:
            spans = [[[v - low], [high - v]] for v, (low, high) in ((point.x, point.xs), (point.y, point.ys))]
            axes["points"].errorbar(point.x, point.y, spans[1], spans[0], fmt="o", markersize=5, elinewidth=0.7)
            axes["points"].annotate(
                labels[id(point.run)], (point.x, point.y), xytext=(5, 5), textcoords="offset points", fontsize=8, parse_math=False
            )
        axes["points"].set(xlabel="forgotten: 1 - forget accuracy", ylabel=f"{name} on retain prompts", xlim=(-0.03, 1.03))
        axes["points"].set_ylim(top=1.03)
    for run, found in curves:
        axes["losses"].plot(*zip(*found, strict=True), linewidth=1, label=labels[id(run)])
    if curves:
        axes["losses"].set(xlabel="step", ylabel="loss")
        for text in axes["losses"].legend(fontsize=8, frameon=False).get_texts():
            text.set_parse_math(False)
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, its planes with a light grid and without a frame.

    Raises:
        UserError: the file cannot be written.
    """
    for plane in figure.axes:
        plane.grid(alpha=0.25)
        plane.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def pareto_front(placed: Sequence[Point]) -> list[Point]:
    """The points that no other beats: better in one number and not worse in the other; by rising forgetting, equals once."""
    found: list[Point] = []
    for point in sorted(placed, key=lambda point: (-point.x, -point.y)):
        if not found or point.y > found[-1].y:
            found.append(point)
    return found[::-1]


def front_table(runs: Sequence[Run]) -> tuple[list[str], list[list[str]], int]:
    """The runs on the front, those that forget least first, under a head; how many of its columns are text, not numbers."""
    made = compare(runs)
    cells = {row.runs[0].folder: line for row, line in zip(made.rows, made.body, strict=True)}
    chosen = [point.run.folder for point in pareto_front(run_points(runs)[1])]
    return ["run", *made.head], [[run_number(folder), *cells[folder]] for folder in chosen], len(made.settings) + 2


def run_number(folder: Path) -> str:
    """A run's number in its sweep."""
    return folder.name.partition("-")[0]


def draw_front(runs: Sequence[Run], path: Path) -> None:
    """Draw every run, and the front, each by its number and with its 95 % intervals, joined by a line.

    Raises:
        UserError: no run has both numbers, or the file cannot be written.
    """
    from matplotlib.figure import Figure

    name, placed = run_points(runs)
    chosen = pareto_front(placed)
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
        plane.annotate(run_number(point.run.folder), (point.x, point.y), (4, 4), textcoords="offset points", fontsize=7)
    plane.set(xlabel="forgotten: 1 - forget accuracy", ylabel=f"{name} on retain prompts", xlim=(-0.03, 1.03))
    plane.legend(fontsize=8, frameon=False, loc="lower left")
    save_figure(figure, path)
