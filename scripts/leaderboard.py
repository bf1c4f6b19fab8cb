"""All algorithms on an embedded world's concepts: docs/leaderboard.md, its csv and its plot; the boards are in boards.py.

python scripts/leaderboard.py [--world pictoscenes] [--quick] [--algos ga,uce] [--concepts church] [--seeds 0,1,2] [--jobs 1]
                              [--depth] [--render]

The csv stores the results: a row is written when its run is done, and a run is not repeated, on any machine, while there is
a row with the same settings and weights. A leaderboard of hours can therefore be made in several calls, also at the same time.
"""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from boards import BOARDS, PICTOWORLD, Board, is_seeded
from leaderboard_page import Row, depth_plot, draw, draw_depth, page
from stored_runs import find_or_run, locked, process_map, read_csv, settings_digest, write_csv

from unlearnbench.config.compose import compose
from unlearnbench.console import console, progress_bar
from unlearnbench.experiment.depth import measure_depth
from unlearnbench.experiment.preflight import find_problems
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.results.run import Run
from unlearnbench.storage.atomic import write_text

Key = tuple[str, str, str]  # concept, algorithm, seed


def all_overrides(
    algos: Sequence[str], concepts: Sequence[str], seeds: Sequence[str], board: Board = PICTOWORLD
) -> list[list[str]]:
    """The overrides of every run, seed after seed; an algorithm without randomness runs with the first seed only."""
    seeded = {algo for algo in algos if is_seeded(algo, board)}
    runs = [(algo, concept, seed) for seed in seeds for concept in concepts for algo in algos]
    return [board.overrides(*run) for run in runs if run[2] == seeds[0] or run[0] in seeded]


def row_of(run: Run, settings: str, board: Board = PICTOWORLD) -> Row:
    """A run's row: nan for a number that it did not measure."""
    row: Row = dict.fromkeys(board.numbers, math.nan)
    for column, (metric, split) in board.columns.items():
        with contextlib.suppress(KeyError):
            value = run.find(metric, split)
            row[column] = value.unlearned
            if column in board.intervals:
                low, high = (math.nan if end is None else end for end in (value.low, value.high))
                row |= {f"{column}_low": low, f"{column}_high": high, f"{column}_n": value.n}
            if column == "forget":
                row["forget_original"] = value.original
    log = run.log
    return row | {
        "algo": log["algo"], "concept": log["config"]["concept"]["name"], "seed": str(log["config"]["seed"]),
        "status": log["status"], "settings": settings, "weights": board.weights,
        "device": log["device"], "commit": (log["git"] or "")[:12], "error": log.get("error", ""),
    }  # fmt: skip


def probe_numbers(report: Mapping[str, Any], board: Board = PICTOWORLD) -> Row:
    """The numbers of a row from the report of `measure_depth`; of text_states the original's encoder before the denoiser.

    Without an oracle a depth counts from 0, on another scale than the depths of the other rows: it is left out.
    """
    by_probe = {row["probe"]: row | row["interval"] for row in reversed(report["rows"])}
    left_out = () if report["oracle"] else ("depth", "low", "high")
    numbers = {name: None if number in left_out else by_probe[probe][number] for name, (probe, number) in board.probes.items()}
    return {name: math.nan if number is None else number for name, number in numbers.items()}


def read_rows(path: Path, board: Board = PICTOWORLD) -> list[Row]:
    """The rows of a csv that have all columns, those of the probes apart, and today's weights."""
    needed = set(board.head) - set(board.probes)
    rows = [
        {**row, **{name: float(row.get(name) or "nan") for name in board.numbers}} for row in read_csv(path) if needed <= set(row)
    ]
    weights = board.weights
    return [row for row in rows if row["weights"] == weights]


def store_row(path: Path, row: Row, board: Board = PICTOWORLD) -> None:
    """Add a row to the csv, or replace the one with its key; several processes may do so at once."""
    with locked(path):
        rows = {key_of(other): other for other in [*read_rows(path, board), row]}
        write_csv(path, [{name: rows[key][name] for name in board.head} for key in sorted(rows)])


def key_of(row: Mapping[str, Any]) -> Key:
    """Concept, algorithm and seed of a row."""
    return row["concept"], row["algo"], row["seed"]


def current_rows(path: Path, board: Board = PICTOWORLD) -> list[Row]:
    """The rows of the csv with today's settings, in the order of the board's concepts; other concepts come first."""
    order = {concept: place for place, concept in enumerate(board.concepts)}
    rows = sorted(read_rows(path, board), key=lambda row: order.get(row["concept"], -1))
    return [row for row in rows if row["settings"] == settings_digest(spec_of(row, board))]


def spec_of(row: Mapping[str, Any], board: Board) -> RunSpec:
    """What a row's run does with today's settings."""
    return RunSpec.of(compose(*board.overrides(row["algo"], row["concept"], row["seed"])))


class Job(NamedTuple):
    """A run to do.

    Attributes:
        key: of its row.
        folder: its folder.
        overrides: its overrides.
        settings: the digest of its settings.
        path: the csv of its row.
        board: the board of its row.
        depth: whether it is probed too.
    """

    key: Key
    folder: Path
    overrides: Sequence[str]
    settings: str
    path: Path
    board: Board = PICTOWORLD
    depth: bool = False


def do_job(job: Job) -> Row | None:
    """The row of one run, stored as soon as the run is done; None if it cannot start."""
    run = find_or_run(job.folder, job.overrides)
    if run is None:
        return None
    row = row_of(run, job.settings, job.board)
    if job.depth and row["status"] == "done":
        row |= probe_numbers(measure_depth(run.folder), job.board)
    store_row(job.path, row, job.board)
    return row


def run_all(
    overrides: Sequence[Sequence[str]], out: Path, path: Path, jobs: int = 1, depth: bool = False, board: Board = PICTOWORLD
) -> list[Row]:
    """The row of every run: from the csv at `path` if it has the same settings there, else by a run in a folder of `out`.

    With `depth`, a row without the first number of the board's probes is run again and probed.
    """
    rows, probed = {key_of(row): row for row in read_rows(path, board)}, next(iter(board.probes))
    keys, todo = [], []
    for words in overrides:
        spec = RunSpec.of(compose(*words))
        settings, key = settings_digest(spec), (spec.concept.name, spec.algo.name, str(spec.seed))
        keys.append(key)
        row = rows.get(key)
        if row is None or row["settings"] != settings or row["status"] != "done" or (depth and math.isnan(row[probed])):
            todo.append(Job(key, out / "_".join(key), words, settings, path, board, depth))
    with progress_bar("leaderboard", len(overrides)) as bar, process_map(jobs) as mapped:
        bar.advance(len(overrides) - len(todo))
        for job, row in zip(todo, mapped(do_job, todo), strict=True):
            if row is not None:
                rows[job.key] = row
            bar.advance(remark=" ".join(job.key))
    return [rows[key] for key in keys if key in rows]


def possible(overrides: Sequence[list[str]]) -> list[list[str]]:
    """The runs that have no problem; prints the others."""
    runs = []
    for words in overrides:
        if problems := find_problems(RunSpec.of(compose(*words))):
            console.print(f"left out: {' '.join(words)}: {problems[0]}", style="yellow", markup=False)
        else:
            runs.append(words)
    return runs


def main() -> None:
    """Run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default=PICTOWORLD.domain, choices=sorted({board.domain for board in BOARDS}))
    parser.add_argument("--quick", action="store_true", help="church, one seed, few prompts, forgetting and integrity only")
    parser.add_argument("--algos", default="", help="by default those of the board")
    parser.add_argument("--concepts", default="", help="by default those of the board")
    parser.add_argument("--seeds", default="", help="by default those of the board")
    parser.add_argument("--out", type=Path, help="outputs/leaderboard, or outputs/ and the name of the board")
    parser.add_argument("--write", type=Path, help="docs/leaderboard.md, or docs/ and the name of the board")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each in its own process")
    parser.add_argument("--depth", action="store_true", help="also probe each run, for the columns of the probes")
    parser.add_argument("--render", action="store_true", help="run nothing: write the csv's rows that have today's settings")
    options = parser.parse_args()
    board = next((board for board in BOARDS if (board.domain, board.quick) == (options.world, options.quick)), None)
    if board is None:
        parser.error(f"--quick: there is no quick leaderboard of {options.world}; leave it out, or choose --algos and --concepts")
    target = options.write or Path("docs") / f"{board.name}.md"
    csv_path, plot_path = target.with_suffix(".csv"), target.with_suffix(".png")
    algos, concepts, seeds = (
        given.split(",") if given else [*names]
        for given, names in (
            (options.algos, board.algorithms), (options.concepts, board.concepts), (options.seeds, board.seeds),
        )
    )  # fmt: skip
    if options.render:
        rows = current_rows(csv_path, board)
    else:
        out = (options.out or Path("outputs") / board.name) / board.weights[:8]
        rows = run_all(possible(all_overrides(algos, concepts, seeds, board)), out, csv_path, options.jobs, options.depth, board)
    write_text(target, page(rows, f"make {board.name}", plot_path.name, board))
    draw(rows, plot_path)
    draw_depth(rows, depth_plot(plot_path))
    console.print(f"wrote {target}, its .csv and its .png")


if __name__ == "__main__":
    main()
