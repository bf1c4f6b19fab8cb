"""The lock of a run's folder, which the working process holds until it ends."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

LOCK = "run.lock"


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
