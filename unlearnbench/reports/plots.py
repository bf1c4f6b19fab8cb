"""Plots of forgetting against integrity, for runs, sweeps and leaderboards, and of training losses.

`run_points`, `pareto_front` and the axis labels say what is drawn. Here matplotlib draws it; in the report `svg_plots` does.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from unlearnbench.config.errors import UserError
from unlearnbench.reports.comparison import compare, first_value
from unlearnbench.reports.interference import Effect, Matrix
from unlearnbench.results.intervals import has_width
from unlearnbench.results.run import Run, Value
from unlearnbench.storage.atomic import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


FORMATS = ("svg", "png", "pdf")
X_LABEL = "UA: 1 - detection rate"
LOWEST_Y = -2.0  # axes reach down to the lowest point and interval, but no further; what lies below is marked "off the scale"
SHADE = 0.6  # numbers on a darker blue than this are white
BLUE, GREY = "#2a6fb0", "#a0a0a0"
CROWDED_X = 0.7  # labels of leaderboard points to the right of this stand in a column beside the plot
LABEL_WIDTH = 0.3  # labels of points closer than this, in units of forgetting, could overprint
TOP = 1.12  # of the axis of integrity
DEPTH_BANDS = (0.25, 0.75, 1.15)  # labels of a plot of depths are kept apart within each band
TO_LABEL = {"arrowstyle": "-", "linewidth": 0.6, "color": GREY, "shrinkA": 0, "shrinkB": 4, "relpos": (0, 0.5)}  # a line
LABEL_GAP = 0.03  # between labels, as a share of the height


@dataclass(frozen=True)
class Point:
    """A run, or a method of a leaderboard, in the plane of forgetting and integrity: right and up is better.

    Attributes:
        index: its place in the sequence of runs or methods that it was taken from.
        label: its name in the plot.
        x: UA, 1 - detection rate on forget prompts, 0 to 1.
        y: integrity on retain prompts; 1 means unchanged images.
        x_interval: the 95 % interval of x.
        y_interval: the 95 % interval of y.
        depth: how much is gone under probes, 0 to 1 (`results.depth`); None if it was not measured.
    """

    index: int
    label: str
    x: float
    y: float
    x_interval: tuple[float, float]
    y_interval: tuple[float, float]
    depth: float | None = None

    @property
    def title(self) -> str:
        """The label, with the depth if there is one."""
        return self.label if self.depth is None else f"{self.label}, depth {self.depth:.2f}"


def off_scale(y: float) -> str:
    """What a mark at the edge says of a point below `LOWEST_Y`; "" for any other point.

    Examples:
        >>> off_scale(-4.939), off_scale(-1.14)
        ('-4.94, off the scale', '')
    """
    return f"{y:.2f}, off the scale" if y < LOWEST_Y else ""


def y_label(metric: str) -> str:
    """The label of the y axis."""
    return f"{metric} on retain prompts"


def run_points(runs: Sequence[Run], labels: Sequence[str] = ()) -> tuple[str, list[Point]]:
    """The points of the runs that have both numbers.

    Args:
        runs: any runs; those without forget_accuracy or integrity have no point.
        labels: a name for each run; by default its number in its sweep.

    Returns:
        The integrity metric of the y axis, integrity_norm if all these runs have it, else integrity; and the points. All are by
        one distance, the first that most runs have.
    """
    labels = labels or [run_number(run.folder) for run in runs]
    distances = [v.backbone for run in runs for v in run.values if (v.metric, v.split) == ("integrity", "retain")]
    distance = max(dict.fromkeys(distances), key=distances.count, default="")
    needed = (("forget_accuracy", "forget", None), ("integrity", "retain", distance))
    measured = [i for i, run in enumerate(runs) if all(first_value(run, *name) for name in needed)]
    normalized = measured and all(first_value(runs[i], "integrity_norm", "retain", distance) for i in measured)
    metric = "integrity_norm" if normalized else "integrity"
    points = []
    for i in measured:
        forget, integrity = runs[i].find("forget_accuracy", "forget"), runs[i].find(metric, "retain", distance)
        low, high = _interval(forget)
        points.append(Point(i, labels[i], 1 - forget.unlearned, integrity.unlearned, (1 - high, 1 - low), _interval(integrity)))
    return metric, points


def _interval(value: Value) -> tuple[float, float]:
    """The 95 % interval; where none was computed, the number itself at both ends."""
    return (value.unlearned, value.unlearned) if value.low is None or value.high is None else (value.low, value.high)


def run_number(folder: Path) -> str:
    """A run's number in its sweep."""
    return folder.name.partition("-")[0]


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The Pareto front, by rising forgetting: no other point is better in one number and at least as good in the other.

    Of equal points the first one stands for all.
    """
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (-point.x, -point.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return front[::-1]


def front_table(runs: Sequence[Run]) -> tuple[list[str], list[list[str]], int]:
    """The runs on the Pareto front, by rising forgetting.

    Returns:
        The table's head, its body, and the number of its first columns that are text.
    """
    comparison = compare(runs).for_readers()
    cells = {row.runs[0].folder: line for row, line in zip(comparison.rows, comparison.body, strict=True)}
    body = [[point.label, *cells[runs[point.index].folder]] for point in pareto_front(run_points(runs)[1])]
    return ["run", *comparison.head], body, len(comparison.settings) + 2


def read_losses(folder: Path) -> list[tuple[int, float]]:
    """Step and loss of a run's train.csv, finite losses only; empty for a method that trains nothing."""
    path = folder / "train.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        whole = [row for row in csv.DictReader(file) if None not in row.values()]  # a full disk leaves half a line
    rows = [(int(row["step"]), float(row["loss"])) for row in whole]
    return [(step, loss) for step, loss in rows if math.isfinite(loss)]


# --- matplotlib ---------------------------------------------------------------------------------------------------------


def draw_runs(runs: Sequence[Run], path: Path) -> None:
    """Write one figure: forgetting against integrity, and the training losses.

    Raises:
        UserError: matplotlib is not installed, the file's suffix is unknown, or the runs have nothing to draw.
    """
    _check_file(path)
    labels = compare(runs).labels()
    metric, points = run_points(runs, labels)
    losses = [(label, curve) for run, label in zip(runs, labels, strict=True) if (curve := read_losses(run.folder))]
    if not points and not losses:
        raise UserError("nothing to draw: no run here has a training loss, or both forget_accuracy and integrity")
    from matplotlib.figure import Figure

    parts = [part for part, content in (("points", points), ("losses", losses)) if content]
    figure = Figure(figsize=(5.6 * len(parts), 4.4), layout="constrained")
    axes = dict(zip(parts, figure.subplots(1, len(parts), squeeze=False)[0], strict=True))
    if points:
        _draw_points(axes["points"], metric, points)
    if losses:
        _draw_losses(axes["losses"], losses)
    _save(figure, path)


def draw_front(runs: Sequence[Run], path: Path) -> None:
    """Write a figure of all runs of a sweep, and of its Pareto front: a line, run numbers and 95 % intervals.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    metric, points = run_points(runs)
    front = pareto_front(points)
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.plot([p.x for p in points], [p.y for p in points], "o", color="0.7", markersize=4, label="all runs")
    axes.errorbar(
        [p.x for p in front], [p.y for p in front], *_error_bars(front),
        fmt="o-", drawstyle="steps-pre", elinewidth=0.7, label="the front",
    )  # fmt: skip
    for point in front:
        axes.annotate(point.label, (point.x, point.y), (4, 4), textcoords="offset points", fontsize=7)
    axes.set(xlabel=X_LABEL, ylabel=y_label(metric), xlim=(-0.03, 1.03))
    axes.legend(fontsize=8, frameon=False, loc="lower left")
    _save(figure, path)


def draw_leaderboard(points: Sequence[Point], forgets: Sequence[bool], legend: tuple[str, str], path: Path) -> None:
    """Write a figure with one point a method, blue if it forgets, else grey; integrity_norm on the y axis.

    A method whose depth was measured has its number beside the name, and a ring that the depth fills.

    Args:
        points: one a method, without intervals.
        forgets: whether each method forgets.
        legend: what blue and grey mean.
        path: the file.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 6), layout="constrained")
    axes = figure.subplots()
    colors = {point.index: BLUE if blue else GREY for point, blue in zip(points, forgets, strict=True)}
    bottom = min(-1.0, max(LOWEST_Y, min((point.y for point in points), default=0.0)))
    for crowded in (True, False):
        group = [point for point in points if (point.x > CROWDED_X) == crowded]
        heights = [max(point.y, bottom) for point in group]
        for point, y, height in zip(group, heights, separate_labels(heights, LABEL_GAP * (TOP - bottom)), strict=True):
            remark = off_scale(point.y)
            marker, color = "v" if remark else "o", colors[point.index]
            if point.depth is not None:
                axes.plot(point.x, y, marker, markersize=9, markerfacecolor="white", markeredgecolor=color)
            size = 6 if point.depth is None else 9 * math.sqrt(min(max(point.depth, 0.0), 1.0))
            axes.plot(point.x, y, marker, markersize=size, color=color)
            place = (1.05 if crowded else point.x + 0.03, height)
            label = axes.annotate(point.title, (point.x, y), xytext=place, va="center", fontsize=8, arrowprops=TO_LABEL)
            if remark:
                axes.annotate(
                    remark, (1, 0.5), xycoords=label, xytext=(4, 0), textcoords="offset points", va="center", fontsize=7
                )
    for color, text in zip((BLUE, GREY), legend, strict=True):
        axes.plot([], [], "o", markersize=6, color=color, label=text)
    axes.legend(loc="lower left", fontsize=8, frameon=False)
    axes.set(xlabel=X_LABEL, ylabel=y_label("integrity_norm"), ylim=(bottom - 0.05, TOP), xlim=(-0.02, 1.02))
    _save(figure, path)


def draw_depths(points: Sequence[Point], forgets: Sequence[bool], legend: tuple[str, str], path: Path) -> None:
    """Write a figure of depth against integrity_norm, one point a method: right and up is removal that keeps the rest.

    Methods that forget are blue, the others grey.

    Args:
        points: one a method, with its depth; those without are left out.
        forgets: whether each method forgets.
        legend: what blue and grey mean.
        path: the file.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 5.2), layout="constrained")
    axes = figure.subplots()
    named = [(point, point.depth) for point, blue in zip(points, forgets, strict=True) if blue and point.depth is not None]
    others = [(point, point.depth) for point, blue in zip(points, forgets, strict=True) if not blue and point.depth is not None]
    bottom = min(0.0, max(LOWEST_Y, min((point.y for point, _ in [*named, *others]), default=0.0)))
    for pairs, color, text in ((others, GREY, legend[1]), (named, BLUE, legend[0])):
        axes.plot([depth for _, depth in pairs], [max(point.y, bottom) for point, _ in pairs], "o", color=color, label=text)
    for point, depth in others:
        place = (depth, max(point.y, bottom))
        axes.annotate(point.label, place, (6, -7), textcoords="offset points", fontsize=6, color=GREY)
    for low, high in zip((-math.inf, *DEPTH_BANDS), (*DEPTH_BANDS, math.inf), strict=True):
        group = sorted(((point, depth) for point, depth in named if low <= depth < high), key=lambda pair: pair[0].y)
        heights = separate_labels([max(point.y, bottom) for point, _ in group], 1.3 * LABEL_GAP * (TOP - bottom))
        right = max((depth for _, depth in group), default=0.0) + 0.06
        for (point, depth), height in zip(group, heights, strict=True):
            y = max(point.y, bottom)
            axes.annotate(point.label, (depth, y), xytext=(right, height), va="center", fontsize=8, arrowprops=TO_LABEL)
    for depth in (0.0, 1.0):
        axes.axvline(depth, color=GREY, linewidth=0.8, linestyle=":")
    axes.legend(loc="lower left", fontsize=8, frameon=False)
    axes.set(xlabel="depth: 0 as the original, 1 as the oracle", ylabel=y_label("integrity_norm"), ylim=(bottom - 0.05, TOP))
    _save(figure, path)


def draw_matrices(matrices: Sequence[Matrix], path: Path) -> None:
    """Write heat maps of interference side by side: the number of each pair of concepts, its 95 % interval below it.

    Above accuracies stands the original's row; the number of the forgotten concept's own prompts is framed.

    Raises:
        UserError: matplotlib is not installed, the file's suffix is unknown, or the file cannot be written.
    """
    _check_file(path)
    from matplotlib.figure import Figure

    width = sum(0.52 * len(matrix.concepts) + 1.3 for matrix in matrices)
    height = max(0.4 * (len(matrix.forgotten) + 1) + 1.4 for matrix in matrices)
    figure = Figure(figsize=(width, height), layout="constrained")
    for axes, matrix in zip(figure.subplots(1, len(matrices), squeeze=False)[0], matrices, strict=True):
        _draw_matrix(axes, matrix)
    _save(figure, path, grid=False)


def _draw_matrix(axes: Axes, matrix: Matrix) -> None:
    original = [None if x is None else (x, "") for x in matrix.original]
    rows = [("(original)", original)] if any(original) else []
    rows += [(name, [None if one is None else (one.unlearned, _ends(one)) for one in row]) for name, row in matrix.rows]
    shades = [[math.nan if cell is None else min(max(cell[0], 0.0), 1.0) for cell in cells] for _, cells in rows]
    axes.imshow(shades, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for y, (name, cells) in enumerate(rows):
        for x, cell in enumerate(cells):
            if cell is not None:
                color, (number, ends) = ("white" if shades[y][x] > SHADE else "black"), cell
                axes.text(x, y - 0.12 * bool(ends), f"{number:.2f}", ha="center", va="center", fontsize=8, color=color)
                axes.text(x, y + 0.25, ends, ha="center", va="center", fontsize=4.5, color=color)
            if name == matrix.concepts[x]:
                frame = [x - 0.5, x + 0.5, x + 0.5, x - 0.5, x - 0.5], [y - 0.5, y - 0.5, y + 0.5, y + 0.5, y - 0.5]
                axes.plot(*frame, color=GREY)
    axes.set_xticks(range(len(matrix.concepts)), matrix.concepts, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8)
    axes.set(xlabel="prompts of", ylabel="forgotten", title=matrix.title)


def _ends(effect: Effect) -> str:
    """The interval of a number in a heat map; "" if it has none, or none with a width."""
    return f"{effect.low:.2f}..{effect.high:.2f}" if has_width(effect.low, effect.high) else ""


def separate_labels(heights: Sequence[float], gap: float) -> list[float]:
    """Heights as close as possible to the given ones and at least `gap` apart; overlapping labels spread around their mean.

    Examples:
        >>> separate_labels([0.5, 1.0, 1.0], 0.2)
        [0.5, 0.9, 1.1]
    """
    stacks: list[list[int]] = []

    def bottom(stack: list[int]) -> float:
        return math.fsum(heights[i] for i in stack) / len(stack) - gap * (len(stack) - 1) / 2

    for i in sorted(range(len(heights)), key=lambda i: heights[i]):
        stacks.append([i])
        while len(stacks) > 1 and bottom(stacks[-1]) - bottom(stacks[-2]) < gap * len(stacks[-2]):
            stacks[-2:] = [stacks[-2] + stacks[-1]]
    places = {i: bottom(stack) + gap * number for stack in stacks for number, i in enumerate(stack)}
    return [places[i] for i in range(len(heights))]


def label_heights(points: Sequence[Point]) -> list[float]:
    """A height for the label of each point, so that labels of points close to each other do not overprint."""
    lowest = min(min(point.y_interval[0], point.y) for point in points)
    gap = 0.045 * max(1.03 - lowest, 0.1)
    columns: list[list[int]] = []
    for i in sorted(range(len(points)), key=lambda i: points[i].x):
        if columns and points[i].x - points[columns[-1][-1]].x < LABEL_WIDTH:
            columns[-1].append(i)
        else:
            columns.append([i])
    heights: dict[int, float] = {}
    for column in columns:
        heights |= dict(zip(column, separate_labels([points[i].y for i in column], gap), strict=True))
    return [heights[i] for i in range(len(points))]


def _draw_points(axes: Axes, metric: str, points: Sequence[Point]) -> None:
    for point in points:
        axes.errorbar([point.x], [point.y], *_error_bars([point]), fmt="o", markersize=5, elinewidth=0.7)
    line = {"arrowstyle": "-", "linewidth": 0.5, "color": GREY, "shrinkA": 0, "shrinkB": 3}
    for point, height in zip(points, label_heights(points), strict=True):
        place, side = (point.x - 0.03, "right") if point.x > CROWDED_X else (point.x + 0.03, "left")
        arrow = {**line, "relpos": (1 if side == "right" else 0, 0.5)}
        axes.annotate(
            point.label, (point.x, point.y), (place, height), va="center", ha=side, fontsize=8, arrowprops=arrow,
            parse_math=False,
        )  # fmt: skip
    axes.set(xlabel=X_LABEL, ylabel=y_label(metric), xlim=(-0.03, 1.03))
    axes.set_ylim(top=1.03)


def _draw_losses(axes: Axes, losses: Sequence[tuple[str, list[tuple[int, float]]]]) -> None:
    for label, curve in losses:
        axes.plot(*zip(*curve, strict=True), linewidth=1, label=label)
    axes.set(xlabel="step", ylabel="loss")
    for text in axes.legend(fontsize=8, frameon=False).get_texts():
        text.set_parse_math(False)


def _error_bars(points: Sequence[Point]) -> tuple[list[list[float]], list[list[float]]]:
    """Lengths of the error bars, of y and then of x: each the lengths below the points and those above them."""
    below_y, above_y = [p.y - p.y_interval[0] for p in points], [p.y_interval[1] - p.y for p in points]
    below_x, above_x = [p.x - p.x_interval[0] for p in points], [p.x_interval[1] - p.x for p in points]
    return [below_y, above_y], [below_x, above_x]


def _check_file(path: Path) -> None:
    """Refuse a file that cannot be drawn.

    Raises:
        UserError: matplotlib is not installed, or the file's suffix is unknown.
    """
    if find_spec("matplotlib") is None:
        raise UserError("--plot needs matplotlib: pip install 'unlearnbench[plot]'")
    if path.suffix[1:] not in FORMATS:
        raise UserError(f"--plot {path}: the suffix must be one of {', '.join(FORMATS)}")


def _save(figure: Figure, path: Path, grid: bool = True) -> None:
    """Write a figure, with a light grid and without a frame.

    Raises:
        UserError: the file cannot be written.
    """
    for axes in figure.axes:
        if grid:
            axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    try:
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=150, format=path.suffix[1:])
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
