"""Hydra's entry: one job of `unlearnbench run`, single or of a sweep."""

from __future__ import annotations

import sys
import traceback
from contextlib import nullcontext
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from unlearnbench.config.errors import RunError, UserError
from unlearnbench.config.paths import CONF


@hydra.main(version_base="1.3", config_path=str(CONF.resolve()), config_name="config")
def run_job(config: DictConfig) -> tuple[float, ...] | None:
    """Do one job; in a sweep returns forget accuracy and integrity_norm on the retain prompts, for a sweeper to optimise.

    In a sweep a job that fails says so in its run.json, and the others go on; what it prints is in its log.txt.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from unlearnbench.experiment.distributed import Team, asked
    from unlearnbench.experiment.preflight import select_device
    from unlearnbench.experiment.run import execute
    from unlearnbench.experiment.run_folder import claimed_folder
    from unlearnbench.experiment.run_spec import RunSpec
    from unlearnbench.reports.tables import print_run
    from unlearnbench.results.run import Run
    from unlearnbench.storage.atomic import remove_empty_folders
    from unlearnbench.sweeps.hydra_settings import config_dirs
    from unlearnbench.sweeps.monitor import objectives, redirected_to_log
    from unlearnbench.sweeps.retries import is_left_out

    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    added = config_dirs(job)
    words = [*([f"hydra.searchpath={added}"] if added else []), *job.overrides.task]
    if job.mode != RunMode.MULTIRUN:
        given = any(word.startswith("hydra.run.dir=") for word in job.overrides.hydra)
        try:
            spec = RunSpec.of(config)
            with_others = Team(spec.model, spec.algo, spec.training.processes > 1) if asked() else None
            if with_others is not None and with_others.rank > 0:
                with_others.follow(select_device(spec.device))
                return None
            with nullcontext(folder) if given else claimed_folder(spec, folder) as own, with_others or nullcontext():
                done = execute(spec, own, words)
            print_run(done)
        except (UserError, RunError) as error:
            raise SystemExit(print_error(error)) from error
        finally:
            if not given:
                remove_empty_folders(folder, folder.parent)  # which Hydra made
        return None
    if asked():
        raise SystemExit(
            print_error(UserError("a sweep is shared out by hydra/launcher=..., not by torchrun; leave out one of the two"))
        )
    if is_left_out(folder):
        return None
    with redirected_to_log(folder, " ".join(["unlearnbench run", *words])):
        try:
            found = objectives(execute(RunSpec.of(config), folder, words))
        except Exception as error:
            if not isinstance(error, UserError | RunError):
                traceback.print_exc()
            print_error(error)
            if not (folder / "run.json").exists():
                settings = OmegaConf.to_container(config, resolve=False)
                known = {"algo": str(OmegaConf.select(config, "algo.name")), "config": settings, "overrides": words}
                Run(folder, {"status": "error", "error": error_text(error), **known}).write()
            return None
    return tuple(value for value in found if value is not None) or None


def error_text(error: Exception) -> str:
    """The text of an error; one that is no mistake of the user's leads with its class."""
    return str(error) if isinstance(error, UserError | RunError) else f"{type(error).__name__}: {error}"


def print_error(error: Exception) -> int:
    """Print an error, a line each; returns the exit code: 2 for a mistake of the user's, 1 for a run that failed."""
    kind, code = ("error", 2) if isinstance(error, UserError) else ("run failed", 1)
    for line in error_text(error).splitlines():
        print(f"{kind}: {line}", file=sys.stderr)
    return code
