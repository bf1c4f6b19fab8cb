"""Training state as safetensors: modules, optimizer and generator in one file, written whole or not at all."""

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

from unlearnbench import files
from unlearnbench.progress import console

State = dict[str, torch.Tensor]
SCALE = "@scale"  # ends the name of what an 8-bit tensor's rows are multiplied with


def tensor_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 of tensors: names, types, shapes and bytes."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return total.hexdigest()


def write_atomically(path: Path, tensors: State, note: dict[str, Any] | None = None) -> None:
    """Save tensors (and a JSON note in the header) beside `path`, then rename: a reader sees all or nothing."""
    with files.beside(path) as made:
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, made, {"note": json.dumps(note or {})})
        made.chmod(0o644)


def read(path: Path) -> tuple[State, dict[str, Any]]:
    """The tensors, in memory of their own, and the note of a file made by `write_atomically`; those of 8 bits as fp32."""
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        note = json.loads((file.metadata() or {}).get("note", "{}"))
    for name in [name.removesuffix(SCALE) for name in tensors if name.endswith(SCALE)]:
        steps, scale = tensors[name], tensors.pop(name + SCALE)
        tensors[name] = (steps.flatten(1) * scale[:, None]).reshape(steps.shape)
    return tensors, note


def in_8_bits(tensors: State) -> State:
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


def write_sealed(path: Path, tensors: State, note: dict[str, Any]) -> None:
    """The same with the tensors' hash in the note, for `read_sealed`."""
    write_atomically(path, tensors, {**note, "sha256": tensor_digest(tensors)})


def read_sealed(path: Path, sha256: str | None = None) -> tuple[State, dict[str, Any]] | None:
    """What `write_sealed` wrote; None if there is no such file or, with a line that says so, if it is damaged.

    Args:
        path: the file.
        sha256: the hash that the tensors must have; that in the note unless given.
    """
    if not path.exists():
        return None
    with suppress(SafetensorError, OSError, KeyError, ValueError, TypeError):
        tensors, note = read(path)
        if tensor_digest(tensors) == (sha256 or note["sha256"]):
            return tensors, note
    console.print(f"{path} is damaged and is made again", style="yellow", markup=False, highlight=False, soft_wrap=True)
    return None


def optimizer_state(optimizer: torch.optim.Optimizer) -> State:
    """An optimizer's moments and counts, named by parameter and slot: "0.exp_avg"."""
    slots = [optimizer.state[p] for group in optimizer.param_groups for p in group["params"]]
    return {f"{index}.{slot}": torch.as_tensor(value) for index, values in enumerate(slots) for slot, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: State) -> None:
    """Put back what `optimizer_state` gave, each moment in the memory layout of its parameter."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in saved.items():
        index, slot = key.split(".", 1)
        like = parameters[int(index)]
        laid = torch.empty_like(like, dtype=value.dtype).copy_(value) if value.shape == like.shape else value.to(like.device)
        number = not value.ndim and value.dtype == torch.int64  # a plain count, as 8-bit Adam keeps
        state.setdefault(int(index), {})[slot] = value.item() if number else laid
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save(
    path: Path,
    parameters: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    note: dict[str, Any],
    kept: State | None = None,
    key: str = "",
) -> None:
    """Save what a training loop needs to go on as though it had never stopped.

    Args:
        path: the file.
        parameters: what trains.
        optimizer: over them, in their order.
        generator: the source of randomness.
        note: as JSON, such as the step.
        kept: what else changes while it trains.
        key: what the training is of; `load` takes no state of another key.
    """
    parts = {"model": parameters, "optimizer": optimizer_state(optimizer), "kept": kept or {}}
    tensors = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    write_sealed(path, {**tensors, "generator": generator.get_state()}, {**note, "key": key})


def load(
    path: Path,
    parameters: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    key: str = "",
) -> tuple[dict[str, Any], State] | None:
    """Put a saved state back in place; returns its note and what was kept besides, or None if there is none of this key."""
    found = read_sealed(path)
    if found is None or found[1].get("key") != key:
        return None
    tensors, note = found
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(tensors[f"model.{name}"])
    restore_optimizer(optimizer, part("optimizer", tensors))
    generator.set_state(tensors["generator"])
    return note, part("kept", tensors)


def part(name: str, tensors: State) -> State:
    """The tensors whose names begin with `name` and a dot, without that."""
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
