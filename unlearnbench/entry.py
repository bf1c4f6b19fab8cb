"""Hydra's entry: one job of `unlearnbench run`, single or of a sweep."""

from __future__ import annotations

import sys
import traceback
from contextlib import nullcontext
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from unlearnbench.config import CONF, RunError, UserError


@hydra.main(version_base="1.3", config_path=str(CONF.resolve()), config_name="config")
def main(config: DictConfig) -> tuple[float, ...] | None:
    """Do one job; in a sweep returns forget accuracy and integrity_norm on the retain prompts, for a sweeper to optimise.

    In a sweep a job that fails says so in its run.json, and the others go on; what it prints is in its log.txt.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from unlearnbench import execution, files, results, sweep, team
    from unlearnbench.check import device_of
    from unlearnbench.spec import Spec

    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    added = sweep.given_folders(job)
    words = [*([f"hydra.searchpath={added}"] if added else []), *job.overrides.task]
    if job.mode != RunMode.MULTIRUN:
        given = any(word.startswith("hydra.run.dir=") for word in job.overrides.hydra)
        try:
            spec = Spec.of(config)
            with_others = team.Team(spec.model, spec.algo, spec.training.processes > 1) if team.asked() else None
            if with_others is not None and with_others.rank > 0:
                with_others.follow(device_of(spec.device))
                return None
            with nullcontext(folder) if given else execution.own_folder(spec, folder) as own, with_others or nullcontext():
                done = execution.execute(spec, own, words)
            results.show(done)
        except (UserError, RunError) as error:
            raise SystemExit(say(error)) from error
        finally:
            if not given:
                files.remove_empty(folder, folder.parent)  # which Hydra made
        return None
    if team.asked():
        raise SystemExit(say(UserError("a sweep is shared out by hydra/launcher=..., not by torchrun; leave out one of the two")))
    if sweep.left_out(folder):
        return None
    with sweep.quietly(folder, " ".join(["unlearnbench run", *words])):
        try:
            found = sweep.objectives(execution.execute(Spec.of(config), folder, words))
        except Exception as error:
            if not isinstance(error, UserError | RunError):
                traceback.print_exc()
            say(error)
            if not (folder / "run.json").exists():
                settings = OmegaConf.to_container(config, resolve=False)
                known = {"algo": str(OmegaConf.select(config, "algo.name")), "config": settings, "overrides": words}
                results.Run(folder, {"status": "error", "error": _told(error), **known}).write()
            return None
    return tuple(value for value in found if value is not None) or None


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, UserError | RunError) else f"{type(error).__name__}: {error}"


def say(error: Exception) -> int:
    """Print an error, a line each; returns the exit code: 2 for a mistake of the user's, 1 for a run that failed."""
    kind, code = ("error", 2) if isinstance(error, UserError) else ("run failed", 1)
    for line in _told(error).splitlines():
        print(f"{kind}: {line}", file=sys.stderr)
    return code
