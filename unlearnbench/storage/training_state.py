"""Training state as one safetensors file: parameters, optimizer, generator and what a method keeps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unlearnbench.storage.tensors import Tensors, read_hashed, write_hashed


def optimizer_state(optimizer: torch.optim.Optimizer) -> Tensors:
    """An optimizer's moments and counts, named by parameter and slot: "0.exp_avg"."""
    slots = [optimizer.state[p] for group in optimizer.param_groups for p in group["params"]]
    return {f"{index}.{slot}": torch.as_tensor(value) for index, values in enumerate(slots) for slot, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Tensors) -> None:
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


def save_training_state(
    path: Path,
    parameters: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    note: dict[str, Any],
    kept: Tensors | None = None,
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
    write_hashed(path, {**tensors, "generator": generator.get_state()}, {**note, "key": key})


def load_training_state(
    path: Path,
    parameters: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    key: str = "",
) -> tuple[dict[str, Any], Tensors] | None:
    """Put a saved state back in place; returns its note and what was kept besides, or None if there is none of this key."""
    found = read_hashed(path)
    if found is None or found[1].get("key") != key:
        return None
    tensors, note = found
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(tensors[f"model.{name}"])
    restore_optimizer(optimizer, tensors_below("optimizer", tensors))
    generator.set_state(tensors["generator"])
    return note, tensors_below("kept", tensors)


def tensors_below(name: str, tensors: Tensors) -> Tensors:
    """The tensors whose names begin with `name` and a dot, without that."""
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
