"""Settings of runs under dotted names, and how they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unlearnbench.results.run import Run

NEUTRAL = ("cache", "cache_limit", "checkpoint_every", "tracker")  # settings that change no result


def differing_settings(flat: Sequence[dict[str, Any]]) -> list[str]:
    """The settings in which these differ, but `NEUTRAL` ones; what a run lacks, or never resolved, is none."""
    values: dict[str, set[str]] = {}
    for settings in flat:
        for key, value in settings.items():
            values.setdefault(key, set()).update([str(value)] if "${" not in str(value) else [])
    return sorted(key for key, found in values.items() if len(found) > 1 and key not in NEUTRAL)


def original_hash(run: Run) -> dict[str, str]:
    """The start of the hash of the model that a run began with, as one more setting; none if it never loaded it."""
    return {"model.hash": run.log["fingerprint"][:8]} if "fingerprint" in run.log else {}


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def without_classes(settings: dict[str, Any]) -> dict[str, str]:
    """Settings under dotted names, as text, less the classes that they are of: a class that moves changes no result."""
    return {key: str(value) for key, value in flatten(settings).items() if not key.endswith("_target_")}
