"""Settings of runs by dotted name, and the differences between them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from unlearnbench.results.run import Run

NEUTRAL = ("cache", "cache_limit", "checkpoint_every", "tracker", "model.offload_text_encoders")  # settings that change no result
LATER = {
    "model.variant": "None",
    "metrics.integrity.where_shown": "False",
    "model.scheduler": "None",
    "model.clip_skip": "0",
    "model.offload_text_encoders": "False",
    "concept.measured": "[]",
    "concept.implicit": "[]",
    "concept.judge": "None",
    "concept.column": "",
    "concept.measure_all": "False",
    "concept.attribute": "",
    "concept.world": "pictoworld",
    "concept.near_entries": "False",
    "concept.l2_to_start": "0.0",
    "concept.selective": "1.0",
    "concept.merge": "",
    "concept.density": "0.3",
    "concept.scale": "1.0",
    "sample.seeds": "[]",
    "retain.measured": "[]",
    "retain.keep_named": "False",
    "sample.row_guidance": "False",
    "sample.row_size": "False",
    "algo.also": "[]",
    "algo.sampler": "trained",
}  # settings that came later, and the value with which results are what they were before


FIRST_DOMAINS = ("photo", "pictoworld")  # those of the earliest runs: later domains' anchors and detectors are in no such run
OF_DOMAIN = re.compile(r"(?:^|\.)(?:anchors|detector)\.([^.]+)(?:\.|$)")


def affects_results(key: str) -> bool:
    """Whether a setting, by its dotted name, can change a result: not the `NEUTRAL` ones, nor the path of a class."""
    return key not in NEUTRAL and not key.endswith("_target_")


def differing_settings(flat: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the settings that affect results and differ between runs.

    A setting counts only for the runs that have it, and only if it was resolved (no "${").

    Args:
        flat: the settings of each run, by dotted name.
    """
    values: dict[str, set[str]] = {}
    for settings in flat:
        for key, value in settings.items():
            values.setdefault(key, set()).update([str(value)] if "${" not in str(value) else [])
    return sorted(key for key, texts in values.items() if len(texts) > 1 and affects_results(key))


def setting_changes(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that affect results and differ between two trees, as "algo.lr 1e-05, now 0.0001"."""
    before, after = flatten(earlier), flatten(now)
    keys = [key for key in dict.fromkeys([*before, *after]) if affects_results(key)]
    return [f"{key} {before.get(key)}, now {after.get(key)}" for key in keys if before.get(key) != after.get(key)]


def original_hash(run: Run) -> dict[str, str]:
    """The start of the original model's hash, as one more setting; empty if the run never loaded the model."""
    return {"model.hash": run.log["fingerprint"][:8]} if "fingerprint" in run.log else {}


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def without_classes(settings: dict[str, Any]) -> dict[str, str]:
    """Settings by dotted name, as text, without what changes no result.

    Without the paths of classes, `LATER` ones that do nothing, and the anchors and detectors of domains that came later, unless
    the model is of that domain.
    """
    flat = flatten(settings)
    domains = {*FIRST_DOMAINS, flat.get("model.domain")}
    texts = {key: str(value) for key, value in flat.items() if not key.endswith("_target_")}
    own = {key: text for key, text in texts.items() if (match := OF_DOMAIN.search(key)) is None or match.group(1) in domains}
    return {key: text for key, text in own.items() if LATER.get(key) != text}
