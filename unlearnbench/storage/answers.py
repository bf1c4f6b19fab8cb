"""Answers of networks about images: rows of a tensor by the images' hashes, in a cache, a file for each block of rows."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unlearnbench.storage.cache import Cache, digest
from unlearnbench.storage.tensors import read_hashed, write_hashed

ROWS = "rows"  # the name of the tensor in a file


class Answers:
    """The answers of one network: a row for each id, such as an image's sha256.

    Every block is written when it is computed, so that a killed process loses one block. A block is read when one of its
    rows is asked for the first time, and its hash is checked.
    """

    def __init__(self, cache: Cache, kind: str, of: Any) -> None:
        """Open the answers of a network.

        Args:
            cache: holds them.
            kind: the subfolder of the cache, such as "features".
            of: everything that an answer depends on besides the image, as JSON.
        """
        self._cache, self._of = cache, of
        self._folder = cache.folder / kind / digest(of)[:16]
        self._blocks: list[Tensor] = []
        self._places: dict[str, tuple[int, int]] = {}  # of an id: its block and its row
        self._unread: dict[str, Path] | None = None

    def unanswered(self, ids: Iterable[str]) -> list[str]:
        """The ids without an answer, each once, in order."""
        distinct = list(dict.fromkeys(ids))
        self._read([key for key in distinct if key not in self._places])
        return [key for key in distinct if key not in self._places]

    def rows(self, ids: Sequence[str]) -> Tensor:
        """The answers of these ids, (n, ...); all must be there."""
        places = torch.tensor([self._places[key] for key in ids])
        first = self._blocks[int(places[0, 0])]
        rows = torch.empty((len(ids), *first.shape[1:]), dtype=first.dtype)
        for number in places[:, 0].unique().tolist():
            chosen = places[:, 0] == number
            rows[chosen] = self._blocks[number][places[chosen, 1]]
        return rows

    def put(self, ids: Sequence[str], rows: Tensor) -> None:
        """Write the answers of a block of ids, (n, ...)."""
        self._folder.mkdir(parents=True, exist_ok=True)
        note = {"of": self._of, "ids": list(ids), "by": self._cache.by, "made": round(time.time())}
        write_hashed(self._folder / f"{digest(list(ids))}.safetensors", {ROWS: rows}, note)
        self._cache.misses += 1
        self._add(ids, rows)

    def _add(self, ids: Sequence[str], rows: Tensor) -> None:
        self._places |= {key: (len(self._blocks), row) for row, key in enumerate(ids)}
        self._blocks.append(rows)

    def _read(self, ids: Collection[str]) -> None:
        """Read the blocks that hold these ids."""
        if not ids:
            return
        if self._unread is None:
            self._unread = {key: path for path in sorted(self._folder.glob("[!.]*.safetensors")) for key in _block_ids(path)}
        for path in dict.fromkeys(self._unread[key] for key in ids if key in self._unread):
            block = read_hashed(path)
            if block is not None:
                with suppress(FileNotFoundError):  # removed meanwhile
                    os.utime(path)
                self._cache.hits += 1
                self._add(block[1]["ids"], block[0][ROWS])


def _block_ids(path: Path) -> list[str]:
    """The ids of a block, from the header of its file; none if it is damaged."""
    with suppress(SafetensorError, OSError, ValueError, KeyError), safe_open(path, framework="pt") as file:
        return list(json.loads(file.metadata()["note"])["ids"])
    return []
