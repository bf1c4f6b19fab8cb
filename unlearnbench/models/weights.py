"""Saved weights: what an algorithm changed, as one safetensors file, put over the original's again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from unlearnbench.config.errors import UserError
from unlearnbench.models.adapters.bottleneck import restore_bottlenecks
from unlearnbench.models.adapters.gated_lora import FacilitatedTransport, restore_gated_loras
from unlearnbench.models.base import SamplingGuidance, TextToImage
from unlearnbench.storage.tensors import read_tensors, write_tensors


def save_weights(model: TextToImage, path: Path, names: Sequence[str], guidance: SamplingGuidance | None = None) -> None:
    """Save the named parameters, which an algorithm changed, and what its guidance records of itself."""
    parameters = dict(model.named_parameters())
    note = {"original": model.path, **(guidance.saved() if guidance else {})}
    write_tensors(path, {name: parameters[name] for name in names}, note)


def make_room(model: TextToImage, saved: Mapping[str, Tensor]) -> None:
    """Install the adapters that saved weights belong to; they change nothing until their weights are loaded."""
    restore_bottlenecks(model.modules(), saved.items())
    restore_gated_loras(model, saved.items())


def load_weights(model: TextToImage, path: Path) -> SamplingGuidance | None:
    """Put saved parameters over the original's, in the more precise of the two dtypes.

    Returns the guidance that the model is sampled with from now on, if the file records one.

    Raises:
        UserError: the file is unreadable, or belongs to another model.
    """
    try:
        tensors, note = read_tensors(path)
    except Exception as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error})") from error
    make_room(model, tensors)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in tensors.items():
            if name not in parameters or parameters[name].shape != value.shape:
                raise UserError(f"{path}: {name} does not fit {model.path}; these weights belong to another model")
            parameters[name].data = parameters[name].data.to(torch.promote_types(parameters[name].dtype, value.dtype))
            parameters[name].copy_(value)
    return FacilitatedTransport(note["transport"]) if "transport" in note else None
