"""The lock of a run's folder, which the working process holds until it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from unlearnbench.config.errors import UserError
from unlearnbench.storage.atomic import remove_path

LOCK = "run.lock"
PROBE = 0.2  # seconds, longer than `is_locked` holds the lock


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder in this block.

    Raises:
        UserError: another process holds it.
    """
    lock = FileLock(folder / LOCK, timeout=PROBE)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(f"{folder}: another process is working on this run") from error
    try:
        yield
    finally:
        remove_path(folder / LOCK)
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a process works in this folder; a killed process leaves the file of the lock, but does not hold it."""
    path = folder / LOCK
    if not path.is_file():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except (Timeout, OSError):  # an OSError: the file belongs to someone else
        return True
