"""Training state in one safetensors file: parameters, optimizer, generator and the method's own state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unlearnbench.storage.tensors import Tensors, read_hashed, write_hashed


def optimizer_state(optimizer: torch.optim.Optimizer) -> Tensors:
    """An optimizer's moments and counts by parameter and slot, such as "0.exp_avg"."""
    slots = [optimizer.state[p] for group in optimizer.param_groups for p in group["params"]]
    return {f"{index}.{slot}": torch.as_tensor(value) for index, values in enumerate(slots) for slot, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Tensors) -> None:
    """Restore the output of `optimizer_state`, each moment in the memory layout of its parameter."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in saved.items():
        index, slot = key.split(".", 1)
        parameter = parameters[int(index)]
        if not value.ndim and value.dtype == torch.int64:  # 8-bit Adam counts its steps by a plain int
            state.setdefault(int(index), {})[slot] = value.item()
        elif value.shape == parameter.shape:
            state.setdefault(int(index), {})[slot] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        else:
            state.setdefault(int(index), {})[slot] = value.to(parameter.device)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_training_state(
    path: Path,
    parameters: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    note: dict[str, Any],
    kept: Tensors | None = None,
    key: str = "",
) -> None:
    """Save everything that a training loop needs to continue as if it had never stopped.

    Args:
        path: the file.
        parameters: the trained parameters.
        optimizer: over them, in their order.
        generator: the source of randomness.
        note: JSON, such as the step.
        kept: further tensors that change during training.
        key: identifies the training; `load_training_state` ignores a state with another key.
    """
    parts = {"model": parameters, "optimizer": optimizer_state(optimizer), "kept": kept or {}}
    tensors = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    write_hashed(path, {**tensors, "generator": generator.get_state()}, {**note, "key": key})


def load_training_state(
    path: Path,
    parameters: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    key: str = "",
) -> tuple[dict[str, Any], Tensors] | None:
    """Restore a saved state in place; returns its note and its further tensors, or None if there is no state with this key."""
    saved = read_hashed(path)
    if saved is None or saved[1].get("key") != key:
        return None
    tensors, note = saved
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(tensors[f"model.{name}"])
    restore_optimizer(optimizer, tensors_below("optimizer", tensors))
    generator.set_state(tensors["generator"])
    return note, tensors_below("kept", tensors)


def tensors_below(name: str, tensors: Tensors) -> Tensors:
    """The tensors whose names begin with `name` and a dot, by the rest of their names."""
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
