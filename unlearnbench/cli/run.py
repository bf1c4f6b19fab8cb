"""The command `run`: one run, or a sweep, by Hydra."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from unlearnbench.__about__ import __version__
from unlearnbench.cli.command import Commands, refuse_unknown_options
from unlearnbench.cli.config_dir import config_dirs, refuse_unusable_files
from unlearnbench.cli.logs import messages_held_back
from unlearnbench.cli.tables import print_comparison, print_table
from unlearnbench.config.compose import join_concepts, translate
from unlearnbench.config.errors import Interrupted, RunError, UserError
from unlearnbench.config.paths import at_home
from unlearnbench.config.quoting import command_text, quoted
from unlearnbench.storage.atomic import claim_folder, missing_folders, remove_empty_folders, remove_path
from unlearnbench.sweeps.hydra_settings import SWEEP_SETTINGS, planned_runs

if TYPE_CHECKING:
    from unlearnbench.results.run import Run

HELP = """usage: unlearnbench run [key=value ...] [-m] [--cfg job] [--config-dir FOLDER]

Unlearn a concept, generate images with the original and the unlearned model,
and measure what changed. Each key=value is a Hydra override.

overrides:
  algo=NAME concept=NAME  choose components; `unlearnbench list` shows all
  'concept=[A,B]'         unlearn several concepts at once; with
                          concept.continual=true one after another
  model=NAME              model.path= takes another checkpoint: a folder, one
                          .safetensors file or a hub id
  algo.lr=1e-5            set any field
  hydra.run.dir=FOLDER    where the run goes; by default
                          outputs/<algo>-<concept>/<time>/
  resume=true             continue the newest unfinished run with these
                          overrides, if there is one

options (before, between or after the overrides):
  -m, --multirun          sweep: one run for each combination;
                          hydra/launcher=processes|slurm|ray_tasks runs several
                          at a time
  --cfg job               print the composed settings and stop
  --config-dir FOLDER     also use your own yaml files, in groups as in conf/

A run's folder holds run.json, images/, weights.safetensors, metrics.json and
tables.md.
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
    if "--version" in arguments:
        print(f"unlearnbench {__version__}")
        return 0
    refuse_unknown_options(arguments, HYDRA_OPTIONS)
    for folder in config_dirs(arguments):
        refuse_unusable_files(folder)
    os.environ["HYDRA_FULL_ERROR"] = "1"
    arguments = [_with_home(argument) for argument in join_concepts(arguments)]
    if _is_sweep(arguments):
        return _run_sweep(arguments)
    new_folders = _new_folders(arguments, "run")
    try:
        _launch(arguments)
    finally:
        remove_empty_folders(*new_folders)
    return 0


def _run_sweep(arguments: list[str]) -> int:
    """Do a sweep and print its summary; one that is refused leaves no folder.

    Raises:
        Interrupted: Ctrl-C was pressed after the sweep had begun.
    """
    from unlearnbench.sweeps.retries import KilledRunRetries

    new_folders = _new_folders(arguments, "sweep")
    folder = _sweep_folder(arguments)
    settings = folder / SWEEP_SETTINGS
    begins = not settings.exists()
    arguments = [*arguments, f"hydra.sweep.dir={quoted(str(folder))}"]
    retries = KilledRunRetries(folder)
    try:
        killed = _launch(arguments, folder)
        while retries.try_again(killed):
            killed = _launch([*arguments, "resume=true"], folder)
        if planned_runs(folder) == 0:
            raise UserError("no run to do: a range() or an empty choice among the overrides holds no value")
    except KeyboardInterrupt as error:
        if settings.exists():
            raise Interrupted(folder) from error
        raise
    except UserError:
        if begins and not any(folder.glob("*/log.txt")):
            remove_path(settings)
        raise
    finally:
        retries.end()
        remove_empty_folders(folder, *new_folders)
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


def _is_sweep(arguments: Sequence[str]) -> bool:
    return bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & set(arguments)) and not {"-c", "--cfg", "--info"} & set(arguments)


def _given_folder(arguments: Sequence[str], mode: str) -> str | None:
    """The folder that the arguments name by hydra.run.dir or hydra.sweep.dir, without quotes; None if they name none.

    Raises:
        UserError: the argument cannot be read.
    """
    given = [argument for argument in arguments if argument.startswith(f"hydra.{mode}.dir=")]
    return _value_text(given[-1]) if given else None


def _value_text(override: str) -> str:
    """The value of an override as text, as Hydra reads it: without quotes and backslashes.

    Raises:
        UserError: Hydra cannot read it.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        value = OverridesParser.create().parse_override(override).value()
    except HydraException as error:
        raise translate(error) from error
    return value if isinstance(value, str) else override.partition("=")[2]


def _with_home(argument: str) -> str:
    """An argument that names a folder of a run or a sweep, with a leading ~ expanded; any other as it is."""
    key, _, value = argument.partition("=")
    if key not in ("hydra.run.dir", "hydra.sweep.dir") or value.lstrip("'\"")[:1] != "~":
        return argument
    text = value if value.startswith("~") else _value_text(argument)
    return f"{key}={quoted(at_home(text))}"


def _new_folders(arguments: Sequence[str], mode: str) -> list[Path]:
    """The folders that a run or a sweep will make, the deepest first; the name of one by date is not known yet."""
    return missing_folders(Path(_given_folder(arguments, mode) or "outputs/sweeps"))


def _sweep_folder(arguments: Sequence[str]) -> Path:
    """The folder of a sweep: the one that the arguments name, or a new one.

    Raises:
        UserError: the folder cannot be made, holds runs or has a name by date, or resume=true names no folder.
    """
    given = _given_folder(arguments, "sweep")
    if given and "${" in given:
        raise UserError(f"hydra.sweep.dir={given}: the folder of a sweep takes no ${{...}}; write its name")
    if not given and "resume=true" in arguments:
        raise UserError("resume=true: of which sweep? name it with hydra.sweep.dir=..., or `unlearnbench resume FOLDER`")
    try:
        folder = Path(given) if given else claim_folder(Path(time.strftime("outputs/sweeps/%Y-%m-%d_%H-%M-%S")))
    except OSError as error:
        raise translate(error) from error
    if any(folder.rglob("run.json")) and "resume=true" not in arguments:
        raise UserError(f"{folder}: holds runs already; choose another folder with hydra.sweep.dir=...")
    return folder


def _print_summary(sweep: Path) -> int:
    """Print a sweep's runs side by side, the Pareto front of a search, and the failures; returns the exit code."""
    from unlearnbench.results.run import find_runs
    from unlearnbench.sweeps.hydra_settings import is_pareto_sweep

    runs = find_runs([str(sweep)])
    print_comparison(runs)
    if is_pareto_sweep(sweep):
        _print_front(runs, sweep / "pareto.svg")
    _print_interference(runs, sweep)
    failed = [run for run in runs if run.status in ("failed", "stopped")]
    for run in failed:
        print(f"failed: {run.folder}: {run.log.get('error') or 'its process was killed'}", file=sys.stderr)
    unfinished = [run for run in runs if run.status in ("interrupted", "running")]
    for run in unfinished:
        print(f"{run.status}: {run.folder}", file=sys.stderr)
    total = max(planned_runs(sweep) or 0, len(runs))
    if total > len(runs):
        print(f"failed: {total - len(runs)} of {total} runs never started", file=sys.stderr)
    done = len(runs) - len(failed) - len(unfinished)
    print(f"{done} of {total} runs done; {command_text('show', sweep)} prints this again")
    if unfinished:
        print(f"{command_text('resume', sweep)} continues", file=sys.stderr)
    if failed or total > len(runs):
        return 1
    return 130 if unfinished else 0


def _print_front(runs: Sequence[Run], drawing: Path) -> None:
    from unlearnbench.reports.plots import draw_front, front_table

    head, body, text_columns = front_table(runs)
    print_table(head, body, "the front: no other run forgets more without keeping less", text_columns)
    draw_front(runs, drawing)
    print(f"wrote {drawing}")


def _print_interference(runs: Sequence[Run], sweep: Path) -> None:
    """Print and write what forgetting each concept did to every other one, if the runs have prompts of each."""
    from importlib.util import find_spec

    from unlearnbench.cli.tables import print_matrices
    from unlearnbench.reports.export import records_csv
    from unlearnbench.reports.interference import effect_records, matrices
    from unlearnbench.storage.atomic import write_text

    try:
        effects = matrices(runs)
    except UserError:  # a sweep over sampling: `show --interference` takes runs that agree in it
        return
    if not effects:
        return
    print_matrices(effects)
    write_text(sweep / "interference.csv", records_csv(effect_records(effects)))
    drawing = sweep / "interference.svg"
    if find_spec("matplotlib") is not None:
        from unlearnbench.reports.plots import draw_matrices

        draw_matrices(effects, drawing)
    print(f"wrote {sweep / 'interference.csv'}" + (f" and {drawing}" if drawing.exists() else ""))
