"""The command `run`: one run, or a sweep, by Hydra."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from unlearnbench.cli.command import Commands, refuse_unknown_options
from unlearnbench.cli.config_dir import config_dirs, refuse_shadowed_files
from unlearnbench.cli.logs import messages_held_back
from unlearnbench.cli.tables import print_comparison, print_table
from unlearnbench.config.compose import join_concepts, translate
from unlearnbench.config.errors import RunError, UserError
from unlearnbench.storage.atomic import claim_folder, remove_empty_folders

if TYPE_CHECKING:
    from unlearnbench.results.run import Run

HELP = """usage: unlearnbench run [key=value ...] [-m] [--cfg job] [--config-dir FOLDER]

Unlearn a concept, generate images with the original and the unlearned model, and measure what changed.
Each key=value is a Hydra override.

overrides:
  algo=NAME concept=NAME   choose a component of a group; `unlearnbench list` shows all
  'concept=[A,B]'          unlearn several concepts at once; concept.continual=true: one after another
  model=NAME               model.path=FOLDER takes your own checkpoint
  algo.lr=1e-5             set any field
  hydra.run.dir=FOLDER     where the run goes; by default outputs/<algo>-<concept>/<time>/
  resume=true              continue the newest unfinished run with these overrides, if there is one

options (before, between or after the overrides):
  -m, --multirun           sweep: one run for each combination; hydra/launcher=processes|slurm runs several at a time
  --cfg job                print the composed settings and stop
  --config-dir FOLDER      also use your own yaml files, in groups as in conf/

A run's folder holds run.json, images/, weights.safetensors, metrics.json and tables.md.
Tab completion: eval "$(unlearnbench -sc install=bash)"

examples:
  unlearnbench run algo=redirect concept=nudity
  unlearnbench run model=sd14 algo=esd_x algo.lr=1e-5 device=cuda
  unlearnbench run -m algo=ga,substitute seed=0,1 concept=church
  unlearnbench run --config-dir my-conf algo=mine
  unlearnbench run experiment=smoke
"""
# Hydra's options that take the next argument as their value
OPTIONS_WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--info", "-i", "--config-dir", "-cd", "--config-name", "-cn",
                      "--config-path", "-cp", "--experimental-rerun")  # fmt: skip
HYDRA_OPTIONS = (*OPTIONS_WITH_VALUE, "--multirun", "-m", "--resolve", "--run", "-r", "--version", "--hydra-help",
                 "--shell-completion", "-sc")  # fmt: skip


def add_run(commands: Commands) -> None:
    """Name the command `run` in the help of all commands; Hydra parses its arguments."""
    commands.add_parser("run", help="unlearn a concept, generate images and measure them", add_help=False)


def run(arguments: list[str]) -> int:
    """Do a run or a sweep; returns the exit code.

    Args:
        arguments: Hydra's overrides and options, in any order.
    """
    if any(argument in ("-h", "--help") for argument in arguments):
        print(HELP, end="")
        return 0
    refuse_unknown_options(arguments, HYDRA_OPTIONS)
    for folder in config_dirs(arguments):
        refuse_shadowed_files(folder)
    os.environ["HYDRA_FULL_ERROR"] = "1"
    arguments = join_concepts(arguments)
    sweep = _sweep_folder(arguments)
    if sweep is None:
        _launch(arguments)
        return 0
    return _run_sweep([*arguments, f"hydra.sweep.dir={sweep}"], Path(sweep))


def _run_sweep(arguments: list[str], folder: Path) -> int:
    from unlearnbench.sweeps.retries import KilledRunRetries

    retries = KilledRunRetries(folder)
    try:
        killed = _launch(arguments, folder)
        while retries.try_again(killed):
            killed = _launch([*arguments, "resume=true"], folder)
    finally:
        retries.end()
        remove_empty_folders(folder)
    return _print_summary(folder)


def _launch(arguments: list[str], sweep: Path | None = None) -> bool:
    """Let Hydra do one run or a sweep; returns whether a process of its launcher was killed."""
    from unlearnbench.cli.hydra_job import run_job
    from unlearnbench.sweeps.monitor import monitored

    sys.argv = ["unlearnbench run", *_options_last(arguments)]
    try:
        if sweep is None:
            run_job()
        else:
            with messages_held_back("hydra_plugins.unlearnbench_submitit"), monitored(sweep):
                run_job()
    except (UserError, RunError, KeyboardInterrupt, BrokenPipeError):
        raise
    except Exception as error:
        mistake = translate(error)
        if mistake is not error:
            raise mistake from error
        if sweep is None or not any(sweep.rglob("run.json")):
            raise
        reason = next(iter(str(error).strip().splitlines()), "")
        print(f"the launcher gave up: {type(error).__name__}: {reason}", file=sys.stderr)
        return type(error).__name__ == "TerminatedWorkerError"
    return False


def _options_last(arguments: Sequence[str]) -> list[str]:
    """The same arguments with the options at the end: Hydra's parser accepts no option between two overrides."""
    overrides: list[str] = []
    options: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        (options if argument.startswith("-") else overrides).append(argument)
        if argument in OPTIONS_WITH_VALUE:
            options.extend(islice(rest, 1))
    return [*overrides, *options]


def _sweep_folder(arguments: Sequence[str]) -> str | None:
    """The folder of a sweep: the one that the arguments name, or a new one; None if they ask for no sweep.

    Raises:
        UserError: the folder cannot be made or holds runs, or resume=true names no folder.
    """
    if not {"-m", "--multirun"} & set(arguments) or {"-c", "--cfg", "--info"} & set(arguments):
        return None
    given = [argument.partition("=")[2] for argument in arguments if argument.startswith("hydra.sweep.dir=")]
    if not given and "resume=true" in arguments:
        raise UserError("resume=true: of which sweep? name it with hydra.sweep.dir=..., or `unlearnbench resume FOLDER`")
    try:
        folder = given[-1] if given else str(claim_folder(Path(time.strftime("outputs/sweeps/%Y-%m-%d_%H-%M-%S"))))
    except OSError as error:
        raise translate(error) from error
    if any(Path(folder).rglob("run.json")) and "resume=true" not in arguments:
        raise UserError(f"{folder}: holds runs already; choose another folder with hydra.sweep.dir=...")
    return folder


def _print_summary(sweep: Path) -> int:
    """Print a sweep's runs side by side, the Pareto front of a search, and the failures; returns the exit code."""
    from unlearnbench.results.run import find_runs
    from unlearnbench.sweeps.hydra_settings import is_pareto_sweep, planned_runs

    runs = find_runs([str(sweep)])
    print_comparison(runs)
    if is_pareto_sweep(sweep):
        _print_front(runs, sweep / "pareto.svg")
    failed = [run for run in runs if run.log["status"] != "done"]
    for run in failed:
        reason = "killed, or still running" if run.log["status"] == "started" else run.log.get("error")
        print(f"failed: {run.folder}: {reason}", file=sys.stderr)
    total = max(planned_runs(sweep) or 0, len(runs))
    if total > len(runs):
        print(f"failed: {total - len(runs)} of {total} runs never started", file=sys.stderr)
    print(f"{len(runs) - len(failed)} of {total} runs done; `unlearnbench show {sweep}` prints this again")
    return 1 if failed or total > len(runs) else 0


def _print_front(runs: Sequence[Run], drawing: Path) -> None:
    from unlearnbench.reports.plots import draw_front, front_table

    head, body, text_columns = front_table(runs)
    print_table(head, body, "the front: no other run forgets more without keeping less", text_columns)
    draw_front(runs, drawing)
    print(f"wrote {drawing}")
