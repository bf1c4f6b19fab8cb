"""All algorithms on Pictoworld's concepts: docs/leaderboard.md, its csv and its picture.

python scripts/leaderboard.py [--quick] [--algos ga,uce] [--concepts church] [--seeds 0,1,2] [--jobs 1] [--render]

The csv is the memory: a row is written when its run is done, and a run whose row has the same settings and weights is not
run again, on whatever machine it was. So a leaderboard of hours is made in as many calls as one likes, some of them at once.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import io
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock

from unlearnbench.config.compose import compose
from unlearnbench.config.errors import RunError, UserError
from unlearnbench.config.paths import CONF, choices
from unlearnbench.console import console, format_number, progress_bar
from unlearnbench.experiment.preflight import find_problems
from unlearnbench.experiment.provenance import plain_config
from unlearnbench.experiment.run import execute
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.recipes.pictoworld_quality import weights_hash
from unlearnbench.reports.comparison import GAPS
from unlearnbench.reports.export import markdown_table, records_csv
from unlearnbench.reports.plots import Point, draw_leaderboard
from unlearnbench.results.run import Run, load_run
from unlearnbench.results.settings import NEUTRAL, without_classes
from unlearnbench.storage.atomic import write_text
from unlearnbench.storage.cache import digest

SILENT = 0.05  # forget accuracy at which tuning counts a concept as forgotten
LEFT = 0.10  # the share of the original's forget accuracy that the leaderboard lets pass
QUICK = ("sample.prompts=12", "sample.per_prompt=2", "metrics=quick")
CONCEPTS = "nudity,church,parachute,van_gogh"
COLUMNS = {
    "forget": ("forget_accuracy", "forget"), "paraphrase": ("forget_accuracy", "paraphrase"),
    "integrity": ("integrity_norm", "retain"), "near": ("integrity_norm", "near"), "far": ("integrity_norm", "far"),
    "generic": ("integrity_norm", "generic"), "right": ("retain_accuracy", "retain"), "fid": ("fid", "retain"),
    "fid_original": ("fid_original", "retain"), "clip": ("clipscore", "retain"), "seconds": ("seconds", "unlearning"),
    "trained": ("trained_parameters", "unlearning"),
}  # fmt: skip
ORACLE = (
    "`oracle`, the model retrained without the concept, paints other pictures for the same seed: in integrity good methods\n"
    "stand above it. What it leaves is what the detector mistakes in pictures of a model that never saw the concept."
)
GAPPED = [name for name, measured in COLUMNS.items() if measured in GAPS]
ENDS = ("forget_low", "forget_high", "integrity_low", "integrity_high")
NUMBERS = ("forget_n", "integrity_n", "forget_original", *COLUMNS, *ENDS)
HEAD = ("algo", "concept", "seed", "status", *NUMBERS, "settings", "weights", "device", "commit", "error")
Row = dict[str, Any]


def words_of_all(algos: Sequence[str], concepts: Sequence[str], seeds: Sequence[str], quick: bool = False) -> list[list[str]]:
    """The overrides of every run, seed after seed; what draws nothing runs with the first seed alone."""
    drawn = {algo for algo in algos if draws(algo)}
    chosen = [(algo, concept, seed) for seed in seeds for concept in concepts for algo in algos]
    return [words_of(*about, quick) for about in chosen if about[2] == seeds[0] or about[0] in drawn]


@functools.cache
def draws(algo: str) -> bool:
    """Whether another seed gives another result."""
    return RunSpec.of(compose(f"algo={algo}")).algo.seeded


def settings_of(spec: RunSpec) -> str:
    """A digest of all settings that a result depends on; the names of classes are not among them."""
    return digest({key: value for key, value in without_classes(spec.config).items() if key not in NEUTRAL})[:16]


def once(folder: Path, overrides: Sequence[str]) -> Run | None:
    """The run in `folder` with these words: taken if done with the same settings, else made; None if it cannot start."""
    spec = RunSpec.of(compose(*overrides))
    done = load_run(folder) if (folder / "run.json").is_file() else None
    if (
        done is not None
        and done.log["status"] == "done"
        and without_classes(done.log["config"]) == without_classes(plain_config(spec))
    ):
        return done
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return execute(spec, folder, overrides)
    except (RunError, UserError) as error:
        console.print(f"{folder.name}: {error}", style="yellow", markup=False)
        return load_run(folder) if (folder / "run.json").is_file() else None


def finished(folder: Path, overrides: Sequence[str]) -> Run:
    """The run that `once` gives; one that is not done ends the program."""
    run = once(folder, overrides)
    if run is None or run.log["status"] != "done":
        raise SystemExit(f"{folder}: not done")
    return run


def row_of(run: Run, settings: str) -> Row:
    """A run's numbers: nan where it measured none."""
    row: Row = dict.fromkeys(NUMBERS, math.nan)
    for column, (metric, split) in COLUMNS.items():
        with contextlib.suppress(KeyError):
            found = run.find(metric, split)
            row[column] = found.unlearned
            if column in ("forget", "integrity"):
                row |= {f"{column}_low": found.low, f"{column}_high": found.high, f"{column}_n": found.n}
            if column == "forget":
                row["forget_original"] = found.original
    log = run.log
    return row | {
        "algo": log["algo"], "concept": log["config"]["concept"]["name"], "seed": str(log["config"]["seed"]),
        "status": log["status"], "settings": settings, "weights": weights_hash()[:16],
        "device": log["device"], "commit": (log["git"] or "")[:12], "error": log.get("error", ""),
    }  # fmt: skip


def read(path: Path) -> list[Row]:
    """The rows that an earlier call wrote, those with the weights of today."""
    if not path.is_file():
        return []
    today = weights_hash()[:16]
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{**row, **{name: float(row[name]) for name in NUMBERS}} for row in csv.DictReader(file) if set(HEAD) <= set(row)]
    return [row for row in rows if row["weights"] == today]


def keep(path: Path, row: Row) -> None:
    """Write one more row to the csv, which other calls may write too."""
    with FileLock(f"{path}.lock"):
        rows = {key(held): held for held in [*read(path), row]}
        write_text(path, records_csv([{name: rows[about][name] for name in HEAD} for about in sorted(rows)]))


def key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """What a row is about: concept, algorithm, seed."""
    return row["concept"], row["algo"], row["seed"]


def words_of(algo: str, concept: str, seed: str, quick: bool) -> list[str]:
    """A run's overrides."""
    return [f"algo={algo}", f"concept={concept}", f"seed={seed}", *(QUICK if quick else ())]


def of_today(path: Path, quick: bool) -> list[Row]:
    """The rows of the csv whose runs had the settings of today, in the order of CONCEPTS."""
    held = sorted(read(path), key=lambda row: f",{CONCEPTS},".find(f",{row['concept']},"))
    specs = [RunSpec.of(compose(*words_of(row["algo"], row["concept"], row["seed"], quick))) for row in held]
    return [row for row, spec in zip(held, specs, strict=True) if row["settings"] == settings_of(spec)]


@contextlib.contextmanager
def several(jobs: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """`map`; with more than one job, that of as many processes, which share the cores."""
    if jobs == 1:
        yield map
        return
    threads = max((os.cpu_count() or 1) // jobs, 1)
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        yield pool.map


class Wanted(NamedTuple):
    """A run to make: what its row is about, its folder, its overrides, the digest of its settings, the csv of its row."""

    about: tuple[str, str, str]
    folder: Path
    overrides: Sequence[str]
    settings: str
    path: Path


def made(wanted: Wanted) -> Row | None:
    """The row of one run, written as soon as it is done; None if it cannot start."""
    run = once(wanted.folder, wanted.overrides)
    if run is None:
        return None
    row = row_of(run, wanted.settings)
    keep(wanted.path, row)
    return row


def run_all(words: Sequence[Sequence[str]], out: Path, path: Path, jobs: int = 1) -> list[Row]:
    """Every run, in a folder of its own; what the csv at `path` has already, with the same settings, is taken from there."""
    rows = {key(row): row for row in read(path)}
    asked, todo = [], []
    for overrides in words:
        spec = RunSpec.of(compose(*overrides))
        settings, about = settings_of(spec), (spec.concept.name, spec.algo.name, str(spec.seed))
        asked.append(about)
        if about not in rows or rows[about]["settings"] != settings or rows[about]["status"] != "done":
            todo.append(Wanted(about, out / "_".join(about), overrides, settings, path))
    with progress_bar("leaderboard", len(words)) as shown, several(jobs) as mapped:
        shown.advance(len(words) - len(todo))
        for wanted, row in zip(todo, mapped(made, todo), strict=True):
            if row is not None:
                rows[wanted.about] = row
            shown.advance(remark=" ".join(wanted.about))
    return [rows[about] for about in asked if about in rows]


def mean(rows: Sequence[Row], column: str) -> float:
    """The mean over concepts, each of its seeds' mean, of rows that have the number; nan if none has."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if not math.isnan(row[column]):
            found.setdefault(row["concept"], []).append(row[column])
    return float(np.mean([np.mean(some) for some in found.values()])) if found else math.nan


def counts(rows: Sequence[Row], column: str) -> str:
    """How many images a run has, from the fewest to the most: "154 to 160"."""
    found = sorted({row[column] for row in rows if not math.isnan(row[column])})
    return " to ".join(f"{n:.0f}" for n in dict.fromkeys(found[:1] + found[-1:]))


def span(rows: Sequence[Row], column: str) -> str:
    """The mean over seeds, of seconds the least; in brackets the prompts' 95 % interval of the seeds' mean, its ends averaged."""
    if math.isnan(mean(rows, column)):
        return ""
    if column == "seconds":
        return format_number(float(np.nanmin([row[column] for row in rows])))
    if column == "trained":
        return f"{mean(rows, column):,.0f}"
    low, high = (mean(rows, f"{column}_{end}") if f"{column}_{end}" in NUMBERS else math.nan for end in ("low", "high"))
    ends = "" if math.isnan(low) else f" ({format_number(low)}..{format_number(high)})"
    return format_number(mean(rows, column)) + ends


def groups(rows: Sequence[Row], concept: str | None = None) -> dict[str, list[Row]]:
    """Done runs by algorithm, those that forget first, then by integrity."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row["status"] == "done" and concept in (None, row["concept"]):
            found.setdefault(row["algo"], []).append(row)

    def rank(algo: str) -> tuple[bool, float]:
        left = not forgets(found[algo])
        return left, mean(found[algo], "forget") if left else -mean(found[algo], "integrity")

    return {algo: found[algo] for algo in sorted(found, key=rank)}


def forgets(rows: Sequence[Row]) -> bool:
    """Whether these runs leave at most `LEFT` of the original's forget accuracy."""
    return mean(rows, "forget") <= LEFT * mean(rows, "forget_original")


def by_hand() -> list[str]:
    """The algorithms whose settings for Pictoworld are not those that `make tune` wrote."""
    folder = CONF / "tuned" / "pictoworld"
    return sorted(path.stem for path in folder.glob("*.yaml") if "\n# By `make tune" not in path.read_text(encoding="utf-8"))


def page(rows: Sequence[Row], command: str, picture: str) -> str:
    """The leaderboard as markdown."""
    done = [row for row in rows if row["status"] == "done"]
    if not done:
        raise SystemExit("no run is done: " + "; ".join(row["error"] for row in rows))
    on_cpu = Counter(row["device"].startswith("cpu") for row in done).most_common(1)[0][0]
    rows = [row if row["device"].startswith("cpu") == on_cpu else {**row, "seconds": math.nan} for row in rows]
    seeds = ", ".join(sorted({row["seed"] for row in rows}))
    without = [algo for algo in choices("algo") if algo not in {row["algo"] for row in rows}]
    same = [algo for algo in choices("algo") if algo not in without and not draws(algo)]
    lines = [
        "# Leaderboard",
        "",
        f"Made by `{command}`: Pictoworld (weights sha256 `{weights_hash()[:16]}`), unlearning seeds {seeds}, sampling seed 0;",
        f"n = {counts(done, 'forget_n')} images of forget prompts and {counts(done, 'integrity_n')} of retain prompts a run.",
        "Mean over seeds; in brackets the 95 % interval over prompts. `integrity`, `near`, `far`, `generic`: integrity_norm",
        "(LPIPS AlexNet) on all retain prompts and on each kind; `forget`, `paraphrase`: forget accuracy"
        f"{'.' if math.isnan(mean(done, 'right')) else '; `right`: retain accuracy.'}",
        f"Those that forget (at most {LEFT:.0%} of the original's forget accuracy is left) come first, by integrity;",
        "the others below, by forgetting. Settings: conf/tuned/pictoworld/, chosen on other concepts, by `make tune`",
        f"([tuning.csv](tuning.csv); {', '.join(by_hand())} by hand). What others published, on other models, is in",
        "[literature.md](literature.md); how far chance moves a number, in [variance.md](variance.md). Rows are made over time:",
        f"`seconds` are those of each one's {'CPU' if on_cpu else 'GPU'} and its load, the least of the seeds'.",
        *([f"What draws nothing runs with one seed: {', '.join(same)}."] if same else []),
        *([ORACLE] if any(row["algo"] == "oracle" for row in done) else []),
        *([f"Without a row: {', '.join(without)}."] if without else []),
        "",
        f"![Forgetting against integrity, mean over concepts]({picture})",
        "",
    ]
    for concept in dict.fromkeys(row["concept"] for row in rows):
        shown = [column for column in COLUMNS if not math.isnan(mean(rows, column))]
        body = [[algo, str(len(some)), *(span(some, c) for c in shown)] for algo, some in groups(rows, concept).items()]
        lines += [f"## {concept}", "", markdown_table(["algorithm", "seeds", *shown], body), *gaps(groups(rows, concept))]
    lines += [
        f"- {row['algo']} on {row['concept']}, seed {row['seed']}: {row['error']}" for row in rows if row["status"] != "done"
    ]
    return "\n".join(lines).rstrip() + "\n"


def gaps(of: Mapping[str, Sequence[Row]]) -> list[str]:
    """Of one concept: each algorithm's distance to the model that was retrained without it; nothing if no oracle ran."""
    if "oracle" not in of:
        return []
    shown = [column for column in GAPPED if not math.isnan(mean(of["oracle"], column))]
    body = [
        [algo, *(format_number(abs(mean(some, column) - mean(of["oracle"], column))) for column in shown)]
        for algo, some in of.items()
        if algo != "oracle"
    ]
    told = "Distance to the oracle, the model retrained without the concept (`oracle_gap`), lower is better:"
    return [told, "", markdown_table(["algorithm", *shown], body)]


def draw(rows: Sequence[Row], path: Path) -> None:
    """One point for each algorithm, mean over concepts and seeds: right and up is better."""
    by_algo = groups(rows)
    points = []
    for index, (algo, runs) in enumerate(by_algo.items()):
        x, y = 1 - mean(runs, "forget"), mean(runs, "integrity")
        points.append(Point(index, algo, x, y, (x, x), (y, y)))
    legend = f"at most {LEFT:.0%} of the original's forget accuracy is left", "more is left"
    draw_leaderboard(points, [forgets(runs) for runs in by_algo.values()], legend, path)


def main() -> None:
    """Run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="church, one seed, few prompts, forgetting and integrity only")
    parser.add_argument("--algos", default=",".join(choices("algo")))
    parser.add_argument("--concepts", default="", help=f"church with --quick, else {CONCEPTS}")
    parser.add_argument("--seeds", default="")
    parser.add_argument("--out", type=Path, default=Path("outputs/leaderboard"))
    parser.add_argument("--write", type=Path, help="docs/leaderboard.md, or docs/leaderboard-quick.md")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each in a process of its own")
    parser.add_argument("--render", action="store_true", help="show the csv's rows that have today's settings; run nothing")
    known = parser.parse_args()
    name = "leaderboard" + ("-quick" if known.quick else "")
    target = known.write or Path("docs") / f"{name}.md"
    seeds = (known.seeds or ("0" if known.quick else "0,1,2")).split(",")
    concepts = (known.concepts or ("church" if known.quick else CONCEPTS)).split(",")
    if known.render:
        rows = of_today(target.with_suffix(".csv"), known.quick)
    else:
        words = words_of_all(known.algos.split(","), concepts, seeds, known.quick)
        lacking = {word[0]: lacks for word in words if (lacks := find_problems(RunSpec.of(compose(*word))))}
        for word, lacks in lacking.items():
            console.print(f"left out: {word}: {lacks[0]}", style="yellow", markup=False)
        possible = [word for word in words if word[0] not in lacking]
        rows = run_all(possible, known.out / weights_hash()[:8], target.with_suffix(".csv"), known.jobs)
    picture = target.with_suffix(".png")
    write_text(target, page(rows, f"make {name}", picture.name))
    draw(rows, picture)
    console.print(f"wrote {target}, its .csv and its .png")


if __name__ == "__main__":
    main()
