"""Erasers: small nonlinear modules after cross-attention, which saved weights may bring with them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PLACE = ".attn2"
FIRST = ".to_out.1.down.weight"


class BottleneckAdapter(nn.Module):
    """h -> h + up(gelu(down(h))), of inner width `rank`; up starts at zero, so that nothing changes.

    It stands where the output of cross-attention had its dropout, which does nothing outside training.
    """

    def __init__(self, width: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down = nn.utils.skip_init(nn.Linear, width, rank)
        self.up = nn.utils.skip_init(nn.Linear, rank, width)
        for parameter in self.down.parameters():
            nn.init.uniform_(parameter, -(width**-0.5), width**-0.5, generator=generator)
        for parameter in self.up.parameters():
            nn.init.zeros_(parameter)

    def forward(self, hidden: Tensor) -> Tensor:
        """The sum."""
        return hidden + self.up(F.gelu(self.down(hidden)))


def bottleneck_adapters(modules: dict[str, nn.Module]) -> list[BottleneckAdapter]:
    """Those that a model has, in order."""
    return [layer for module in modules.values() for layer in module.modules() if isinstance(layer, BottleneckAdapter)]


def install_bottlenecks(modules: dict[str, nn.Module], rank: int, generator: torch.Generator) -> None:
    """Put a new eraser after every cross-attention layer that has none."""
    for module in modules.values():
        for name, layer in module.named_modules():
            if name.endswith(PLACE) and not _has(layer):
                _put(layer, rank, generator)


def restore_bottlenecks(modules: dict[str, nn.Module], saved: Iterable[tuple[str, Tensor]]) -> None:
    """Put an eraser where saved weights have one and the model has none yet."""
    layers = {f"{part}.{name}": layer for part, module in modules.items() for name, layer in module.named_modules()}
    for name, value in saved:
        layer = layers.get(name.removesuffix(FIRST))
        if name.endswith(FIRST) and layer is not None and not _has(layer):
            _put(layer, len(value), torch.Generator())


def _has(layer: nn.Module) -> bool:
    return isinstance(layer.get_submodule("to_out.1"), BottleneckAdapter)


def _put(layer: nn.Module, rank: int, generator: torch.Generator) -> None:
    weight = layer.get_submodule("to_out.0").get_parameter("weight")
    layer.get_submodule("to_out").register_module("1", BottleneckAdapter(len(weight), rank, generator).to(weight.device))
