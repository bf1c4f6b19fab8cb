"""A run's folder: claimed for one process, opened again after a kill."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from unlearnbench.config.errors import UserError
from unlearnbench.console import console
from unlearnbench.experiment.provenance import collect_provenance, plain_config
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.results.run import Run, load_run
from unlearnbench.results.settings import setting_changes
from unlearnbench.storage.atomic import claim_folder, remove_empty_folders, remove_leftovers, remove_path

LOCK = "run.lock"


@contextmanager
def claimed_folder(spec: RunSpec, folder: Path) -> Iterator[Path]:
    """A folder for one run, by `folder_for`; it is gone again if no run began in it."""
    own = folder_for(spec, folder)
    try:
        yield own
    finally:
        remove_empty_folders(own / "images", own, own.parent)


def folder_for(spec: RunSpec, folder: Path) -> Path:
    """The newest unfinished run beside `folder` with the settings of `spec`, if `resume` asks for it; else one of its own.

    Two runs that begin in the same second get two folders: the second has -2 at its name.
    """
    if spec.resume:
        for path in sorted(folder.parent.glob("*/run.json"), reverse=True):
            with suppress(UserError):
                log = load_run(path.parent).log
                if log["status"] != "done" and not setting_changes(log["config"], plain_config(spec)):
                    return path.parent
    try:
        return claim_folder(folder, "images")
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be written ({error.strerror})") from error


def open_run(spec: RunSpec, folder: Path, device: torch.device, overrides: Sequence[str]) -> Run:
    """A run's record: a new one, or that of an earlier try, which is taken up again."""
    now = collect_provenance(spec, device, overrides)
    if not (folder / "run.json").exists():
        return Run(folder, now)
    done = load_run(folder)
    log = done.log
    if log["status"] == "done" or "started" not in log:
        return done if log["status"] == "done" else Run(folder, now)
    if others := setting_changes(log["config"], now["config"]):
        raise UserError(f"{folder}: its run began with other settings ({', '.join(others[:3])}); choose another folder")
    if log["prompts"] != now["prompts"]:
        raise UserError(f"{folder}: its run began with other prompts than the lists hold now; choose another folder")
    if others := setting_changes({k: log[k] for k in ("versions", "device")}, {k: now[k] for k in ("versions", "device")}):
        console.print(f"taken up again elsewhere, equal up to rounding: {', '.join(others)}", style="yellow", markup=False)
    for path in (folder, folder / "images"):
        remove_leftovers(path)
    remove_path(folder / "error.txt")
    log.pop("error", None)
    log |= {"status": "started", "resumed": [*log.get("resumed", []), now["started"]]}
    return Run(folder, log)
