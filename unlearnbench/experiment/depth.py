"""Probe a run, and compare what it no longer shows with a model retrained without the concept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unlearnbench.config.errors import UserError
from unlearnbench.experiment.attack import attack_run, load_subject
from unlearnbench.experiment.attack_inputs import open_attack, stored_report
from unlearnbench.experiment.attacked import AttackedRun
from unlearnbench.experiment.depth_images import depth_images
from unlearnbench.reports.attack_report import ORACLE_SUFFIX
from unlearnbench.reports.depth_report import depth_markdown
from unlearnbench.results.depth import TEXT_PROBE, Probed, depth_rows
from unlearnbench.results.run import Run, load_run
from unlearnbench.storage.atomic import atomic_path, write_text
from unlearnbench.worlds import World, embedded_world

PROBES = ("completion", "sdedit", "inpaint", TEXT_PROBE)


def measure_depth(folder: str | Path, oracle: str | Path | None = None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run the probes that the run does not have yet, and write depth.json, depth.md and depth.png into its folder.

    Args:
        folder: the run's folder.
        oracle: the folder of a run of `algo=oracle` with the same concept, prompts and sampling; it is probed too. By default
            the oracle that the world includes for the concept, if there is one.
        overrides: settings of every probe, such as attack.prompts=12.

    Returns:
        The content of depth.json.

    Raises:
        UserError: a probe is chosen, a run cannot be probed, or the runs differ in concept, prompts or sampling.
    """
    if chosen := next((override for override in overrides if override.startswith("attack=")), None):
        raise UserError(f"{chosen}: depth runs all of {', '.join(PROBES)}; leave it out, or run `unlearnbench attack` with one")
    run = load_run(folder)
    probed = probe_run(run, oracle, overrides)
    try:
        rows = depth_rows(*probed)
    except ValueError as error:
        raise UserError(f"{oracle}: {error}; run the oracle with the same concept, prompts and sample.seed") from error
    world = _world(run)
    included = "" if probed.oracle is None or world is None else f"included in {world.title}"
    report = {
        "run": run.name,
        "oracle": (included or None) if oracle is None else str(oracle),
        "settings": list(overrides),
        "rows": [row._asdict() | {name: getattr(row, name)._asdict() for name in ("interval", "share_interval")} for row in rows],
    }
    write_text(run.folder / "depth.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_text(run.folder / "depth.md", depth_markdown(report))
    if (sheet := depth_images(*_subjects(run, oracle), PROBES, overrides)) is not None:
        with atomic_path(run.folder / "depth.png") as temporary:
            sheet.save(temporary, "png")
    return report


def probe_run(run: Run, oracle: str | Path | None = None, overrides: Sequence[str] = (), finished: bool = True) -> Probed:
    """The images of all probes of a run's model and of an oracle's; probes that are already there are not repeated.

    Args:
        run: the run.
        oracle: see `measure_depth`.
        overrides: settings of every probe.
        finished: whether the run has to be finished.

    Raises:
        UserError: a run cannot be probed, or the runs differ in concept.
    """
    unlearned, reference = _subjects(run, oracle, finished)
    return Probed(_probe(unlearned, overrides), None if reference is None else _probe(reference, overrides))


def _subjects(run: Run, oracle: str | Path | None, finished: bool = True) -> tuple[AttackedRun, AttackedRun | None]:
    """The run, and the oracle with which it is compared; None without one.

    Raises:
        UserError: the runs differ in concept.
    """
    unlearned = AttackedRun(run, run.folder / "weights.safetensors", finished=finished)
    if oracle is not None:
        reference = load_run(oracle)
        if _concept(reference) != _concept(run):
            raise UserError(f"{reference.folder}: its concept is {_concept(reference)}, that of {run.folder} {_concept(run)}")
        return unlearned, AttackedRun.of(reference)
    weights = included_oracle(run)
    return unlearned, AttackedRun(run, weights, ORACLE_SUFFIX, finished) if weights else None


def included_oracle(run: Run) -> Path | None:
    """The weights of the oracle that the run's world includes for its concept; None if it includes none."""
    world = _world(run)
    return None if world is None else world.oracle(_concept(run))


def _world(run: Run) -> World | None:
    """The world whose own model the run began with."""
    return embedded_world(run.log["config"]["model"]["path"])


def _concept(run: Run) -> str:
    return run.log["config"]["concept"]["name"]


def _probe(subject: AttackedRun, overrides: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The rows of the images of every probe: those of an earlier probe with the same weights and settings, or new ones.

    The new ones share one loaded model.
    """
    images, attacked = {}, None
    for probe in PROBES:
        words = [f"attack={probe}", *overrides]
        report = stored_report(subject, words)
        if report is None:
            attacked = attacked or load_subject(subject, open_attack(subject, words)[0])
            report = attack_run(subject, words, attacked)
        images[probe] = report["images"]
    return images
