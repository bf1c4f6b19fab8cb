"""The entries of the cache: list them, and remove damaged, old or surplus ones.

An entry is a safetensors file, or an image with its note, and its name is the sha256 of its key: other files in the folder are
no entries. Those of an earlier layout are read by nothing: images in safetensors files, a batch in each, and features of a whole
list of images.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from unlearnbench.config.errors import UserError

DAMAGED = "damaged"
IMAGES = "images"  # the subfolder of single images
ANSWERS = ("features", "distances", "detections", "attributes", "objects", "answers")  # of one network in each folder
KINDS = (IMAGES, "training", "renders", *ANSWERS)  # those of the package itself; metrics of others may have more
DIGEST = re.compile(r"[0-9a-f]{64}")
NETWORK = "[0-9a-f]" * 16  # matches a network's folder


@dataclass(frozen=True)
class CacheEntry:
    """One entry of the cache.

    Attributes:
        path: its file; of an image the note, or the image itself where it has none.
        kind: its folder: images, features, training, ...
        size: bytes.
        made: the time of its creation, in seconds since 1970.
        used: the time it was last read.
        by: the run that created it.
        holds: names and shapes of its tensors, "image", or "damaged" if its header or note cannot be read.
        earlier_layout: whether it is of an earlier layout, which nothing reads.
    """

    path: Path
    kind: str
    size: int
    made: float
    used: float
    by: str
    holds: str
    earlier_layout: bool = False

    def files(self) -> list[Path]:
        """Its files; the one without which it does not count comes first."""
        return [self.path, self.path.with_suffix(".png")] if self.path.suffix == ".json" else [self.path]


def list_entries(folder: Path) -> list[CacheEntry]:
    """Every entry below a cache folder, the least recently used first; reads headers only."""
    tensors = _named_by_digest(folder, "*/*.safetensors", f"*/{NETWORK}/*.safetensors")
    notes = _named_by_digest(folder, f"{IMAGES}/*.json")
    images = {path.stem for path in notes}
    orphans = [path for path in _named_by_digest(folder, f"{IMAGES}/*.png") if path.stem not in images]
    entries = []
    for path in [*tensors, *notes, *orphans]:
        with suppress(FileNotFoundError):  # another process removed it
            entries.append(_entry(path, folder) if path.suffix == ".safetensors" else _image_entry(path))
    return sorted(filter(None, entries), key=lambda entry: (entry.used, entry.path))


def _named_by_digest(folder: Path, *patterns: str) -> list[Path]:
    return [path for pattern in patterns for path in folder.glob(pattern) if DIGEST.fullmatch(path.stem)]


def _entry(path: Path, folder: Path) -> CacheEntry | None:
    """The entry in a safetensors file; None if the file is of an unknown kind and has no key in its note."""
    status = path.stat()
    note, holds = {}, DAMAGED
    with suppress(SafetensorError, OSError, ValueError), safe_open(path, framework="np") as file:
        note = json.loads((file.metadata() or {}).get("note", "{}"))
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        holds = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
    kind, made, by = path.relative_to(folder).parts[0], note.get("made", status.st_mtime), note.get("by", "")
    if kind not in KINDS and "of" not in note:
        return None
    is_earlier = path.parent == folder / kind and kind in (IMAGES, *ANSWERS)
    return CacheEntry(path, kind, status.st_size, made, status.st_mtime, by, holds, is_earlier)


def _image_entry(path: Path) -> CacheEntry:
    status, note, holds = path.stat(), {}, DAMAGED
    with suppress(OSError, ValueError):
        note = json.loads(path.read_text(encoding="utf-8"))
        holds = "image"
    entry = CacheEntry(path, IMAGES, 0, note.get("made", status.st_mtime), status.st_mtime, note.get("by", ""), holds)
    sizes = []
    for file in entry.files():
        with suppress(FileNotFoundError):
            sizes.append(file.stat().st_size)
    return replace(entry, size=sum(sizes))


def is_damaged(entry: CacheEntry) -> bool:
    """Whether a file cannot be read, or its tensors or its image do not have the hash in the note."""
    from unlearnbench.storage.tensors import read_tensors, tensor_digest

    try:
        if entry.path.suffix == ".safetensors":
            tensors, note = read_tensors(entry.path)
            return bool(note["sha256"] != tensor_digest(tensors))
        note = json.loads(entry.path.read_text(encoding="utf-8"))
        return bool(note["sha256"] != hashlib.sha256(entry.path.with_suffix(".png").read_bytes()).hexdigest())
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
            with FileLock(f"{entry.path}.lock", timeout=0) if entry.path.parent.name == entry.kind != IMAGES else nullcontext():
                for path in entry.files():
                    path.unlink(missing_ok=True)
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
