"""Adapters: a product is added to a weight, trains in its stead, and is merged into the weight at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

if TYPE_CHECKING:
    from unlearnbench.models.base import TextToImage

AT_ONCE = 64
TOLD = "states"  # what the denoiser is told, among names of layers


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
        return weight + (self.up @ self.down).view_as(weight).to(weight)


class Whitened(nn.Module):
    """W -> W + up white, of shapes (rows, columns) and (columns, columns); up starts at zero, so that nothing changes.

    `white` is the identity until `whiten` sets it, and does not train.
    """

    white: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("white", torch.eye(weight.shape[1], device=weight.device))
        self.up = nn.Parameter(torch.zeros_like(weight, dtype=torch.float32))

    def forward(self, weight: Tensor) -> Tensor:
        """The sum."""
        return weight + (self.up @ self.white).to(weight)


@torch.no_grad()
def whiten(model: TextToImage, prompts: Sequence[str], ridge: float) -> None:
    """Make a step of every `Whitened` adapter small where these prompts' inputs to its layer are large.

    white = (C + ridge I)^-1/2 with C the inputs' second moment over all tokens, scaled to the mean eigenvalue 1. A gradient
    step on `up` then moves W by gradient (C + ridge I)^-1: the input side of K-FAC (Martens, Grosse 2015, arXiv 1503.05671).

    Args:
        model: with the adapters installed, on layers of a text encoder or on keys and values of cross-attention, which read
            the states that the encoder ends with.
        prompts: what is to be held.
        ridge: above 0; the smaller, the more is left to directions that no input takes.
    """
    adapted = {name: layer for name, layer in layers(model) if parametrize.is_parametrized(layer, "weight")}
    moments: dict[str, Tensor] = {}
    hooks = [layer.register_forward_pre_hook(partial(_read, moments, name)) for name, layer in adapted.items()]
    try:
        for first in range(0, len(prompts), AT_ONCE):
            _add(moments, TOLD, model.encode(prompts[first : first + AT_ONCE])["states"])
    finally:
        for hook in hooks:
            hook.remove()
    if adapted.keys() - moments.keys():
        told = _root(moments[TOLD].to(model.device), ridge)
    for name, layer in adapted.items():
        white = _root(moments[name].to(model.device), ridge) if name in moments else told
        layer.parametrizations["weight"][0].white.copy_(white)


def _read(moments: dict[str, Tensor], name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    _add(moments, name, inputs[0])


def _add(moments: dict[str, Tensor], name: str, inputs: Tensor) -> None:
    rows = inputs.flatten(0, -2).double()
    moments[name] = moments.get(name, 0) + (rows.T @ rows).cpu()


def _root(moment: Tensor, ridge: float) -> Tensor:
    values, vectors = torch.linalg.eigh(moment * len(moment) / moment.trace())
    return (vectors * (values.clamp(min=0) + ridge).rsqrt()) @ vectors.T


def over_weight(layer: nn.Module, adapter: nn.Module) -> None:
    """Let the adapter give the layer's weight."""
    parametrize.register_parametrization(layer, "weight", adapter)


def install(
    model: TextToImage,
    names: Iterable[str],
    make: Callable[[Tensor], nn.Module],
    put: Callable[[Any, Any], None] = over_weight,
) -> dict[str, nn.Parameter]:
    """Put an adapter, as `make` makes it of a weight, on the layer of each named weight, if that is linear or a convolution.

    Returns what trains then: the adapters alone.
    """
    chosen = set(names)
    for _, parameter in model.named_parameters():
        parameter.requires_grad_(False)
    for name, layer in layers(model):
        if f"{name}.weight" in chosen and isinstance(layer, nn.Linear | nn.Conv2d):
            put(layer, make(layer.weight))
    return model.training()


def layers(model: TextToImage) -> list[tuple[str, Any]]:
    """All layers of all parts, named as their parameters are."""
    return [(f"{part}.{name}", layer) for part, module in model.modules().items() for name, layer in module.named_modules()]


@torch.no_grad()
def merge(model: TextToImage) -> list[str]:
    """Put every adapted weight, summed in fp32 and kept so, in place of its original, and drop the adapters.

    Returns the weights' names.
    """
    adapted = [(name, layer) for name, layer in layers(model) if parametrize.is_parametrized(layer, "weight")]
    for _, layer in adapted:
        parts = layer.parametrizations["weight"]
        merged = parts[0](parts.original.float())
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        layer.weight.data = torch.empty_like(layer.weight, dtype=torch.float32).copy_(merged)
    return [f"{name}.weight" for name, _ in adapted]
