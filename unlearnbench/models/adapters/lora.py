"""Low-rank adapters: installed on layers, trained in their stead, merged into the weights at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from unlearnbench.models.parameters import trainable_parameters

if TYPE_CHECKING:
    from unlearnbench.models.base import TextToImage


class LoRA(nn.Module):
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
        return weight + (self.up @ self.down).view_as(weight).to(weight)


def parametrize_weight(model: TextToImage, name: str, adapter: nn.Module) -> None:
    """Let the adapter compute the weight of the layer of this name."""
    parametrize.register_parametrization(dict(named_layers(model))[name], "weight", adapter)


def install_adapters(
    model: TextToImage,
    names: Iterable[str],
    make: Callable[[Tensor], nn.Module],
    put: Callable[[TextToImage, str, Any], None] = parametrize_weight,
) -> dict[str, nn.Parameter]:
    """Put an adapter on the layer of each named weight, if that is linear or a convolution.

    Args:
        model: a loaded model.
        names: of weights.
        make: the adapter of a weight.
        put: installs it on the layer of a name.

    Returns:
        What trains then: the parameters of the adapters.
    """
    chosen = set(names)
    for _, parameter in model.named_parameters():
        parameter.requires_grad_(False)
    for name, layer in named_layers(model):
        if f"{name}.weight" in chosen and isinstance(layer, nn.Linear | nn.Conv2d):
            put(model, name, make(layer.weight))
    return trainable_parameters(model)


def named_layers(model: TextToImage) -> list[tuple[str, Any]]:
    """All layers of all parts, named as their parameters are."""
    return [(f"{part}.{name}", layer) for part, module in model.modules().items() for name, layer in module.named_modules()]


@torch.no_grad()
def merge_adapters(model: TextToImage) -> list[str]:
    """Put every adapted weight, summed in fp32 and kept so, in place of its original, and drop the adapters.

    Returns the weights' names.
    """
    adapted = [(name, layer) for name, layer in named_layers(model) if parametrize.is_parametrized(layer, "weight")]
    for _, layer in adapted:
        parts = layer.parametrizations["weight"]
        merged = parts[0](parts.original.float())
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        layer.weight.data = torch.empty_like(layer.weight, dtype=torch.float32).copy_(merged)
    return [f"{name}.weight" for name, _ in adapted]
