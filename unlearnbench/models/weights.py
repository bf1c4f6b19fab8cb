"""Saved weights: the parameters that an algorithm changed, as one safetensors file."""

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
    """Save the named parameters and the metadata of the guidance."""
    parameters = dict(model.named_parameters())
    metadata = {"original": model.path, **(guidance.saved() if guidance else {})}
    write_tensors(path, {name: parameters[name] for name in names}, metadata)


def install_saved_adapters(model: TextToImage, saved: Mapping[str, Tensor]) -> list[str]:
    """Install the adapters of saved weights that the model does not have yet; their weights are not loaded.

    Returns the names of the layers that got one.
    """
    return [*restore_bottlenecks(model.modules(), saved.items()), *restore_gated_loras(model, saved.items())]


def load_weights(model: TextToImage, path: Path) -> SamplingGuidance | None:
    """Load saved parameters into the model, each in the more precise of the two dtypes, and install their adapters.

    Returns the guidance with which to sample the model; None if the file has none.

    Raises:
        UserError: the file cannot be read, or belongs to another model.
    """
    try:
        tensors, metadata = read_tensors(path)
    except Exception as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error})") from error
    install_saved_adapters(model, tensors)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in tensors.items():
            if name not in parameters or parameters[name].shape != value.shape:
                raise UserError(f"{path}: {name} does not fit {model.path}; these weights belong to another model")
            parameters[name].data = parameters[name].data.to(torch.promote_types(parameters[name].dtype, value.dtype))
            parameters[name].copy_(value)
    if "transport" not in metadata:
        return None
    return FacilitatedTransport(metadata["transport"], metadata.get("transport_exponent", 1.0))
