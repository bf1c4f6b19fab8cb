"""Hydra's entry: one job of `unlearnbench run`, single or of a sweep."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from unlearnbench.cli.errors import error_text, exit_code, print_error
from unlearnbench.cli.logs import show_messages, starting
from unlearnbench.config.errors import RunError, UserError
from unlearnbench.config.paths import CONF


@hydra.main(version_base="1.3", config_path=str(CONF.resolve()), config_name="config")
def run_job(config: DictConfig) -> tuple[float, ...] | None:
    """Do one job; in a sweep return forget accuracy and integrity_norm on the retain prompts, for a sweeper to optimize.

    A job of a sweep that fails records the error in its run.json, and the other jobs continue.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from unlearnbench.sweeps.hydra_settings import config_dirs

    show_messages()
    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    added_folders = config_dirs(job)
    overrides = [*([f"hydra.searchpath={added_folders}"] if added_folders else []), *job.overrides.task]
    if job.mode == RunMode.MULTIRUN:
        return _run_in_sweep(config, folder, overrides)
    is_given = any(override.startswith("hydra.run.dir=") for override in job.overrides.hydra)
    _run_alone(config, folder, is_given, overrides)
    return None


def _run_alone(config: DictConfig, folder: Path, is_given: bool, overrides: Sequence[str]) -> None:
    """Do a single run, or this process's part of it, and print its tables in the main process.

    Args:
        config: the composed configuration.
        folder: the run's folder.
        is_given: whether the user named the folder; else the run may choose a similar one.
        overrides: for run.json.

    Raises:
        SystemExit: the run failed; with the exit code.
    """
    with starting():
        from unlearnbench.experiment.distributed import connect_processes
        from unlearnbench.experiment.run import assist, execute
        from unlearnbench.experiment.run_folder import claimed_folder
        from unlearnbench.experiment.run_spec import RunSpec
        from unlearnbench.reports.tables import print_closing
        from unlearnbench.storage.atomic import remove_empty_folders

        processes = connect_processes(str(config.get("device")))
    try:
        with starting():
            spec = RunSpec.of(config)
            if processes.is_main:
                with nullcontext(folder) if is_given else claimed_folder(spec, folder) as own_folder:
                    run = execute(spec, own_folder, overrides, processes)
            else:
                assist(spec, processes)
        if processes.is_main:
            print_closing(run)
        processes.close()
    except (UserError, RunError) as error:
        is_reported = not processes.is_main and processes.main_has_failed()
        raise SystemExit(exit_code(error) if is_reported else print_error(error)) from error
    finally:
        if not is_given:
            remove_empty_folders(folder, *folder.parents[:-2])  # Hydra makes them; outputs/ may have been there before


def _run_in_sweep(config: DictConfig, folder: Path, overrides: Sequence[str]) -> tuple[float, ...] | None:
    """Do one run of a sweep, its output in log.txt; returns its objectives, or None if it failed.

    Raises:
        SystemExit: torchrun started this process.
    """
    from unlearnbench.experiment.distributed import process_count
    from unlearnbench.experiment.run import execute
    from unlearnbench.experiment.run_spec import RunSpec
    from unlearnbench.sweeps.monitor import objectives, redirected_to_log
    from unlearnbench.sweeps.retries import is_left_out

    if process_count() > 1:
        message = "hydra/launcher=... distributes the runs of a sweep, not torchrun; leave out one of the two"
        raise SystemExit(print_error(UserError(message)))
    if is_left_out(folder):
        return None
    with redirected_to_log(folder, ["unlearnbench run", *overrides]):
        try:
            values = objectives(execute(RunSpec.of(config), folder, overrides))
        except Exception as error:
            if not isinstance(error, UserError | RunError):
                traceback.print_exc()
            print_error(error)
            if not (folder / "run.json").exists():
                _record_failure(config, folder, overrides, error)
            return None
    return tuple(value for value in values if value is not None) or None


def _record_failure(config: DictConfig, folder: Path, overrides: Sequence[str], error: Exception) -> None:
    """Write the run.json of a run that failed before it began."""
    from unlearnbench.results.run import Run

    settings = OmegaConf.to_container(config, resolve=False)
    log = {"status": "error", "error": error_text(error)}
    Run(
        folder, {**log, "algo": str(OmegaConf.select(config, "algo.name")), "config": settings, "overrides": list(overrides)}
    ).write()
