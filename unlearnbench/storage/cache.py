"""A content-addressed cache: expensive tensors under a hash of everything that they depend on."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from unlearnbench.storage.atomic import remove_leftovers
from unlearnbench.storage.tensors import read_hashed, write_hashed


def digest(*parts: Any) -> str:
    """sha256 of the parts as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


class Cache:
    """Tensors by key, shared by processes: an entry is computed once, under a lock, and its hash is checked on reading."""

    def __init__(self, folder: Path, by: str = "") -> None:
        """Open a cache.

        Args:
            folder: the cache folder.
            by: the run that new entries are attributed to in `unlearnbench cache`.
        """
        self.folder = folder
        self.by = by
        self.hits = 0
        self.misses = 0

    def has(self, kind: str, parts: Any) -> bool:
        """Whether there is an entry for `parts`, intact or damaged."""
        return (self.folder / kind / f"{digest(parts)}.safetensors").is_file()

    def get(self, kind: str, parts: Any, make: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """The entry for `parts`, computed by `make` if it is absent or damaged.

        Args:
            kind: the subfolder, such as "images" or "features".
            parts: everything that the tensors depend on, as JSON.
            make: computes the tensors.
        """
        path = self.folder / kind / f"{digest(parts)}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(path) + ".lock"):
            entry = read_hashed(path)
            if entry is not None:
                self.hits += 1
                os.utime(path)
                return entry[0]
            self.misses += 1
            remove_leftovers(path.parent, path.name)
            tensors = make()
            write_hashed(path, tensors, {"of": parts, "by": self.by, "made": round(time.time())})
            return tensors
