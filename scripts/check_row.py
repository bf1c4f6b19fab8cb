"""Check a row that someone contributes to the leaderboard, before it is merged; what is wrong is named, one line each.

unlearnbench show RUN... --csv > row.csv                 # the contributor: the runs of one algorithm and concept, every seed
python scripts/check_row.py row.csv RUN...               # exit 1 if anything is wrong
python scripts/check_row.py row.csv RUN... --add         # and, if nothing is, write the rows into docs/leaderboard.csv

A RUN is a folder with the run's run.json and metrics.json; nothing in it is executed. Checked are the settings, which must be the
leaderboard's, the number of images, the seeds, the hashes of model, prompts and weights, and that the csv has the runs' numbers.
"""

from __future__ import annotations

import argparse
import csv
import functools
import io
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from boards import is_seeded
from leaderboard import row_of, store_row
from stored_runs import read_csv, run_overrides, settings_digest

from unlearnbench.config.compose import compose
from unlearnbench.config.errors import UserError
from unlearnbench.config.paths import choices
from unlearnbench.experiment.provenance import collect_provenance
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.reports.export import export_comparison
from unlearnbench.reports.tables import run_csv
from unlearnbench.results.run import Run, load_run
from unlearnbench.results.settings import NEUTRAL, without_classes

LEADERBOARD = Path(__file__).parent.parent / "docs" / "leaderboard.csv"
SEEDS = ("0", "1", "2")
MOST_LINES = 8  # differing settings of a run, or numbers of a line, that are named
UNCOMPARED = ("folder", "status")  # columns of a csv that are no results


def problems(row: Path, runs: Sequence[Run], leaderboard: Path = LEADERBOARD) -> list[str]:
    """What is wrong with a contributed row, one line each."""
    of_runs = [line for run in runs for line in run_problems(run, leaderboard)]
    of_seeds = list(seed_problems(runs))
    can_compare = not of_seeds and all(run.log.get("status") == "done" for run in runs)
    return [*of_runs, *of_seeds, *(value_problems(row, runs) if can_compare else [])]


def run_problems(run: Run, leaderboard: Path) -> Iterator[str]:
    """What is wrong with one run: its state, settings, hashes and number of images."""
    log, algo, seed = run.log, run.log.get("algo", ""), str(run.log.get("config", {}).get("seed", ""))
    if log.get("status") != "done":
        yield f"{run.folder}: status {log.get('status')}: {log.get('error', 'the run did not end')}"
        return
    if algo not in choices("algo"):
        yield f"{run.folder}: algo={algo} is not in conf/algo; its .py and .yaml belong to the contribution"
        return
    try:
        spec = RunSpec.of(compose(*run_overrides(algo, run.concept, seed, False)))
    except UserError as error:
        yield f"{run.folder}: {error}"
        return
    yield from (f"{run.folder}: {text}" for text in setting_problems(log["config"], spec.config))
    yield from (f"{run.folder}: {text}" for text in hash_problems(run, spec))
    yield from (f"{run.folder}: {text}" for text in count_problems(run, leaderboard))


def setting_problems(actual: dict[str, Any], expected: Any) -> list[str]:
    """The settings that differ from the leaderboard's."""
    one, other = without_classes(actual), without_classes(expected)
    keys = [key for key in dict.fromkeys([*other, *one]) if key not in NEUTRAL and one.get(key) != other.get(key)]
    return _first([f"{key}={one.get(key, '(not set)')}, the leaderboard has {other.get(key, 'no such setting')}" for key in keys])


def _first(lines: Sequence[str]) -> list[str]:
    """The first lines, and how many more there are."""
    more = [f"and {len(lines) - MOST_LINES} more like these"] if len(lines) > MOST_LINES else []
    return [*lines[:MOST_LINES], *more]


def hash_problems(run: Run, spec: RunSpec) -> Iterator[str]:
    """Hashes that are not those of the package's model and prompts; sources that were changed."""
    log = run.log
    device = "cpu" if str(log.get("device", "")).startswith("cpu") else "cuda"
    if log.get("fingerprint") != (expected := fingerprint(run.concept, device)):
        yield f"model's hash {str(log.get('fingerprint'))[:12]}, that of the package's Pictoworld is {expected[:12]}"
    prompts = collect_provenance(spec, torch.device("cpu"), [])["prompts"]
    if log.get("prompts") != prompts:
        yield f"prompts' hash {str(log.get('prompts'))[:12]}, that of the package's prompts is {prompts[:12]}"
    if not log.get("git"):
        yield "run.json names no commit; run from a clone of the repository"
    elif log["git"].endswith("+"):
        yield f"commit {log['git'][:12]}+: the sources had changes that are not committed"


@functools.cache
def fingerprint(concept: str, device: str) -> str:
    """The fingerprint of the leaderboard's model on a kind of device."""
    model = RunSpec.of(compose("algo=none", f"concept={concept}")).model.load(torch.device("cpu"))
    model.device = torch.device(device)
    return model.fingerprint()


def count_problems(run: Run, leaderboard: Path) -> Iterator[str]:
    """Numbers of images that no row of the leaderboard has for this concept."""
    rows = [row for row in read_csv(leaderboard) if row["concept"] == run.concept]
    for column, metric, split in (("forget_n", "forget_accuracy", "forget"), ("integrity_n", "integrity_norm", "retain")):
        counts = {int(float(row[column])) for row in rows}
        try:
            n = run.find(metric, split).n
        except KeyError:
            yield f"{metric} on {split} was not measured"
            continue
        if counts and n not in counts:
            yield f"{metric} on {split}: n = {n}, the leaderboard has {', '.join(map(str, sorted(counts)))}"


def seed_problems(runs: Sequence[Run]) -> Iterator[str]:
    """Other algorithms or concepts in one row, seeds that are missing or twice, weights that two seeds share."""
    kinds = sorted({(run.log.get("algo", ""), run.concept) for run in runs})
    if len(kinds) > 1:
        yield f"several rows at once: {', '.join(' on '.join(kind) for kind in kinds)}; check each alone"
        return
    [(algo, _)] = kinds
    expected = SEEDS if algo not in choices("algo") or is_seeded(algo) else SEEDS[:1]
    seeds = sorted(str(run.log["config"].get("seed")) for run in runs)
    if seeds != list(expected):
        yield f"{algo}: seeds {', '.join(seeds)}, the leaderboard has {', '.join(expected)}"
    by_weights: dict[str, list[str]] = {}
    for run in runs:
        for stage in run.log.get("unlearned", []):
            if stage.get("weights"):
                by_weights.setdefault(stage["weights"], []).append(str(run.log["config"].get("seed")))
    for weights, shared in by_weights.items():
        if len(shared) > 1:
            yield f"{algo}: seeds {', '.join(shared)} have the same unlearned weights, {weights[:12]}"


def value_problems(row: Path, runs: Sequence[Run]) -> Iterator[str]:
    """Numbers of the csv that are not those of the runs' metrics.json."""
    text = run_csv(runs[0]) if len(runs) == 1 else export_comparison("csv", runs)
    expected = list(csv.DictReader(io.StringIO(text)))
    actual = read_csv(row)
    if not actual:
        yield f"{row}: no such file, or no row in it"
        return
    keys = ("table", "metric", "split", "backbone") if len(runs) == 1 else ("seed",)
    by_key = {tuple(line.get(key) for key in keys): line for line in actual}
    for line in expected:
        key = tuple(line.get(key) for key in keys)
        name = " ".join(map(str, key)) if len(runs) == 1 else f"seed {key[0]}"
        if key not in by_key:
            yield f"{row}: no line of {name}"
            continue
        cells = by_key[key]
        columns = [column for column, value in line.items() if column not in UNCOMPARED and not _equal(cells.get(column), value)]
        for text in _first([f"{column} is {cells.get(column, 'missing')}, the run has {line[column]}" for column in columns]):
            yield f"{row}: {name}: {text}"
    if len(actual) > len(expected):
        yield f"{row}: {len(actual)} lines, the runs have {len(expected)}"


def _equal(one: str | None, other: str) -> bool:
    """Whether two cells are equal, as numbers if they are numbers."""
    if one is None or one == other:
        return one == other
    try:
        return math.isclose(float(one), float(other), rel_tol=1e-9)
    except ValueError:
        return False


def main() -> int:
    """Check, print, perhaps add."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", type=Path, help="the csv, by `unlearnbench show RUN... --csv`")
    parser.add_argument("runs", type=Path, nargs="+", help="folders with run.json and metrics.json, or the run.json files")
    parser.add_argument("--add", action="store_true", help="write the rows into docs/leaderboard.csv if nothing is wrong")
    options = parser.parse_args()
    try:
        runs = [load_run(path.parent if path.name == "run.json" else path) for path in options.runs]
    except UserError as error:
        print(error)
        return 1
    lines = problems(options.row, runs)
    print(
        "\n".join(lines) or f"{runs[0].name}, seeds {', '.join(str(run.log['config']['seed']) for run in runs)}: nothing is wrong"
    )
    if options.add and not lines:
        for run in runs:
            overrides = run_overrides(run.log["algo"], run.concept, str(run.log["config"]["seed"]), False)
            store_row(LEADERBOARD, row_of(run, settings_digest(RunSpec.of(compose(*overrides)))))
        print(f"added to {LEADERBOARD}; `python scripts/leaderboard.py --render` writes the page")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
