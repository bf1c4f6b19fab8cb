"""How a run came about, as run.json tells it: its words and settings, versions, commit, device, prompts."""

from __future__ import annotations

import json
import platform
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

from unlearnbench.cache import digest
from unlearnbench.sets import record
from unlearnbench.spec import Spec

PACKAGES = ("unlearnbench", "torch", "torchvision", "diffusers", "transformers", "hydra-core", "lpips", "torchmetrics", "numpy")


def provenance(spec: Spec, device: torch.device, overrides: Sequence[str]) -> dict[str, Any]:
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
        "prompt_sets": record([*spec.concept.sources(), spec.retain.prompts, spec.retain.images]),
        "config": plain(spec),
    }


def plain(spec: Spec) -> dict[str, Any]:
    """The settings as they stand in run.json."""
    return json.loads(json.dumps(spec.config, default=str))


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _git_commit() -> str | None:
    """The commit of the source tree that this package runs from, with "+" if it was changed since; None if installed."""
    root = Path(__file__).parent.parent
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
