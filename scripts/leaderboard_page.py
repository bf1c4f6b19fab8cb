"""The page of a leaderboard, from its rows, and its plot."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from boards import PICTOWORLD, Board, is_seeded

from unlearnbench.config.paths import choices
from unlearnbench.console.tables import format_number
from unlearnbench.reports.comparison import GAPS
from unlearnbench.reports.export import markdown_table
from unlearnbench.reports.plots import Point, draw_depths, draw_leaderboard
from unlearnbench.results.intervals import interval_text

FORGOTTEN = 0.10  # a method forgets if at most this fraction of the original's detection rate is left
ORACLE_NOTE = (
    "`oracle`, the model retrained without the concept, generates other images for the same seed, so good methods score above\n"
    "it in integrity. The detections that it has are the detector's errors on images of a model without the concept."
)
SITE_NOTE = (
    "On the documentation site a click, or Enter, on a head sorts a table; a point of a plot shows its row. The rows:\n"
    "[{csv}]({csv})."
)
FEWEST_DEPTHS = 10  # algorithms in a plot of depths
ENDS = (("", ""), ("_low", "_high"), ("_high", "_low"))  # of a share, and those of its complement
Row = dict[str, Any]


def mean(rows: Sequence[Row], column: str) -> float:
    """The mean over concepts, each of its seeds' mean, of the rows that have the number; nan if none has."""
    by_concept: dict[str, list[float]] = {}
    for row in rows:
        if not math.isnan(row.get(column, math.nan)):
            by_concept.setdefault(row["concept"], []).append(row[column])
    return float(np.mean([np.mean(values) for values in by_concept.values()])) if by_concept else math.nan


def counts(rows: Sequence[Row], column: str) -> str:
    """The number of images of a run, from the smallest to the largest: "154 to 160"."""
    numbers = sorted({row[column] for row in rows if not math.isnan(row[column])})
    return " to ".join(f"{n:.0f}" for n in dict.fromkeys(numbers[:1] + numbers[-1:]))


def cell(rows: Sequence[Row], column: str) -> str:
    """The mean over seeds, of seconds the minimum; in brackets the mean 95 % interval over prompts, if every row has one."""
    if math.isnan(mean(rows, column)):
        return ""
    if column == "seconds":
        return format_number(float(np.nanmin([row[column] for row in rows])))
    if column == "trained":
        return f"{mean(rows, column):,.0f}"
    measured = [row for row in rows if not math.isnan(row.get(column, math.nan))]
    has_ends = all(not math.isnan(row.get(f"{column}_low", math.nan)) for row in measured)
    ends = interval_text(mean(measured, f"{column}_low"), mean(measured, f"{column}_high")) if has_ends else ""
    return format_number(mean(rows, column)) + (f" ({ends})" if ends else "")


def ranked(rows: Sequence[Row], concept: str | None = None) -> dict[str, list[Row]]:
    """Done runs by algorithm: first those that forget, by integrity; then the others, by forgetting."""
    by_algo: dict[str, list[Row]] = {}
    for row in rows:
        if row["status"] == "done" and concept in (None, row["concept"]):
            by_algo.setdefault(row["algo"], []).append(row)

    def rank(algo: str) -> tuple[bool, float]:
        fails = not forgets(by_algo[algo])
        return fails, mean(by_algo[algo], "forget") if fails else -mean(by_algo[algo], "integrity")

    return {algo: by_algo[algo] for algo in sorted(by_algo, key=rank)}


def on_every_concept(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """`ranked`, of the algorithms that ran on every concept of the rows: means over fewer are of something else."""
    concepts = {row["concept"] for row in rows}
    return {algo: some for algo, some in ranked(rows).items() if {row["concept"] for row in some} == concepts}


def forgets(rows: Sequence[Row]) -> bool:
    """Whether these runs leave at most `FORGOTTEN` of the original's detection rate."""
    return mean(rows, "forget") <= FORGOTTEN * mean(rows, "forget_original")


def page(rows: Sequence[Row], command: str, plot: str, board: Board = PICTOWORLD) -> str:
    """The leaderboard as markdown.

    Raises:
        SystemExit: no run is done.
    """
    done = [row for row in rows if row["status"] == "done"]
    if not done:
        raise SystemExit("no run is done: " + "; ".join(row["error"] for row in rows))
    on_cpu = Counter(row["device"].startswith("cpu") for row in done).most_common(1)[0][0]
    rows = [row if row["device"].startswith("cpu") == on_cpu else {**row, "seconds": math.nan} for row in rows]
    lines = [
        f"# {board.title}",
        "",
        *introduction(rows, command, "CPU" if on_cpu else "GPU", Path(plot).with_suffix(".csv").name, board),
        "",
    ]
    lines += [f"![Forgetting against integrity, mean over concepts]({plot})", ""]
    if probed := probed_concept(rows)[0]:
        lines += [f"![Depth against integrity on {probed}]({depth_plot(Path(plot)).name})", ""]
    concepts = list(dict.fromkeys(row["concept"] for row in rows))
    lines += summary(rows, concepts, board) if len(concepts) > 1 else []
    for concept in concepts:
        own = [row for row in rows if row["concept"] == concept]
        columns = [column for column in (*board.columns, *board.probe_columns) if not math.isnan(mean(own, column))]
        by_algo = {algo: for_readers(some, board) for algo, some in ranked(rows, concept).items()}
        body = [[algo, str(len(some)), *(cell(some, column) for column in columns)] for algo, some in by_algo.items()]
        head = ["algorithm", "seeds", *(board.printed.get(column, column) for column in columns)]
        lines += [f"## {concept}", "", markdown_table(head, body), *gaps(by_algo, board)]
    lines += [
        f"- {row['algo']} on {row['concept']}, seed {row['seed']}: {row['error']}" for row in rows if row["status"] != "done"
    ]
    return "\n".join(lines).rstrip() + "\n"


def summary(rows: Sequence[Row], concepts: Sequence[str], board: Board) -> list[str]:
    """The algorithms that ran on every concept, with the means over concepts."""
    by_algo = on_every_concept(rows)
    columns = [column for column in board.summary if not math.isnan(mean(rows, column))]
    body = [
        [algo, str(len(some)), *(cell(for_readers(some, board), column) for column in columns)] for algo, some in by_algo.items()
    ]
    head = ["algorithm", "runs", *(board.printed.get(column, column) for column in columns)]
    return ["## All concepts", "", f"Means over {', '.join(concepts)}.", "", markdown_table(head, body)]


def for_readers(rows: Sequence[Row], board: Board) -> list[Row]:
    """The same rows with UA, 1 - detection rate, where csv rows have a detection rate."""
    flipped = {f"{column}{end}": f"{column}{other}" for column in board.detections for end, other in ENDS}
    return [row | {name: 1 - row[other] for name, other in flipped.items() if other in row} for row in rows]


def introduction(rows: Sequence[Row], command: str, device: str, csv: str, board: Board) -> list[str]:
    """How the numbers were made, and how to read them."""
    done = [row for row in rows if row["status"] == "done"]
    seeds = ", ".join(sorted({row["seed"] for row in rows}))
    algos = {row["algo"] for row in rows}
    without = [algo for algo in board.algorithms if algo not in algos]
    unseeded = [algo for algo in choices("algo") if algo in algos and not is_seeded(algo, board)]
    probed = any(not math.isnan(row.get(column, math.nan)) for row in done for column in board.probe_columns)
    return [
        f"Made by `{command}`: {board.world.title} (weights sha256 `{board.weights}`), "
        f"unlearning seeds {seeds}, sampling seed 0;",
        f"n = {counts(done, 'forget_n')} images of forget prompts and {counts(done, 'integrity_n')} of retain prompts a run.",
        "Mean over seeds; in brackets the 95 % interval over prompts, none where no image changed. `integrity`, `near`,",
        "`far`, `generic`: integrity_norm (LPIPS AlexNet) on all retain prompts and on each kind;",
        "UA: 1 - detection rate, on forget prompts and on paraphrases.",
        *(["", board.columns_note] if board.columns_note else []),
        "",
        f"Those that forget (at most {FORGOTTEN:.0%} of the original's detection rate is left) come first, by integrity;",
        f"the others below, by forgetting. {board.settings_note(algos)}",
        "",
        f"{board.links} Rows are made over time:",
        f"`seconds` are those of each one's {device} and its load, the least of the seeds'.",
        *([f"Algorithms without randomness run with one seed: {', '.join(unseeded)}."] if unseeded else []),
        "",
        SITE_NOTE.format(csv=csv) + board.rows_note,
        *(["", board.probes_note] if probed else []),
        *(["", ORACLE_NOTE] if any(row["algo"] == "oracle" for row in done) else []),
        *(["", f"Without a row: {', '.join(without)}."] if without else []),
    ]


def gaps(by_algo: Mapping[str, Sequence[Row]], board: Board = PICTOWORLD) -> list[str]:
    """Each algorithm's distance to the oracle of one concept; nothing if no oracle ran."""
    if "oracle" not in by_algo:
        return []
    columns = [
        column for column, measure in board.columns.items() if measure in GAPS and not math.isnan(mean(by_algo["oracle"], column))
    ]
    head = ["algorithm", *(f"{board.printed.get(column, column)}, distance" for column in columns)]

    def distance(rows: Sequence[Row], column: str) -> str:
        number = abs(mean(rows, column) - mean(by_algo["oracle"], column))
        return "" if math.isnan(number) else format_number(number)

    body = [[algo, *(distance(rows, column) for column in columns)] for algo, rows in by_algo.items() if algo != "oracle"]
    title = "Distance to the oracle, the model retrained without the concept (`oracle_gap`), lower is better:"
    return [title, "", markdown_table(head, body)]


def draw(rows: Sequence[Row], path: Path) -> None:
    """One point for each algorithm that ran on every concept, mean over concepts and seeds: right and up is better."""
    by_algo = on_every_concept(rows)
    legend = f"at most {FORGOTTEN:.0%} of the original's detection rate is left", "more is left"
    draw_leaderboard(points_of(by_algo), [forgets(runs) for runs in by_algo.values()], legend, path)


def depth_plot(plot: Path) -> Path:
    """The file of the plot of depths beside a leaderboard's plot."""
    return plot.with_name(f"{plot.stem}-depth.png")


def probed_concept(rows: Sequence[Row]) -> tuple[str, dict[str, list[Row]]]:
    """The concept on which the depth of most algorithms was measured, and their runs there; none if there are few."""
    probed = [row for row in rows if not math.isnan(row.get("depth", math.nan))]
    by_concept = {concept: ranked(probed, concept) for concept in dict.fromkeys(row["concept"] for row in probed)}
    concept = max(by_concept, key=lambda name: len(by_concept[name]), default="")
    return (concept, by_concept[concept]) if concept and len(by_concept[concept]) >= FEWEST_DEPTHS else ("", {})


def draw_depth(rows: Sequence[Row], path: Path) -> None:
    """One point for each algorithm whose depth was measured, on the concept with most of them; no file if there are few."""
    concept, by_algo = probed_concept(rows)
    if by_algo:
        legend = f"at most {FORGOTTEN:.0%} of the original's detection rate on {concept} is left", "more is left"
        draw_depths(points_of(by_algo), [forgets(runs) for runs in by_algo.values()], legend, path)


def points_of(by_algo: Mapping[str, Sequence[Row]]) -> list[Point]:
    """The point of each algorithm, mean over concepts and seeds."""
    points = []
    for index, (algo, runs) in enumerate(by_algo.items()):
        x, y, depth = 1 - mean(runs, "forget"), mean(runs, "integrity"), mean(runs, "depth")
        points.append(Point(index, algo, x, y, (x, x), (y, y), None if math.isnan(depth) else depth))
    return points
