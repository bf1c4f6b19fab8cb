"""The layers of a model by name, and those that adapters can be installed on."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from unlearnbench.models.base import TextToImage


def named_layers(model: TextToImage) -> list[tuple[str, Any]]:
    """All layers of all parts of a model, named as their parameters are."""
    return [(f"{part}.{name}", layer) for part, module in model.modules().items() for name, layer in module.named_modules()]


def adaptable_layers(model: TextToImage, weights: Collection[str]) -> list[tuple[str, Any]]:
    """The linear and convolution layers whose weights are named, in the model's order.

    Args:
        model: a loaded model.
        weights: names of parameters; those of other layers, and biases, are ignored.
    """
    layers = [(name, layer) for name, layer in named_layers(model) if isinstance(layer, nn.Linear | nn.Conv2d)]
    return [(name, layer) for name, layer in layers if f"{name}.weight" in weights]


def freeze(model: TextToImage) -> None:
    """Make all parameters of a model untrainable."""
    for _, parameter in model.named_parameters():
        parameter.requires_grad_(False)
