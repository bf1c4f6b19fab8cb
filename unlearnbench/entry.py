"""Hydra's entry: one job of `unlearnbench run`, single or of a sweep."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from unlearnbench.config import CONF, RunError, UserError


@hydra.main(version_base="1.3", config_path=str(CONF.resolve()), config_name="config")
def main(config: DictConfig) -> tuple[float, ...] | None:
    """Do one job; returns forget accuracy and integrity on the retain prompts, for a sweeper to optimise.

    In a sweep a job that fails says so in its run.json, and the others go on.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from unlearnbench import bench, results
    from unlearnbench.spec import Spec

    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    added = [source.path for source in job.runtime.config_sources if "command-line" in source.provider]
    words = [*([f"hydra.searchpath={added}"] if added else []), *job.overrides.task]
    try:
        done = bench.execute(Spec.of(config), folder, words)
    except (UserError, RunError) as error:
        if job.mode != RunMode.MULTIRUN:
            raise SystemExit(say(error)) from error
        say(error)
        if not (folder / "run.json").exists():
            settings = OmegaConf.to_container(config, resolve=False)
            log = {
                "status": "error",
                "error": str(error),
                "algo": config.algo.name,
                "config": settings,
                "overrides": words,
            }
            results.Run(folder, log).write()
        return None
    results.show(done)
    found = [v.unlearned for name, split in (("forget_accuracy", "forget"), ("integrity", "retain"))
             for v in done.values if (v.metric, v.split) == (name, split)]  # fmt: skip
    return tuple(found) or None


def say(error: UserError | RunError) -> int:
    """Print an error, a line each; returns the exit code: 2 for a mistake of the user's, 1 for a run that failed."""
    kind, code = ("error", 2) if isinstance(error, UserError) else ("run failed", 1)
    for line in str(error).splitlines():
        print(f"{kind}: {line}", file=sys.stderr)
    return code
