"""Tensors as safetensors files, each complete or absent, with a hash and in 8 bits where asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from unlearnbench.console import console
from unlearnbench.storage.atomic import atomic_path

Tensors = dict[str, torch.Tensor]
SCALE = "@scale"  # ends the name of what an 8-bit tensor's rows are multiplied with


def tensor_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 of tensors: names, types, shapes and bytes."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return total.hexdigest()


def write_tensors(path: Path, tensors: Tensors, note: dict[str, Any] | None = None) -> None:
    """Save tensors (and a JSON note in the header) beside `path`, then rename: a reader sees all or nothing."""
    with atomic_path(path) as made:
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, made, {"note": json.dumps(note or {})})
        made.chmod(0o644)


def read_tensors(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """The tensors, in memory of their own, and the note of a file made by `write_atomically`; those of 8 bits as fp32."""
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        note = json.loads((file.metadata() or {}).get("note", "{}"))
    for name in [name.removesuffix(SCALE) for name in tensors if name.endswith(SCALE)]:
        steps, scale = tensors[name], tensors.pop(name + SCALE)
        tensors[name] = (steps.flatten(1) * scale[:, None]).reshape(steps.shape)
    return tensors, note


def quantize_8bit(tensors: Tensors) -> Tensors:
    """Matrices and kernels as int8 steps of max |w| / 127 for each row, which `read` undoes; the rest as it is."""
    found = {}
    for name, value in tensors.items():
        if value.ndim < 2:
            found[name] = value
            continue
        rows = value.float().flatten(1)
        scale = rows.abs().amax(1).clamp_min(1e-12) / 127
        found[name] = (rows / scale[:, None]).round().to(torch.int8).reshape(value.shape)
        found[name + SCALE] = scale
    return found


def write_hashed(path: Path, tensors: Tensors, note: dict[str, Any]) -> None:
    """The same with the tensors' hash in the note, for `read_sealed`."""
    write_tensors(path, tensors, {**note, "sha256": tensor_digest(tensors)})


def read_hashed(path: Path, sha256: str | None = None) -> tuple[Tensors, dict[str, Any]] | None:
    """What `write_sealed` wrote; None if there is no such file or, with a line that says so, if it is damaged.

    Args:
        path: the file.
        sha256: the hash that the tensors must have; that in the note unless given.
    """
    if not path.exists():
        return None
    with suppress(SafetensorError, OSError, KeyError, ValueError, TypeError):
        tensors, note = read_tensors(path)
        if tensor_digest(tensors) == (sha256 or note["sha256"]):
            return tensors, note
    console.print(f"{path} is damaged and is made again", style="yellow", markup=False, highlight=False, soft_wrap=True)
    return None
