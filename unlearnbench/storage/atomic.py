"""Atomic writes: every file is written to a temporary path and renamed, so it is either complete or absent."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count, takewhile
from pathlib import Path

WINDOWS = os.name == "nt"
READER_TRIES, READER_PAUSE = 100, 0.02  # seconds


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path for a file or a folder; it is renamed to `path` if the block succeeds, and removed otherwise.

    A reader, and a resumed run, finds `path` either complete or absent. A file never replaces a folder.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder, atomic_path(Path(folder) / "a.txt") as path:
        ...     _ = path.write_text("complete")
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        if path.is_dir() and temporary.is_dir():
            remove_path(path)
        _replace(temporary, path)
    finally:
        remove_path(temporary)


def _replace(temporary: Path, path: Path) -> None:
    """Rename a file or a folder; on Windows, which refuses while another process reads `path`, after at most two seconds."""
    for _ in range(READER_TRIES if WINDOWS else 0):
        try:
            temporary.replace(path)
        except PermissionError:
            time.sleep(READER_PAUSE)
        else:
            return
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text atomically as UTF-8; characters that UTF-8 cannot encode, such as \\udc80, become JSON escapes."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def remove_path(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def remove_empty_folders(*folders: Path) -> None:
    """Remove the folders that are empty, in this order."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def missing_folders(folder: Path) -> list[Path]:
    """The folder and those above it that do not exist, the deepest first, for `remove_empty_folders` after a refusal."""
    return list(takewhile(lambda path: not path.exists(), [folder, *folder.parents]))


def remove_leftovers(folder: Path, name: str = "*", age: float = 0.0) -> None:
    """Remove the temporary files of killed processes for files of this name.

    Args:
        folder: where the files are.
        name: a pattern.
        age: only files that are so many seconds old; with 0 no other process may be writing one.
    """
    for path in folder.glob(f".{name}.*"):
        with suppress(FileNotFoundError):  # another process removed or renamed it
            if path.suffix[1:].isdigit() and (not age or time.time() - path.stat().st_mtime > age):
                remove_path(path)


def claim_folder(folder: Path, mark: str = "") -> Path:
    """Create a folder for one process: the first of folder, folder-2, folder-3, ... that no other process has taken.

    Two processes that start in the same second with the same name get two folders.

    Args:
        folder: the preferred path.
        mark: a subfolder; a folder that has it is taken.
    """
    for number in count(1):
        candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            (candidate / mark).mkdir(parents=True)
        except FileExistsError:
            if not (candidate / mark).exists():  # what exists is above it, such as a link to a disk that is not mounted
                raise
            continue
        break
    return candidate
