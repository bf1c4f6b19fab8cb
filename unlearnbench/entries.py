"""What lies in the cache: list it, and remove what is damaged, old or too much."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from unlearnbench.config import UserError

SIZES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
SPANS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@dataclass(frozen=True)
class Entry:
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


def entries(folder: Path) -> list[Entry]:
    """Every entry below a cache folder, the least recently used first; reads headers only."""
    found = [_entry(path) for path in folder.glob("*/*.safetensors") if not path.name.startswith(".")]
    return sorted(found, key=lambda entry: (entry.used, entry.path))


def _entry(path: Path) -> Entry:
    state = path.stat()
    note, holds = {}, "damaged"
    try:
        with safe_open(path, framework="np") as file:
            note = json.loads((file.metadata() or {}).get("note", "{}"))
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            holds = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
    except (SafetensorError, OSError, ValueError):
        pass
    return Entry(
        path, path.parent.name, state.st_size, note.get("made", state.st_mtime), state.st_mtime, note.get("by", ""), holds
    )


def damaged(entry: Entry) -> bool:
    """Whether its tensors are not those that were written, by their hash."""
    from unlearnbench import checkpoint

    try:
        tensors, note = checkpoint.read(entry.path)
        return bool(note["sha256"] != checkpoint.tensor_digest(tensors))
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        return True


def remove(chosen: Sequence[Entry]) -> list[Entry]:
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


def over(folder: Path, limit: int) -> Iterator[Entry]:
    """The least recently used entries whose removal brings the cache down to `limit` bytes."""
    found = entries(folder)
    total = sum(entry.size for entry in found)
    for entry in found:
        if total <= limit:
            return
        total -= entry.size
        yield entry


def size_of(text: str) -> int:
    """Bytes of a size with its unit.

    Examples:
        >>> size_of("20GB"), size_of("1.5 MiB")
        (20000000000, 1572864)

    Raises:
        UserError: it is none.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    if match is None or match.group(2).upper() not in SIZES:
        raise UserError(f"size {text!r}: give a number and a unit, such as 20GB or 500MiB")
    return int(float(match.group(1)) * SIZES[match.group(2).upper()])


def span_of(text: str) -> int:
    """Seconds of a span with its unit: m, h, d, w.

    Examples:
        >>> span_of("30d")
        2592000

    Raises:
        UserError: it is none.
    """
    match = re.fullmatch(r"\s*(\d+)\s*([mhdw])\s*", text)
    if match is None:
        raise UserError(f"span {text!r}: give a whole number and m, h, d or w, such as 30d")
    return int(match.group(1)) * SPANS[match.group(2)]


def sized(count: float) -> str:
    """Bytes for people.

    Examples:
        >>> sized(999), sized(1_530_000)
        ('999 B', '1.5 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def ago(moment: float) -> str:
    """How long ago, in the largest unit that fits.

    Examples:
        >>> ago(time.time() - 7300)
        '2 h'
    """
    past = max(0.0, time.time() - moment)
    unit = next((unit for unit in ("d", "h", "m") if past >= SPANS[unit]), None)
    return f"{past / SPANS[unit]:.0f} {unit}" if unit else "now"
