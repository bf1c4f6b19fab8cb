"""Files that are there whole or not at all, whenever the process is killed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path to write a file or a folder to; when the block ends well it is renamed to `path`, else removed.

    A reader, and a run that is taken up again, sees all of it or nothing.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder, atomic_path(Path(folder) / "a.txt") as path:
        ...     _ = path.write_text("whole")
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield made
        if path.is_dir():
            remove_path(path)
        made.replace(path)
    finally:
        remove_path(made)


def write_text(path: Path, text: str) -> None:
    """Write a text beside, as UTF-8 (what has no UTF-8, as \\udc80, in JSON's own escape), then rename."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes beside, then rename."""
    with atomic_path(path) as made:
        made.write_bytes(data)


def remove_path(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def remove_empty_folders(*folders: Path) -> None:
    """Remove those of the folders, one after another, that hold nothing."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove what a killed process was writing beside the files of this name; no other may be writing them."""
    for path in folder.glob(f".{name}.*"):
        if path.suffix[1:].isdigit():
            remove_path(path)


def claim_folder(folder: Path, mark: str = "") -> Path:
    """Take a folder for one process: the first of folder, folder-2, folder-3, ... that it can make, or make `mark` in.

    Two that ask in the same second, with the same name, get two folders, whatever the clock says.
    """
    for number in count(1):
        free = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            (free / mark).mkdir(parents=True)
        except FileExistsError:
            continue
        break
    return free
