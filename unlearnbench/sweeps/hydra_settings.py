"""Hydra's own settings of a sweep, read from multirun.yaml."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from unlearnbench.config.quoting import quoted

SWEEP_SETTINGS = "multirun.yaml"  # Hydra writes it into the folder of a sweep


def is_pareto_sweep(sweep: Path) -> bool:
    """Whether the sweep searches for two objectives."""
    hydra = hydra_settings(sweep)
    return hydra is not None and "ParetoSweeper" in hydra.sweeper["_target_"]


def hydra_settings(folder: Path) -> Any:
    """Hydra's own settings of the sweep in this folder; None until Hydra has written them."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = folder / SWEEP_SETTINGS
    with suppress(OSError, YAMLError, OmegaConfBaseException):  # absent or incomplete
        settings = OmegaConf.load(path)
        if OmegaConf.select(settings, "hydra.runtime.choices") is not None:
            return settings.hydra
    return None


def config_dirs(hydra: Any) -> list[str]:
    """The folders of yaml files that --config-dir added, by Hydra's own settings."""
    return [source.path for source in hydra.runtime.config_sources if "command-line" in source.provider]


def common_overrides(folder: Path) -> set[str] | None:
    """The overrides of the sweep in this folder as typed, None if not known yet; those of a run that are not among them vary."""
    hydra = hydra_settings(folder)
    return None if hydra is None else set(hydra.overrides.task)


def sweep_overrides(folder: Path) -> list[str] | None:
    """The arguments that continue the sweep in this folder, without resume=true; None if no sweep began there."""
    hydra = hydra_settings(folder)
    if hydra is None:
        return None
    own = [override for override in hydra.overrides.hydra if not override.startswith(("hydra.mode=", "hydra.sweep.dir="))]
    task = [override for override in hydra.overrides.task if not override.startswith("resume=")]
    return ["-m", *(f"--config-dir={path}" for path in config_dirs(hydra)), *own, *task, f"hydra.sweep.dir={quoted(str(folder))}"]


def planned_runs(folder: Path) -> int | None:
    """The number of runs that the sweep in this folder will have; None if not known yet."""
    hydra = hydra_settings(folder)
    if hydra is None or "trials" in hydra.sweeper:
        return hydra and hydra.sweeper.trials
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    overrides = [*(f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()), *hydra.overrides.task]
    return len(BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(overrides), None)[0])
