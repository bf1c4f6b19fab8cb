"""Tensors in safetensors files, written atomically, optionally with a hash or in 8 bits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from unlearnbench.console import console
from unlearnbench.storage.atomic import atomic_path

Tensors = dict[str, torch.Tensor]
SCALE = "@scale"  # suffix of the tensor that holds the row scales of an 8-bit tensor


def tensor_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 over the names, types, shapes and bytes of tensors."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return total.hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, which need not fit into memory; remembered until the file changes."""
    status = path.stat()
    return _file_digest(path.resolve(), status.st_ino, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def _file_digest(path: Path, inode: int, changed: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def float64_device(device: torch.device) -> torch.device:
    """Where float64 is computed for tensors of a device: there if it is CUDA's, else on the CPU, for others may not have it."""
    return device if device.type == "cuda" else torch.device("cpu")


def write_tensors(path: Path, tensors: Tensors, note: dict[str, Any] | None = None) -> None:
    """Save tensors atomically, with a JSON note in the header."""
    with atomic_path(path) as temporary:
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, temporary, {"note": json.dumps(note or {})})
        temporary.chmod(0o644)


def read_tensors(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """The tensors of a file by `write_tensors`, copied into memory, and its note; 8-bit tensors come as fp32."""
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        note = json.loads((file.metadata() or {}).get("note", "{}"))
    for name in [name.removesuffix(SCALE) for name in tensors if name.endswith(SCALE)]:
        steps, scale = tensors[name], tensors.pop(name + SCALE)
        tensors[name] = (steps.flatten(1) * scale[:, None]).reshape(steps.shape)
    return tensors, note


def quantize_8bit(tensors: Tensors) -> Tensors:
    """Matrices and kernels as int8 steps of max |w| / 127 in each row, which `read_tensors` undoes; vectors unchanged."""
    quantized = {}
    for name, value in tensors.items():
        if value.ndim < 2:
            quantized[name] = value
            continue
        rows = value.float().flatten(1)
        scale = rows.abs().amax(1).clamp_min(1e-12) / 127
        quantized[name] = (rows / scale[:, None]).round().to(torch.int8).reshape(value.shape)
        quantized[name + SCALE] = scale
    return quantized


def write_hashed(path: Path, tensors: Tensors, note: dict[str, Any]) -> None:
    """Save tensors atomically, with their hash in the note, for `read_hashed`."""
    write_tensors(path, tensors, {**note, "sha256": tensor_digest(tensors)})


def read_hashed(path: Path, sha256: str | None = None) -> tuple[Tensors, dict[str, Any]] | None:
    """The tensors and the note of a file by `write_hashed`; None if it is absent or, with a warning, if it is damaged.

    Args:
        path: the file.
        sha256: the hash that the tensors must have; by default the one in the note.
    """
    if not path.exists():
        return None
    with suppress(SafetensorError, OSError, KeyError, ValueError, TypeError):
        tensors, note = read_tensors(path)
        if tensor_digest(tensors) == (sha256 or note["sha256"]):
            return tensors, note
    console.print(f"{path} is damaged; recomputing it", style="yellow", markup=False, highlight=False, soft_wrap=True)
    return None
