"""Probe a finished run, and compare what it no longer shows with a model retrained without the concept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unlearnbench.config.errors import UserError
from unlearnbench.experiment.attack import attack, stored_report
from unlearnbench.reports.depth_report import depth_markdown
from unlearnbench.results.depth import TEXT_PROBE, depth_rows
from unlearnbench.results.run import Run, load_run
from unlearnbench.storage.atomic import write_text

PROBES = ("completion", "sdedit", "inpaint", TEXT_PROBE)


def measure_depth(folder: str | Path, oracle: str | Path | None = None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run the probes that the run does not have yet, and write depth.json and depth.md into its folder.

    Args:
        folder: the run's folder.
        oracle: the folder of a run of `algo=oracle` with the same concept, prompts and sampling; it is probed too.
        overrides: settings of every probe, such as attack.prompts=12.

    Returns:
        The content of depth.json.

    Raises:
        UserError: a probe is chosen, a run cannot be probed, or the runs differ in concept, prompts or sampling.
    """
    if chosen := next((override for override in overrides if override.startswith("attack=")), None):
        raise UserError(f"{chosen}: depth runs all of {', '.join(PROBES)}; leave it out, or run `unlearnbench attack` with one")
    run = load_run(folder)
    reference = load_run(oracle) if oracle is not None else None
    if reference is not None and _concept(reference) != _concept(run):
        raise UserError(f"{reference.folder}: its concept is {_concept(reference)}, that of {run.folder} {_concept(run)}")
    unlearned = {probe: _probe(run, probe, overrides) for probe in PROBES}
    without = {probe: _probe(reference, probe, overrides) for probe in PROBES} if reference is not None else None
    try:
        rows = depth_rows(unlearned, without)
    except ValueError as error:
        raise UserError(f"{oracle}: {error}; run the oracle with the same concept, prompts and sample.seed") from error
    report = {
        "run": run.name,
        "oracle": None if reference is None else str(reference.folder),
        "settings": list(overrides),
        "rows": [row._asdict() | {"interval": row.interval._asdict()} for row in rows],
    }
    write_text(run.folder / "depth.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_text(run.folder / "depth.md", depth_markdown(report))
    return report


def _concept(run: Run) -> str:
    return run.log["config"]["concept"]["name"]


def _probe(run: Run, probe: str, overrides: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a probe's images: those of an earlier probe with the same weights and settings, or new ones."""
    words = [f"attack={probe}", *overrides]
    return (stored_report(run, words) or attack(run.folder, *words))["images"]
