"""Hydra's own settings of a sweep, read from multirun.yaml."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any


def is_pareto_sweep(sweep: Path) -> bool:
    """Whether a sweep was for these two objectives."""
    hydra = hydra_settings(sweep)
    return hydra is not None and "ParetoSweeper" in hydra.sweeper["_target_"]


def hydra_settings(folder: Path) -> Any:
    """Hydra's own settings of the sweep in this folder, as it wrote them there; None if it has not yet."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = folder / "multirun.yaml"
    with suppress(OSError, YAMLError, OmegaConfBaseException):  # not there, or not written to its end
        found = OmegaConf.load(path)
        if OmegaConf.select(found, "hydra.runtime.choices") is not None:
            return found.hydra
    return None


def config_dirs(hydra: Any) -> list[str]:
    """The folders of yaml files that --config-dir added, by Hydra's own settings."""
    return [source.path for source in hydra.runtime.config_sources if "command-line" in source.provider]


def sweep_overrides(folder: Path) -> list[str] | None:
    """The words that go on with the sweep in this folder, less resume=true; None if no sweep began there."""
    hydra = hydra_settings(folder)
    if hydra is None:
        return None
    own = [word for word in hydra.overrides.hydra if not word.startswith(("hydra.mode=", "hydra.sweep.dir="))]
    task = [word for word in hydra.overrides.task if not word.startswith("resume=")]
    return ["-m", *(f"--config-dir={path}" for path in config_dirs(hydra)), *own, *task, f"hydra.sweep.dir={folder}"]


def planned_runs(folder: Path) -> int | None:
    """How many runs the sweep in this folder is to have; None if that is not known yet."""
    hydra = hydra_settings(folder)
    if hydra is None or "trials" in hydra.sweeper:
        return hydra and hydra.sweeper.trials
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    words = [*(f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()), *hydra.overrides.task]
    return len(BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), None)[0])
