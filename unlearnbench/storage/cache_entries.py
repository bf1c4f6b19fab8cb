"""What lies in the cache: list it, and remove what is damaged, old or too much."""

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
        made: when, in seconds since 1970.
        used: when it was last read.
        by: the run that made it.
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
    found = [_entry(path) for path in folder.glob("*/*.safetensors") if not path.name.startswith(".")]
    return sorted(found, key=lambda entry: (entry.used, entry.path))


def _entry(path: Path) -> CacheEntry:
    state = path.stat()
    note, holds = {}, "damaged"
    try:
        with safe_open(path, framework="np") as file:
            note = json.loads((file.metadata() or {}).get("note", "{}"))
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            holds = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
    except (SafetensorError, OSError, ValueError):
        pass
    return CacheEntry(
        path, path.parent.name, state.st_size, note.get("made", state.st_mtime), state.st_mtime, note.get("by", ""), holds
    )


def is_damaged(entry: CacheEntry) -> bool:
    """Whether its tensors are not those that were written, by their hash."""
    from unlearnbench.storage.tensors import read_tensors, tensor_digest

    try:
        tensors, note = read_tensors(entry.path)
        return bool(note["sha256"] != tensor_digest(tensors))
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        return True


def remove_entries(chosen: Sequence[CacheEntry]) -> list[CacheEntry]:
    """Remove entries, each under its lock; returns those removed: one that a process is making or reading stays.

    Raises:
        UserError: a file cannot be removed.
    """
    gone = []
    for entry in chosen:
        try:
            with FileLock(f"{entry.path}.lock", timeout=0):
                entry.path.unlink(missing_ok=True)
            gone.append(entry)
        except Timeout:
            continue
        except OSError as error:
            raise UserError(f"{entry.path}: cannot be removed ({error.strerror})") from error
    return gone


def entries_over(folder: Path, limit: int) -> Iterator[CacheEntry]:
    """The least recently used entries whose removal brings the cache down to `limit` bytes."""
    found = list_entries(folder)
    total = sum(entry.size for entry in found)
    for entry in found:
        if total <= limit:
            return
        total -= entry.size
        yield entry
