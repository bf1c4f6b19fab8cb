"""A content-addressed store: what cost time to make, kept under a hash of everything that made it."""

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
    """Tensors by key, shared by processes: an entry is made once, under a lock, and checked by hash when read."""

    def __init__(self, folder: Path, by: str = "") -> None:
        """Entries go below `folder`; `by` says for `unlearnbench cache` which run made them."""
        self.folder = folder
        self.by = by
        self.hits = 0
        self.misses = 0

    def has(self, kind: str, parts: Any) -> bool:
        """Is there an entry for `parts`, whole or damaged?"""
        return (self.folder / kind / f"{digest(parts)}.safetensors").is_file()

    def get(self, kind: str, parts: Any, make: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """The entry for `parts`, made by `make` if it is not there or damaged.

        Args:
            kind: "images", "features", ...: a folder of its own.
            parts: everything the content depends on, as JSON.
            make: computes the tensors.
        """
        path = self.folder / kind / f"{digest(parts)}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(path) + ".lock"):
            found = read_hashed(path)
            if found is not None:
                self.hits += 1
                os.utime(path)
                return found[0]
            self.misses += 1
            remove_leftovers(path.parent, path.name)
            tensors = make()
            write_hashed(path, tensors, {"of": parts, "by": self.by, "made": round(time.time())})
            return tensors
