"""A run's folder: claimed by one process, opened again after a kill, and updated while the run goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unlearnbench.config.errors import UserError
from unlearnbench.console import Stopwatch
from unlearnbench.experiment.provenance import collect_provenance, plain_config
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.models.lora_file import LORA_FILE
from unlearnbench.results.run import Run, load_run
from unlearnbench.results.settings import setting_changes, without_classes
from unlearnbench.storage.atomic import claim_folder, remove_empty_folders, remove_leftovers, remove_path
from unlearnbench.storage.lock import run_lock

logger = logging.getLogger(__name__)


@dataclass
class Recorder:
    """Writes down what a run has completed.

    Attributes:
        run: the run's record.
        seconds: the time of this try and of earlier ones.
    """

    run: Run
    seconds: Stopwatch

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.run.folder

    @property
    def weights(self) -> Path:
        """The file of the weights that changed."""
        return self.run.folder / "weights.safetensors"

    @property
    def lora(self) -> Path:
        """The file of the low-rank adapter, if the run trains one; its product is merged into the weights, too."""
        return self.run.folder / LORA_FILE

    def update(self, **entries: Any) -> None:
        """Set entries of run.json, with the seconds so far, and write it."""
        self.run.log |= entries | {"seconds": self.seconds()}
        self.run.write()

    def stop(self, **entries: Any) -> None:
        """Set entries of run.json at a failure, but not the seconds: the checkpoint of a training holds its own."""
        self.run.log |= entries
        self.run.write()


@contextmanager
def claimed_folder(spec: RunSpec, folder: Path) -> Iterator[Path]:
    """A folder for one run, by `folder_for`; it is removed at the end if no run began in it."""
    own = folder_for(spec, folder)
    try:
        yield own
    finally:
        remove_empty_folders(own / "images", own, own.parent)


def folder_for(spec: RunSpec, folder: Path) -> Path:
    """The newest unfinished run beside `folder` with the settings of `spec`, if `spec.resume` is set; else a new folder.

    Two runs that begin in the same second get two folders: "-2" is appended to the name of the second.
    """
    if spec.resume:
        for path in sorted(folder.parent.glob("*/run.json"), reverse=True):
            with suppress(UserError):
                log = load_run(path.parent).log
                if log["status"] != "done" and not _changes(log, plain_config(spec)):
                    return path.parent
    try:
        return claim_folder(folder, "images")
    except OSError as error:
        raise _not_writable(folder, error) from error


@contextmanager
def locked_run(spec: RunSpec, folder: Path, device: torch.device, overrides: Sequence[str]) -> Iterator[Run]:
    """The run's record, written to its folder; no other process can open the folder until the block ends.

    Raises:
        UserError: another process works on the run, the folder cannot be written, or the run does not match `spec`.
    """
    with ExitStack() as stack:
        try:
            spec.cache.mkdir(parents=True, exist_ok=True)
            (folder / "images").mkdir(parents=True, exist_ok=True)
            stack.callback(remove_empty_folders, folder / "images", folder)
            stack.enter_context(run_lock(folder))
            run = open_run(spec, folder, device, overrides)
            if run.log["status"] != "done":
                run.write()
        except OSError as error:
            raise _not_writable(folder, error) from error
        yield run


def open_run(spec: RunSpec, folder: Path, device: torch.device, overrides: Sequence[str]) -> Run:
    """A new record, or that of an earlier try, which is resumed.

    Raises:
        UserError: the earlier try had other settings or prompts, or a finished run had other settings.
    """
    provenance = collect_provenance(spec, device, overrides)
    if not (folder / "run.json").exists():
        return Run(folder, provenance)
    run = load_run(folder)
    if run.log["status"] == "done":
        _refuse_other_settings(folder, run.log, provenance["config"])
        return run
    if "started" not in run.log:  # it failed before it began
        return Run(folder, provenance)
    _check_resumable(folder, run.log, provenance)
    for path in (folder, folder / "images"):
        remove_leftovers(path)
    remove_path(folder / "error.txt")
    resumed = [*run.log.get("resumed", []), provenance["started"]]
    log = {key: value for key, value in run.log.items() if key != "error"}
    return Run(folder, log | {"status": "started", "resumed": resumed})


def _check_resumable(folder: Path, log: dict[str, Any], provenance: dict[str, Any]) -> None:
    """Refuse other settings or prompts; warn of other versions or another device."""
    _refuse_other_settings(folder, log, provenance["config"])
    if log["prompts"] != provenance["prompts"]:
        raise UserError(f"{folder}: the prompt lists have changed since the run began; choose another folder")
    before, now = ({key: entries[key] for key in ("versions", "device")} for entries in (log, provenance))
    if changes := setting_changes(before, now):
        logger.warning("resumed in another environment (%s); results are equal up to rounding", ", ".join(changes))


def _refuse_other_settings(folder: Path, log: dict[str, Any], config: dict[str, Any]) -> None:
    if changes := _changes(log, config):
        raise UserError(f"{folder}: the run began with other settings ({', '.join(changes[:3])}); choose another folder")


def _changes(log: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """The settings that affect results and differ from those of a run; not its metrics, if it was measured again by others."""
    measured = ("metrics.", "retain.images") if "measured" in log else ()
    earlier, now = (
        {key: text for key, text in without_classes(settings).items() if not key.startswith(measured)}
        for settings in (log["config"], config)
    )
    return setting_changes(earlier, now)


def _not_writable(folder: Path, error: OSError) -> UserError:
    return UserError(f"{error.filename or folder}: cannot be written ({error.strerror})")
