"""All algorithms on Pictoworld's concepts: docs/leaderboard.md, its csv and its plot.

python scripts/leaderboard.py [--quick] [--algos ga,uce] [--concepts church] [--seeds 0,1,2] [--jobs 1] [--depth] [--render]

The csv stores the results: a row is written when its run is done, and a run is not repeated, on any machine, while there is
a row with the same settings and weights. A leaderboard of hours can therefore be made in several calls, also at the same time.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from stored_runs import find_or_run, locked, process_map, read_csv, run_overrides, settings_digest, write_csv

from unlearnbench.config.compose import compose
from unlearnbench.config.paths import CONF, choices
from unlearnbench.console import console, format_number, progress_bar
from unlearnbench.experiment.depth import measure_depth
from unlearnbench.experiment.preflight import find_problems
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.recipes.pictoworld_quality import weights_hash
from unlearnbench.reports.comparison import GAPS
from unlearnbench.reports.export import markdown_table
from unlearnbench.reports.plots import Point, draw_leaderboard
from unlearnbench.results.depth import POOLED, TEXT_PROBE
from unlearnbench.results.run import Run
from unlearnbench.storage.atomic import write_text

FORGOTTEN = 0.10  # a method forgets if at most this fraction of the original's detection rate is left
CONCEPTS = "nudity,church,parachute,van_gogh"
COLUMNS = {
    "forget": ("forget_accuracy", "forget"), "paraphrase": ("forget_accuracy", "paraphrase"),
    "integrity": ("integrity_norm", "retain"), "near": ("integrity_norm", "near"), "far": ("integrity_norm", "far"),
    "generic": ("integrity_norm", "generic"), "right": ("retain_accuracy", "retain"), "fid": ("fid", "retain"),
    "fid_original": ("fid_original", "retain"), "clip": ("clipscore", "retain"), "seconds": ("seconds", "unlearning"),
    "trained": ("trained_parameters", "unlearning"),
}  # fmt: skip
ORACLE_NOTE = (
    "`oracle`, the model retrained without the concept, generates other images for the same seed, so good methods score above\n"
    "it in integrity. The detections that it has are the detector's errors on images of a model without the concept."
)
DEPTH_NOTE = (
    "`depth` (`--depth`; [metrics.md](metrics.md#depth)), where it was measured: the part of the concept that is gone under\n"
    "probes with the empty prompt, 0 as the original, 1 as the oracle; `text_states`: the share that still shows the concept\n"
    "when the original's text encoder stands before the unlearned denoiser."
)
PRINTED = {
    "forget": "UA", "paraphrase": "UA of paraphrases", "right": "retain_accuracy", "fid": "FID (classifier features)",
    "fid_original": "FID to the original", "clip": "CLIPScore (Pictoworld)", "trained": "trained parameters",
}  # fmt: skip
SITE_NOTE = (
    "On the documentation site a click, or Enter, on a head sorts a table; a point of a plot shows its row. The rows:\n"
    "[{csv}]({csv}). Others can add rows: CONTRIBUTING.md says how, and one command checks them."
)
GAP_COLUMNS = [name for name, measure in COLUMNS.items() if measure in GAPS]
ENDS = ("forget_low", "forget_high", "integrity_low", "integrity_high")
SUMMARY = ("forget", "integrity", "fid", "clip", "paraphrase", "near", "far", "generic", "right")
DEPTH = ("depth", "text_states")  # of rows made with --depth
DEPTH_NUMBERS = (*DEPTH, "depth_low", "depth_high", "depth_n")
NUMBERS = ("forget_n", "integrity_n", "forget_original", *COLUMNS, *ENDS, *DEPTH_NUMBERS)
HEAD = ("algo", "concept", "seed", "status", *NUMBERS, "settings", "weights", "device", "commit", "error")
Row = dict[str, Any]
Key = tuple[str, str, str]  # concept, algorithm, seed


# --- rows ---------------------------------------------------------------------------------------------------------------


def all_overrides(algos: Sequence[str], concepts: Sequence[str], seeds: Sequence[str], quick: bool = False) -> list[list[str]]:
    """The overrides of every run, seed after seed; an algorithm without randomness runs with the first seed only."""
    seeded = {algo for algo in algos if is_seeded(algo)}
    runs = [(algo, concept, seed) for seed in seeds for concept in concepts for algo in algos]
    return [run_overrides(*run, quick) for run in runs if run[2] == seeds[0] or run[0] in seeded]


@functools.cache
def is_seeded(algo: str) -> bool:
    """Whether the unlearning seed changes the result."""
    return RunSpec.of(compose(f"algo={algo}")).algo.uses_seed


def row_of(run: Run, settings: str) -> Row:
    """A run's row: nan for a number that it did not measure."""
    row: Row = dict.fromkeys(NUMBERS, math.nan)
    for column, (metric, split) in COLUMNS.items():
        with contextlib.suppress(KeyError):
            value = run.find(metric, split)
            row[column] = value.unlearned
            if column in ("forget", "integrity"):
                row |= {f"{column}_low": value.low, f"{column}_high": value.high, f"{column}_n": value.n}
            if column == "forget":
                row["forget_original"] = value.original
    log = run.log
    return row | {
        "algo": log["algo"], "concept": log["config"]["concept"]["name"], "seed": str(log["config"]["seed"]),
        "status": log["status"], "settings": settings, "weights": weights_hash()[:16],
        "device": log["device"], "commit": (log["git"] or "")[:12], "error": log.get("error", ""),
    }  # fmt: skip


def depth_numbers(report: Mapping[str, Any]) -> Row:
    """The numbers of a row from the report of `measure_depth`; of text_states the original's encoder before the denoiser."""
    by_probe = {row["probe"]: row for row in reversed(report["rows"])}
    pooled, text_states = by_probe[POOLED], by_probe[TEXT_PROBE]
    numbers = pooled["depth"], text_states["unlearned"], pooled["interval"]["low"], pooled["interval"]["high"], pooled["n"]
    return {name: math.nan if number is None else number for name, number in zip(DEPTH_NUMBERS, numbers, strict=True)}


def read_rows(path: Path) -> list[Row]:
    """The rows of a csv that have all columns, those of the depth apart, and today's weights."""
    needed = set(HEAD) - set(DEPTH_NUMBERS)
    rows = [{**row, **{name: float(row.get(name) or "nan") for name in NUMBERS}} for row in read_csv(path) if needed <= set(row)]
    weights = weights_hash()[:16]
    return [row for row in rows if row["weights"] == weights]


def store_row(path: Path, row: Row) -> None:
    """Add a row to the csv, or replace the one with its key; several processes may do so at once."""
    with locked(path):
        rows = {key_of(other): other for other in [*read_rows(path), row]}
        write_csv(path, [{name: rows[key][name] for name in HEAD} for key in sorted(rows)])


def key_of(row: Mapping[str, Any]) -> Key:
    """Concept, algorithm and seed of a row."""
    return row["concept"], row["algo"], row["seed"]


def current_rows(path: Path, quick: bool) -> list[Row]:
    """The rows of the csv with today's settings, in the order of `CONCEPTS`."""
    rows = sorted(read_rows(path), key=lambda row: f",{CONCEPTS},".find(f",{row['concept']},"))
    specs = [RunSpec.of(compose(*run_overrides(row["algo"], row["concept"], row["seed"], quick))) for row in rows]
    return [row for row, spec in zip(rows, specs, strict=True) if row["settings"] == settings_digest(spec)]


class Job(NamedTuple):
    """A run to do.

    Attributes:
        key: of its row.
        folder: its folder.
        overrides: its overrides.
        settings: the digest of its settings.
        path: the csv of its row.
        depth: whether it is probed too.
    """

    key: Key
    folder: Path
    overrides: Sequence[str]
    settings: str
    path: Path
    depth: bool = False


def do_job(job: Job) -> Row | None:
    """The row of one run, stored as soon as the run is done; None if it cannot start."""
    run = find_or_run(job.folder, job.overrides)
    if run is None:
        return None
    row = row_of(run, job.settings)
    if job.depth and row["status"] == "done":
        row |= depth_numbers(measure_depth(run.folder))
    store_row(job.path, row)
    return row


def run_all(overrides: Sequence[Sequence[str]], out: Path, path: Path, jobs: int = 1, depth: bool = False) -> list[Row]:
    """The row of every run: from the csv at `path` if it has the same settings there, else by a run in a folder of `out`.

    With `depth`, a row without a depth is run again and probed.
    """
    rows = {key_of(row): row for row in read_rows(path)}
    keys, todo = [], []
    for words in overrides:
        spec = RunSpec.of(compose(*words))
        settings, key = settings_digest(spec), (spec.concept.name, spec.algo.name, str(spec.seed))
        keys.append(key)
        row = rows.get(key)
        if row is None or row["settings"] != settings or row["status"] != "done" or (depth and math.isnan(row["depth"])):
            todo.append(Job(key, out / "_".join(key), words, settings, path, depth))
    with progress_bar("leaderboard", len(overrides)) as bar, process_map(jobs) as mapped:
        bar.advance(len(overrides) - len(todo))
        for job, row in zip(todo, mapped(do_job, todo), strict=True):
            if row is not None:
                rows[job.key] = row
            bar.advance(remark=" ".join(job.key))
    return [rows[key] for key in keys if key in rows]


# --- the page -----------------------------------------------------------------------------------------------------------


def mean(rows: Sequence[Row], column: str) -> float:
    """The mean over concepts, each of its seeds' mean, of the rows that have the number; nan if none has."""
    by_concept: dict[str, list[float]] = {}
    for row in rows:
        if not math.isnan(row[column]):
            by_concept.setdefault(row["concept"], []).append(row[column])
    return float(np.mean([np.mean(values) for values in by_concept.values()])) if by_concept else math.nan


def counts(rows: Sequence[Row], column: str) -> str:
    """The number of images of a run, from the smallest to the largest: "154 to 160"."""
    numbers = sorted({row[column] for row in rows if not math.isnan(row[column])})
    return " to ".join(f"{n:.0f}" for n in dict.fromkeys(numbers[:1] + numbers[-1:]))


def cell(rows: Sequence[Row], column: str) -> str:
    """The mean over seeds, of seconds the minimum; in brackets the mean 95 % interval over prompts."""
    if math.isnan(mean(rows, column)):
        return ""
    if column == "seconds":
        return format_number(float(np.nanmin([row[column] for row in rows])))
    if column == "trained":
        return f"{mean(rows, column):,.0f}"
    low, high = (mean(rows, f"{column}_{end}") if f"{column}_{end}" in NUMBERS else math.nan for end in ("low", "high"))
    ends = "" if math.isnan(low) else f" ({format_number(low)}..{format_number(high)})"
    return format_number(mean(rows, column)) + ends


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


def forgets(rows: Sequence[Row]) -> bool:
    """Whether these runs leave at most `FORGOTTEN` of the original's detection rate."""
    return mean(rows, "forget") <= FORGOTTEN * mean(rows, "forget_original")


def settings_remark(algos: Collection[str]) -> str:
    """Of these algorithms, those whose settings for Pictoworld `make tune` did not write: by hand, or the defaults."""
    folder = CONF / "tuned" / "pictoworld"
    files = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.yaml") if path.stem in algos}
    by_hand = sorted(name for name, text in files.items() if "\n# By `make tune" not in text)
    searched = {path.stem for path in (CONF / "search").glob("*.yaml")}
    untuned = sorted(searched.intersection(algos) - files.keys())
    defaults = f"; {', '.join(untuned)} not at all, with the defaults of conf/algo/" if untuned else ""
    return f"{', '.join(by_hand)} by hand, project's after a look at one of these concepts{defaults}"


def page(rows: Sequence[Row], command: str, plot: str) -> str:
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
        "# Leaderboard",
        "",
        *introduction(rows, command, "CPU" if on_cpu else "GPU", Path(plot).with_suffix(".csv").name),
        "",
    ]
    lines += [f"![Forgetting against integrity, mean over concepts]({plot})", ""]
    concepts = list(dict.fromkeys(row["concept"] for row in rows))
    lines += summary(rows, concepts) if len(concepts) > 1 else []
    for concept in concepts:
        columns = [column for column in (*COLUMNS, *DEPTH) if not math.isnan(mean(rows, column))]
        by_algo = {algo: for_readers(some) for algo, some in ranked(rows, concept).items()}
        body = [[algo, str(len(some)), *(cell(some, column) for column in columns)] for algo, some in by_algo.items()]
        head = ["algorithm", "seeds", *(PRINTED.get(column, column) for column in columns)]
        lines += [f"## {concept}", "", markdown_table(head, body), *gaps(by_algo)]
    lines += [
        f"- {row['algo']} on {row['concept']}, seed {row['seed']}: {row['error']}" for row in rows if row["status"] != "done"
    ]
    return "\n".join(lines).rstrip() + "\n"


def summary(rows: Sequence[Row], concepts: Sequence[str]) -> list[str]:
    """The algorithms that ran on every concept, with the means over concepts."""
    by_algo = {algo: some for algo, some in ranked(rows).items() if {row["concept"] for row in some} == set(concepts)}
    columns = [column for column in SUMMARY if not math.isnan(mean(rows, column))]
    body = [[algo, str(len(some)), *(cell(for_readers(some), column) for column in columns)] for algo, some in by_algo.items()]
    head = ["algorithm", "runs", *(PRINTED.get(column, column) for column in columns)]
    return ["## All concepts", "", f"Means over {', '.join(concepts)}.", "", markdown_table(head, body)]


def for_readers(rows: Sequence[Row]) -> list[Row]:
    """The same rows with UA, 1 - detection rate, where csv rows have the detection rate."""
    return [
        row | {"forget": 1 - row["forget"], "paraphrase": 1 - row["paraphrase"],
               "forget_low": 1 - row["forget_high"], "forget_high": 1 - row["forget_low"]}
        for row in rows
    ]  # fmt: skip


def introduction(rows: Sequence[Row], command: str, device: str, csv: str) -> list[str]:
    """How the numbers were made, and how to read them."""
    done = [row for row in rows if row["status"] == "done"]
    seeds = ", ".join(sorted({row["seed"] for row in rows}))
    without = [algo for algo in choices("algo") if algo not in {"checkpoint", *(row["algo"] for row in rows)}]
    unseeded = [algo for algo in choices("algo") if algo not in without and not is_seeded(algo)]
    return [
        f"Made by `{command}`: Pictoworld (weights sha256 `{weights_hash()[:16]}`), unlearning seeds {seeds}, sampling seed 0;",
        f"n = {counts(done, 'forget_n')} images of forget prompts and {counts(done, 'integrity_n')} of retain prompts a run.",
        "Mean over seeds; in brackets the 95 % interval over prompts. `integrity`, `near`, `far`, `generic`: integrity_norm",
        "(LPIPS AlexNet) on all retain prompts and on each kind; UA: 1 - detection rate, on forget prompts and on paraphrases.",
        "",
        f"Those that forget (at most {FORGOTTEN:.0%} of the original's detection rate is left) come first, by integrity;",
        "the others below, by forgetting. Settings: conf/tuned/pictoworld/, chosen on other concepts, by `make tune`",
        f"([tuning.csv](tuning.csv); {settings_remark({row['algo'] for row in rows})}).",
        "",
        "Published results on other models are in",
        "[literature.md](literature.md); the variance of each number is in [variance.md](variance.md). Rows are made over time:",
        f"`seconds` are those of each one's {device} and its load, the least of the seeds'.",
        *([f"Algorithms without randomness run with one seed: {', '.join(unseeded)}."] if unseeded else []),
        "",
        SITE_NOTE.format(csv=csv),
        *(["", DEPTH_NOTE] if any(not math.isnan(row["depth"]) for row in done) else []),
        *(["", ORACLE_NOTE] if any(row["algo"] == "oracle" for row in done) else []),
        *(["", f"Without a row: {', '.join(without)}."] if without else []),
    ]


def gaps(by_algo: Mapping[str, Sequence[Row]]) -> list[str]:
    """Each algorithm's distance to the oracle of one concept; nothing if no oracle ran."""
    if "oracle" not in by_algo:
        return []
    columns = [column for column in GAP_COLUMNS if not math.isnan(mean(by_algo["oracle"], column))]
    head = ["algorithm", *(f"{PRINTED.get(column, column)}, distance" for column in columns)]
    body = [
        [algo, *(format_number(abs(mean(rows, column) - mean(by_algo["oracle"], column))) for column in columns)]
        for algo, rows in by_algo.items()
        if algo != "oracle"
    ]
    title = "Distance to the oracle, the model retrained without the concept (`oracle_gap`), lower is better:"
    return [title, "", markdown_table(head, body)]


def draw(rows: Sequence[Row], path: Path) -> None:
    """One point for each algorithm, mean over concepts and seeds: right and up is better."""
    by_algo = ranked(rows)
    points = []
    for index, (algo, runs) in enumerate(by_algo.items()):
        x, y, depth = 1 - mean(runs, "forget"), mean(runs, "integrity"), mean(runs, "depth")
        points.append(Point(index, algo, x, y, (x, x), (y, y), None if math.isnan(depth) else depth))
    legend = f"at most {FORGOTTEN:.0%} of the original's detection rate is left", "more is left"
    draw_leaderboard(points, [forgets(runs) for runs in by_algo.values()], legend, path)


def possible(overrides: Sequence[list[str]]) -> list[list[str]]:
    """The runs of those algorithms for which no run has a problem; prints the others."""
    problems = {words[0]: found[0] for words in overrides if (found := find_problems(RunSpec.of(compose(*words))))}
    for word, problem in problems.items():
        console.print(f"left out: {word}: {problem}", style="yellow", markup=False)
    return [words for words in overrides if words[0] not in problems]


def main() -> None:
    """Run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="church, one seed, few prompts, forgetting and integrity only")
    parser.add_argument("--algos", default=",".join(name for name in choices("algo") if name != "checkpoint"))
    parser.add_argument("--concepts", default="", help=f"church with --quick, else {CONCEPTS}")
    parser.add_argument("--seeds", default="")
    parser.add_argument("--out", type=Path, default=Path("outputs/leaderboard"))
    parser.add_argument("--write", type=Path, help="docs/leaderboard.md, or docs/leaderboard-quick.md")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each in its own process")
    parser.add_argument("--depth", action="store_true", help="also probe each run, for the columns depth and text_states")
    parser.add_argument("--render", action="store_true", help="run nothing: write the csv's rows that have today's settings")
    options = parser.parse_args()
    name = "leaderboard" + ("-quick" if options.quick else "")
    target = options.write or Path("docs") / f"{name}.md"
    csv_path, plot_path = target.with_suffix(".csv"), target.with_suffix(".png")
    seeds = (options.seeds or ("0" if options.quick else "0,1,2")).split(",")
    concepts = (options.concepts or ("church" if options.quick else CONCEPTS)).split(",")
    if options.render:
        rows = current_rows(csv_path, options.quick)
    else:
        overrides = possible(all_overrides(options.algos.split(","), concepts, seeds, options.quick))
        rows = run_all(overrides, options.out / weights_hash()[:8], csv_path, options.jobs, options.depth)
    write_text(target, page(rows, f"make {name}", plot_path.name))
    draw(rows, plot_path)
    console.print(f"wrote {target}, its .csv and its .png")


if __name__ == "__main__":
    main()
