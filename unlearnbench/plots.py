"""Two plots of runs by matplotlib: forgetting against integrity, and the training losses."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from unlearnbench.compare import compare, first
from unlearnbench.config import UserError
from unlearnbench.results import Run

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


def points(runs: Sequence[Run]) -> tuple[str, list[Point]]:
    """The runs that have both numbers, and which integrity: integrity_norm where each of them has it, else integrity."""
    both = [run for run in runs if first(run, "forget_accuracy", "forget") and first(run, "integrity", "retain")]
    name = "integrity_norm" if both and all(first(run, "integrity_norm", "retain") for run in both) else "integrity"
    found = []
    for run in both:
        forget, kept = run.find("forget_accuracy", "forget"), run.find(name, "retain")
        xs = (forget.unlearned, forget.unlearned) if forget.low is None or forget.high is None else (forget.low, forget.high)
        ys = (kept.unlearned, kept.unlearned) if kept.low is None or kept.high is None else (kept.low, kept.high)
        found.append(Point(run, 1 - forget.unlearned, kept.unlearned, (1 - xs[1], 1 - xs[0]), ys))
    return name, found


def losses(folder: Path) -> list[tuple[int, float]]:
    """Step and loss of a run's train.csv; empty for a method that trains nothing."""
    path = folder / "train.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]
    return [(step, loss) for step, loss in rows if math.isfinite(loss)]


def draw(runs: Sequence[Run], path: Path) -> None:
    """Write the plots to one file.

    Raises:
        UserError: matplotlib is not installed, the ending is unknown, or the runs have nothing to draw.
    """
    if find_spec("matplotlib") is None:
        raise UserError("--plot needs matplotlib: pip install 'unlearnbench[plot]'")
    if path.suffix[1:] not in FORMATS:
        raise UserError(f"--plot {path}: the ending must be one of {', '.join(FORMATS)}")
    (name, placed), curves = points(runs), [(run, found) for run in runs if (found := losses(run.folder))]
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
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
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
