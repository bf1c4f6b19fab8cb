"""The images of a cache: PNG files, each under the key of one image, which other folders share by hard links."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from unlearnbench.console import console
from unlearnbench.storage.atomic import atomic_path, remove_leftovers, write_bytes, write_text
from unlearnbench.storage.cache import Cache, digest
from unlearnbench.storage.cache_entries import IMAGES

HOUR = 3600.0  # seconds


class StoredImage(NamedTuple):
    """The bytes of a PNG file, their sha256, and the file itself; None if it is in no store."""

    data: bytes
    sha256: str
    path: Path | None = None

    def write(self, path: Path) -> None:
        """Write it to another path atomically: a hard link where the file system has them, else a copy.

        A copy also where another process has put other bytes into the store since these were read.
        """
        with atomic_path(path) as temporary:
            if not self._is_linked(temporary):
                temporary.unlink(missing_ok=True)
                temporary.write_bytes(self.data)

    def _is_linked(self, path: Path) -> bool:
        """Whether `path` is now a link to the store's file with the same bytes."""
        if self.path is None:
            return False
        with suppress(OSError, NotImplementedError):
            os.link(self.path, path)
            return path.read_bytes() == self.data
        return False


class ImageStore:
    """The PNG files of a cache, each with a note beside it that holds its hash and its key.

    The note is written last, so that an image without one does not count. What a killed process left is removed after an hour:
    locks are those of batches, and another process may write the same image in another batch.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache, self.folder = cache, cache.folder / IMAGES
        remove_leftovers(self.folder, age=HOUR)

    def has(self, key: Any) -> bool:
        """Whether there is an image under this key, intact or damaged."""
        return self._note(key).is_file()

    def get(self, key: Any) -> StoredImage | None:
        """The image under this key; None if it is absent or, with a warning, if it is damaged. Counts as a use."""
        note = self._note(key)
        with suppress(OSError, ValueError, KeyError, TypeError):
            if not note.is_file():
                return None
            path = note.with_suffix(".png")
            image = StoredImage(path.read_bytes(), json.loads(note.read_text(encoding="utf-8"))["sha256"], path)
            if hashlib.sha256(image.data).hexdigest() == image.sha256:
                os.utime(note)
                return image
        text = f"{note.with_suffix('.png')} is damaged; generating it again"
        console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
        return None

    def put(self, key: Any, data: bytes) -> StoredImage:
        """Store the bytes of a PNG file under this key."""
        image = StoredImage(data, hashlib.sha256(data).hexdigest(), self._note(key).with_suffix(".png"))
        assert image.path is not None
        write_bytes(image.path, data)
        note = {"of": key, "by": self.cache.by, "made": round(time.time()), "sha256": image.sha256}
        write_text(self._note(key), json.dumps(note))
        return image

    def lock(self, keys: Sequence[Any]) -> FileLock:
        """Take the lock of images that are generated together, which any thread may release."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / f"{digest(keys)}.lock", thread_local=False)
        lock.acquire()
        return lock

    def _note(self, key: Any) -> Path:
        return self.folder / f"{digest(key)}.json"
