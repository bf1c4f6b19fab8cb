"""Training state as safetensors: modules, optimizer and generator in one file, written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

State = dict[str, torch.Tensor]


def write_atomically(path: Path, tensors: State, note: dict[str, Any] | None = None) -> None:
    """Save tensors (and a JSON note in the header) beside `path`, then rename: a reader sees all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, beside, {"note": json.dumps(note or {})})
        beside.chmod(0o644)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read(path: Path) -> tuple[State, dict[str, Any]]:
    """The tensors and the note of a file made by `write_atomically`."""
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads((file.metadata() or {}).get("note", "{}"))  # noqa: SIM118


def save(
    path: Path,
    parameters: State,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    note: dict[str, Any],
) -> None:
    """Save what a training loop needs to go on as though it had never stopped."""
    tensors = {f"model.{name}": value for name, value in parameters.items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{slot}": torch.as_tensor(value) for slot, value in slots.items()}
    write_atomically(path, {**tensors, "generator": generator.get_state()}, note)


def load(path: Path, parameters: State, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> dict[str, Any]:
    """Put a saved state back in place and return its note."""
    tensors, note = read(path)
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(tensors[f"model.{name}"])
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, slot = key.split(".", 2)
            state.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    generator.set_state(tensors["generator"])
    return note
