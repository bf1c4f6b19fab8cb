"""A method's State as tensors: saved with each checkpoint, and restored in place after `begin` ran again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from unlearnbench.storage.tensors import Tensors
from unlearnbench.storage.training_state import optimizer_state, restore_optimizer, tensors_below

NOT_SAVED = {"saved": False}
"""Metadata of a State's field that is not saved: `begin` computes it again from the seed, and no step changes it."""


def state_tensors(state: Any) -> Tensors:
    """The saved fields of a State (a dataclass, or None) as tensors.

    A field holds a tensor, a number, an optimizer, or a dict of tensors by name.

    Raises:
        TypeError: a field holds something else.
    """
    return dict(_flatten("", {name: getattr(state, name) for name in _saved_fields(state)}))


def restore_state(state: Any, saved: Tensors) -> None:
    """Restore the tensors of `state_tensors` into a State of the same class; tensors and optimizers change in place."""
    for name in _saved_fields(state):
        setattr(state, name, _restored(getattr(state, name), name, saved))


def _saved_fields(state: Any) -> list[str]:
    if state is None:
        return []
    if not is_dataclass(state):
        raise TypeError(f"begin returned {type(state).__name__}; it must return a dataclass, or None")
    return [field.name for field in fields(state) if field.metadata.get("saved", True)]


def _flatten(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value.detach()
    elif isinstance(value, bool | int | float):
        yield name, torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
    elif isinstance(value, torch.optim.Optimizer):
        yield from _flatten(name, optimizer_state(value))
    elif isinstance(value, dict):
        for key, part in value.items():
            if name and not isinstance(part, Tensor):  # it would come back as a tensor
                raise TypeError(f"state.{name}: a dict must hold tensors, not {type(part).__name__}")
            yield from _flatten(f"{name}.{key}" if name else str(key), part)
    else:
        raise TypeError(f"state.{name}: a {type(value).__name__} cannot be saved; metadata=NOT_SAVED leaves the field out")


def _restored(value: Any, name: str, saved: Tensors) -> Any:
    if isinstance(value, Tensor):
        value.data.copy_(saved[name])
        return value
    if isinstance(value, bool | int | float):
        return type(value)(saved[name].item())
    if isinstance(value, torch.optim.Optimizer):
        restore_optimizer(value, tensors_below(name, saved))
        return value
    return {key: _laid_out_as(value.get(key), tensor) for key, tensor in tensors_below(name, saved).items()}


def _laid_out_as(old: Tensor | None, tensor: Tensor) -> Tensor:
    """A copy in the memory layout of the old tensor, if that has its shape: results depend on layout and alignment."""
    return torch.empty_like(old).copy_(tensor) if old is not None and old.shape == tensor.shape else tensor.clone()
