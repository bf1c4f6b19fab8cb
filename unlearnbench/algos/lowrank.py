"""Low-rank training: a thin product is added to each weight, trains alone, and is merged into the weight at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from unlearnbench.algos.base import Examples, Log, Unlearner
from unlearnbench.config import UserError
from unlearnbench.data import Concept
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


@dataclass
class LowRank(Unlearner):
    """A method that may train adapters: `train` then selects the linear and convolution weights that get one.

    The names that `unlearn` returns are those of the weights into which the adapters were merged, so that what is saved
    loads like any other weights.

    Attributes:
        rank: of the adapters; 0 trains the weights themselves.
    """

    rank: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 0:
            raise ValueError(f"rank: {self.rank} is less than 0")

    def trainable(self, model: TextToImage, generator: torch.Generator) -> dict[str, nn.Parameter]:
        """The adapters, made here, or the parameters themselves."""
        chosen = super().trainable(model, generator)
        if self.rank == 0:
            return chosen
        for parameter in chosen.values():
            parameter.requires_grad_(False)
        for name, layer in layers(model):
            if f"{name}.weight" in chosen and isinstance(layer, nn.Linear | nn.Conv2d):
                parametrize.register_parametrization(layer, "weight", Thin(layer.weight, self.rank, generator))
        made = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        if not made:
            raise UserError(f"algo.train={self.train}: selects no weight of a linear or convolution layer to adapt")
        return made

    def unlearn(
        self, model: TextToImage, forget: Examples, retain: Examples, concept: Concept, seed: int, log: Log
    ) -> Sequence[str]:
        """See `Unlearner.unlearn`."""
        names = super().unlearn(model, forget, retain, concept, seed, log)
        return names if self.rank == 0 else merge(model)


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
