"""A content-addressed store: what cost time to make, kept under a hash of everything that made it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError

from unlearnbench import checkpoint
from unlearnbench.progress import console


def digest(*parts: Any) -> str:
    """sha256 of the parts as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def tensor_digest(tensors: dict[str, torch.Tensor]) -> str:
    """sha256 of tensors: names, types, shapes and bytes."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return total.hexdigest()


class Cache:
    """Tensors by key, shared by processes: an entry is made once, under a lock, and checked by hash when read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hits = 0
        self.misses = 0

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
            found = self._read(path)
            if found is not None:
                self.hits += 1
                os.utime(path)
                return found
            self.misses += 1
            tensors = make()
            checkpoint.write_atomically(path, tensors, {"sha256": tensor_digest(tensors), "of": parts})
            return tensors

    def _read(self, path: Path) -> dict[str, torch.Tensor] | None:
        if not path.exists():
            return None
        try:
            tensors, note = checkpoint.read(path)
            if note["sha256"] == tensor_digest(tensors):
                return tensors
        except (SafetensorError, OSError, KeyError, ValueError):
            pass
        console.print(f"cache: {path.name} is damaged and is made again", style="yellow")
        return None
