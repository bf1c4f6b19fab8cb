"""The entries of the cache: list them, and remove damaged, old or surplus ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from unlearnbench.config.errors import UserError


@dataclass(frozen=True)
class CacheEntry:
    """One file of the cache.

    Attributes:
        path: the file.
        kind: its folder: images, features, training, ...
        size: bytes.
        made: the time of its creation, in seconds since 1970.
        used: the time it was last read.
        by: the run that created it.
        holds: names and shapes of its tensors, or "damaged" if its header cannot be read.
    """

    path: Path
    kind: str
    size: int
    made: float
    used: float
    by: str
    holds: str


def list_entries(folder: Path) -> list[CacheEntry]:
    """Every entry below a cache folder, the least recently used first; reads headers only."""
    entries = [_entry(path) for path in folder.glob("*/*.safetensors") if not path.name.startswith(".")]
    return sorted(entries, key=lambda entry: (entry.used, entry.path))


def _entry(path: Path) -> CacheEntry:
    status = path.stat()
    note, holds = {}, "damaged"
    try:
        with safe_open(path, framework="np") as file:
            note = json.loads((file.metadata() or {}).get("note", "{}"))
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            holds = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
    except (SafetensorError, OSError, ValueError):
        pass
    return CacheEntry(
        path, path.parent.name, status.st_size, note.get("made", status.st_mtime), status.st_mtime, note.get("by", ""), holds
    )


def is_damaged(entry: CacheEntry) -> bool:
    """Whether the file cannot be read or its tensors do not have the hash in its note."""
    from unlearnbench.storage.tensors import read_tensors, tensor_digest

    try:
        tensors, note = read_tensors(entry.path)
        return bool(note["sha256"] != tensor_digest(tensors))
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        return True


def remove_entries(entries: Sequence[CacheEntry]) -> list[CacheEntry]:
    """Remove entries, each under its lock, and return the removed ones; an entry that a process is using stays.

    Raises:
        UserError: a file cannot be removed.
    """
    removed = []
    for entry in entries:
        try:
            with FileLock(f"{entry.path}.lock", timeout=0):
                entry.path.unlink(missing_ok=True)
            removed.append(entry)
        except Timeout:
            continue
        except OSError as error:
            raise UserError(f"{entry.path}: cannot be removed ({error.strerror})") from error
    return removed


def entries_over(folder: Path, limit: int) -> Iterator[CacheEntry]:
    """The least recently used entries whose removal reduces the cache to at most `limit` bytes."""
    entries = list_entries(folder)
    total = sum(entry.size for entry in entries)
    for entry in entries:
        if total <= limit:
            return
        total -= entry.size
        yield entry
