"""Bottleneck adapters after cross-attention: Receler's erasers (Huang et al. 2024, arXiv 2311.17717)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CROSS_ATTENTION = ".attn2"
SAVED_SUFFIX = ".to_out.1.down.weight"


class BottleneckAdapter(nn.Module):
    """h -> h + up(gelu(down(h))), of inner width `rank`; up starts at zero, so that the output starts unchanged.

    It replaces the dropout of cross-attention's output projection, which is the identity in evaluation.

    Args:
        width: of h (..., width).
        rank: the inner width.
        generator: draws down, uniform within 1 / sqrt(width); on the CPU.
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
        """The adapted hidden states, of the same shape."""
        return hidden + self.up(F.gelu(self.down(hidden)))


def bottleneck_adapters(modules: dict[str, nn.Module]) -> list[BottleneckAdapter]:
    """The adapters of these modules, in the modules' order."""
    return [layer for module in modules.values() for layer in module.modules() if isinstance(layer, BottleneckAdapter)]


def install_bottlenecks(modules: dict[str, nn.Module], rank: int, generator: torch.Generator) -> list[str]:
    """Install an adapter on every cross-attention layer that has none; returns the names of these layers."""
    installed = []
    for part, module in modules.items():
        for name, layer in module.named_modules():
            if name.endswith(CROSS_ATTENTION) and not _has_adapter(layer):
                _install(layer, rank, generator)
                installed.append(f"{part}.{name}")
    return installed


def restore_bottlenecks(modules: dict[str, nn.Module], saved: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Install the adapters of saved weights that the modules do not have yet; returns the names of their layers."""
    installed = []
    layers = {f"{part}.{name}": layer for part, module in modules.items() for name, layer in module.named_modules()}
    for name, value in saved:
        layer = layers.get(name.removesuffix(SAVED_SUFFIX))
        if name.endswith(SAVED_SUFFIX) and layer is not None and not _has_adapter(layer):
            _install(layer, len(value), torch.Generator())
            installed.append(name.removesuffix(SAVED_SUFFIX))
    return installed


def _has_adapter(layer: nn.Module) -> bool:
    return isinstance(layer.get_submodule("to_out.1"), BottleneckAdapter)


def _install(layer: nn.Module, rank: int, generator: torch.Generator) -> None:
    weight = layer.get_submodule("to_out.0").get_parameter("weight")
    layer.get_submodule("to_out").register_module("1", BottleneckAdapter(len(weight), rank, generator).to(weight.device))
