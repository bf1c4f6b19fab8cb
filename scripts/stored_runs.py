"""Runs and csv files that scripts use again: a run is done once, as long as its settings stay the same."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from unlearnbench.config.compose import compose
from unlearnbench.config.errors import RunError, UserError
from unlearnbench.console import console
from unlearnbench.experiment.provenance import plain_config
from unlearnbench.experiment.run import execute
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.reports.export import records_csv
from unlearnbench.results.run import Run, load_run
from unlearnbench.results.settings import NEUTRAL, without_classes
from unlearnbench.storage.atomic import write_text
from unlearnbench.storage.cache import digest

QUICK = ("sample.prompts=12", "sample.per_prompt=2", "metrics=quick")


def run_overrides(algo: str, concept: str, seed: str, quick: bool) -> list[str]:
    """The overrides of a run of the leaderboards or of the tuning."""
    return [f"algo={algo}", f"concept={concept}", f"seed={seed}", *(QUICK if quick else ())]


def settings_digest(spec: RunSpec) -> str:
    """A digest of all settings that affect the result, without the paths of classes."""
    return digest({key: value for key, value in without_classes(spec.config).items() if key not in NEUTRAL})[:16]


def find_or_run(folder: Path, overrides: Sequence[str]) -> Run | None:
    """The run in a folder if it is done with the settings of these overrides; else run it there. None if it cannot start."""
    spec = RunSpec.of(compose(*overrides))
    run = load_run(folder) if (folder / "run.json").is_file() else None
    if run and run.log["status"] == "done" and without_classes(run.log["config"]) == without_classes(plain_config(spec)):
        return run
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return execute(spec, folder, overrides)
    except (RunError, UserError) as error:
        console.print(f"{folder.name}: {error}", style="yellow", markup=False)
        return load_run(folder) if (folder / "run.json").is_file() else None


def finished_run(folder: Path, overrides: Sequence[str]) -> Run:
    """`find_or_run`, for a run that has to be done.

    Raises:
        SystemExit: it is not.
    """
    run = find_or_run(folder, overrides)
    if run is None or run.log["status"] != "done":
        raise SystemExit(f"{folder}: not done")
    return run


@contextlib.contextmanager
def process_map(jobs: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """`map`; with more than one job, that of a pool of so many processes, which share the cores."""
    if jobs == 1:
        yield map
        return
    threads = max((os.cpu_count() or 1) // jobs, 1)
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        yield pool.map


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a csv file; empty if there is none."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a csv file that several processes update."""
    with FileLock(f"{path}.lock"):
        yield


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows under the keys of the first one."""
    write_text(path, records_csv(rows))
