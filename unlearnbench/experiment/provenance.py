"""How a run came about, as run.json tells it: its words and settings, versions, commit, device, prompts."""

from __future__ import annotations

import json
import platform
import re
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
from unlearnbench.data.prompt_sets import prompt_set_versions
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.results.run import Run
from unlearnbench.storage.cache import digest

PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "hydra-core", "lpips", "torchmetrics", "numpy")


def collect_provenance(spec: RunSpec, device: torch.device, overrides: Sequence[str]) -> dict[str, Any]:
    """What run.json begins with."""
    return {
        "status": "started",
        "algo": spec.algo.name,
        "overrides": list(overrides),
        "command": " ".join(sys.argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "versions": _versions(),
        "git": _git_commit(),
        "prompts": digest([[asdict(p) for p in side] for side in (spec.concept.load(), spec.retain.load(spec.concept))]),
        "prompt_sets": prompt_set_versions([*spec.concept.prompt_sources(), spec.retain.prompts, spec.retain.images]),
        "config": plain_config(spec),
    }


def reopened_config(done: Run, words: Sequence[str], parts: Sequence[str]) -> DictConfig:
    """A finished run's settings as run.json holds them, some parts of them set anew.

    The cache is today's, since the run may have been made elsewhere.

    Args:
        done: the run.
        words: the new settings, as on the command line.
        parts: what they may set, as dotted names.

    Raises:
        UserError: the run is not finished, or a word is of another part: it would say what the run was not.
    """
    log = done.log
    if log["status"] != "done":
        raise UserError(f"{done.folder}: its run is not finished ({log['status']}); `unlearnbench resume {done.folder}`")
    allowed = [*parts, "device", "cache", "cache_limit", "hydra.searchpath"]
    for word in words:
        if not any(_sets(word, part) for part in allowed):
            raise UserError(f"{word}: the run was made without it; what may be set anew: {', '.join(allowed[:-1])}")
    changed = [part for part in allowed if any(_sets(word, part) for word in words)]
    in_part = [part for part in changed if not any(_key(word) == part for word in words)]
    begun = [word for word in log["overrides"] if any(_sets(word, part) for part in (*in_part, "experiment"))] if in_part else []
    new, config = compose(*begun, *words), OmegaConf.create(log["config"])
    for part in {*changed, "cache"} - {"hydra.searchpath"}:
        OmegaConf.update(config, part, OmegaConf.select(new, part), merge=False, force_add=True)
    return config


def _key(word: str) -> str:
    return re.split(r"[=@]", word.lstrip("+~"))[0]


def _sets(word: str, part: str) -> bool:
    """Does the word set this part of the settings, or something in it?"""
    return f"{_key(word)}.".startswith(f"{part}.")


def plain_config(spec: RunSpec) -> dict[str, Any]:
    """The settings as they stand in run.json."""
    return json.loads(json.dumps(spec.config, default=str))


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "unlearnbench": __version__}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _git_commit() -> str | None:
    """The commit of the source tree that this package runs from, with "+" if it was changed since; None if installed."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    asked = [["git", "-C", str(root), "rev-parse", "HEAD"], ["git", "-C", str(root), "status", "--porcelain", "-uno"]]
    try:
        commit, changes = (
            subprocess.run(a, capture_output=True, text=True, check=True, timeout=10).stdout.strip() for a in asked
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changes else "")
