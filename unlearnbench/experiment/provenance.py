"""The provenance of a run in run.json: its overrides and settings, versions, commit, device and prompts."""

from __future__ import annotations

import json
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from unlearnbench.__about__ import __version__
from unlearnbench.config.compose import compose
from unlearnbench.config.errors import UserError
from unlearnbench.config.paths import at_home
from unlearnbench.config.quoting import command_text
from unlearnbench.data.prompt_sets import prompt_set, prompt_set_versions
from unlearnbench.data.prompts import Prompt
from unlearnbench.experiment.downloads import prompt_sources
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.results.run import Run
from unlearnbench.storage.cache import digest

PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "hydra-core", "lpips", "torchmetrics", "numpy")


def collect_provenance(spec: RunSpec, device: torch.device, overrides: Sequence[str]) -> dict[str, Any]:
    """The first entries of run.json."""
    return {
        "status": "started",
        "algo": spec.algo.name,
        "overrides": list(overrides),
        "command": _command(overrides),
        **environment(device),
        "prompts": digest([[_row(p) for p in side] for side in (spec.concept.load(), spec.retain.load(spec.concept))]),
        "prompt_sets": prompt_set_versions([*prompt_sources(spec), _default_images(spec)]),
        "model_commit": spec.model.commit(),
        "config": plain_config(spec),
        "fetch": spec.fetch,
    }


def environment(device: torch.device) -> dict[str, Any]:
    """The entries of run.json that say when and where something was done, and with which versions."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": device_name(device),
        "versions": _versions(),
        "git": _git_commit(),
    }


def device_name(device: torch.device) -> str:
    """A device as run.json names it: a GPU of CUDA by its name, every other one by its kind first."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads" if device.type == "cpu" else f"{device.type}, {platform.machine()}"


def is_same_kind(name: str, device: torch.device) -> bool:
    """Whether a device's name in run.json, by `device_name`, is that of a device of the same kind: cpu, cuda, mps or xpu."""
    kind = name.partition(",")[0]
    return (kind if kind in ("cpu", "mps", "xpu") else "cuda") == device.type


def _row(prompt: Prompt) -> dict[str, Any]:
    """A prompt as its digest has it; earlier versions had no other columns."""
    return {name: value for name, value in asdict(prompt).items() if name != "columns" or value}


def _default_images(spec: RunSpec) -> str | None:
    """The set of real images that the metrics are measured with, though no setting names it; None if none is."""
    metrics = [metric for metric in spec.metrics.values() if metric.may_be_left_out(spec.evaluation_setting)]
    name = spec.evaluation_setting.real_images
    images = prompt_set(name) if metrics else None
    return name if images is not None and images.is_local() else None


def reopened_config(run: Run, overrides: Sequence[str], parts: Sequence[str], finished: bool = True) -> DictConfig:
    """The settings of a finished run as in run.json, with some parts overridden, and with the cache that it named, else today's.

    A cache that the run named is used as long as its folder is there; today's is the default of a new run.

    Args:
        run: the run.
        overrides: as on the command line.
        parts: the dotted names of the settings that may be overridden.
        finished: whether the run has to be finished.

    Raises:
        UserError: the run is not finished, or an override sets something else, which would no longer describe the run.
    """
    log = run.log
    if finished and log["status"] != "done":
        raise UserError(f"{run.folder}: the run is not finished ({run.status}); {command_text('resume', run.folder)}")
    allowed = [*parts, "device", "cache", "fetch", "hydra.searchpath"]
    for override in overrides:
        if not any(_sets(override, part) for part in allowed):
            raise UserError(f"{override}: cannot be changed after the run; allowed: {', '.join(allowed[:-1])}")
    changed = [part for part in allowed if any(_sets(override, part) for override in overrides)]
    refined = [part for part in changed if not any(override_key(override) == part for override in overrides)]
    earlier = [o for o in log["overrides"] if any(_sets(o, part) for part in (*refined, "experiment"))] if refined else []
    new, config = compose(*earlier, *overrides), OmegaConf.create({**log["config"], "fetch": recorded_fetch(run)})
    named = any(override_key(override) == "cache" for override in log["overrides"]) and Path(at_home(config.cache)).is_dir()
    for part in {*changed, *(() if named else ("cache",))} - {"hydra.searchpath"}:
        OmegaConf.update(config, part, OmegaConf.select(new, part), merge=False, force_add=True)
    return config


def recorded_fetch(run: Run) -> str:
    """The setting `fetch` that a run began with; of a run of an earlier version, which recorded none, by its overrides."""
    if "fetch" in run.log:
        return run.log["fetch"]
    values = [override.partition("=")[2] for override in run.log["overrides"] if override_key(override) == "fetch"]
    return values[-1].strip("'\"") if values else "auto"


def refuse_without_model(run: Run) -> None:
    """Check that a run has a model.

    Raises:
        UserError: it measured images that were made elsewhere.
    """
    if "images_from" in run.log:
        raise UserError(
            f"{run.folder}: measured images that were made elsewhere and has no model; run its weights: algo=checkpoint"
        )


def override_key(override: str) -> str:
    """The dotted name that an override sets."""
    return re.split(r"[=@]", override.lstrip("+~"))[0]


def _sets(override: str, part: str) -> bool:
    """Whether the override sets this part of the settings, or something in it."""
    return f"{override_key(override)}.".startswith(f"{part}.")


def _command(overrides: Sequence[str]) -> str:
    """The command line; of a run that another program started from Python, the one that does the same."""
    program = Path(sys.argv[0])
    if program.name.startswith("unlearnbench") or program.parts[-2:] == ("unlearnbench", "__main__.py"):
        words = sys.argv[0].split(" ") if sys.argv[0] == "unlearnbench run" else sys.argv[:1]
        return shlex.join([*words, *sys.argv[1:]])
    return shlex.join(["unlearnbench", "run", *overrides])


def plain_config(spec: RunSpec) -> dict[str, Any]:
    """The settings as run.json stores them."""
    return json.loads(json.dumps(spec.config, default=str))


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "unlearnbench": __version__}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _git_commit() -> str | None:
    """The commit of the source tree that this package runs from, with "+" if files have changed; None if it is installed."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    commands = [[*git, "rev-parse", "HEAD"], [*git, "status", "--porcelain", "-uno"]]
    try:
        commit, changes = (
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() for command in commands
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changes else "")
