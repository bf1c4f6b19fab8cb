"""Low-rank adapters: a thin product is added to a weight, trains alone, and is merged into the weight at the end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from unlearnbench.models.base import TextToImage


class Thin(nn.Module):
    """W -> W + up down, of shapes (rows, rank) and (rank, columns); up starts at zero, so that nothing changes.

    A convolution's weight (out, in, k, k) counts as (out, in k k): the product is then a k by k convolution to `rank`
    channels followed by a pointwise one. down starts uniform within 1 / sqrt(columns), as a linear layer does.
    """

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        bound = columns**-0.5
        down = torch.empty(rank, columns).uniform_(-bound, bound, generator=generator)
        self.down = nn.Parameter(down.to(weight.device))
        self.up = nn.Parameter(torch.zeros(rows, rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """The sum."""
        return weight + (self.up @ self.down).view_as(weight)


def install(model: TextToImage, names: Iterable[str], rank: int, generator: torch.Generator) -> dict[str, nn.Parameter]:
    """Put an adapter on each named weight of a linear or convolution layer; returns what trains then: the adapters alone."""
    chosen = set(names)
    for _, parameter in model.named_parameters():
        parameter.requires_grad_(False)
    for name, layer in layers(model):
        if f"{name}.weight" in chosen and isinstance(layer, nn.Linear | nn.Conv2d):
            parametrize.register_parametrization(layer, "weight", Thin(layer.weight, rank, generator))
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def layers(model: TextToImage) -> list[tuple[str, Any]]:
    """All layers of all parts, named as their parameters are."""
    return [(f"{part}.{name}", layer) for part, module in model.modules().items() for name, layer in module.named_modules()]


@torch.no_grad()
def merge(model: TextToImage) -> list[str]:
    """Write every adapted weight over its original, in its memory layout, and drop the adapters; returns the weights' names."""
    adapted = [(name, layer) for name, layer in layers(model) if parametrize.is_parametrized(layer, "weight")]
    for _, layer in adapted:
        merged = layer.weight
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        layer.weight.copy_(merged)
    return [f"{name}.weight" for name, _ in adapted]
