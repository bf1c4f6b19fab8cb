"""Low-rank adapters (LoRA) by peft: installed on layers, trained, and merged into the weights at the end."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unlearnbench.models.adapters.layers import adaptable_layers, freeze, named_layers
from unlearnbench.models.parameters import trainable_parameters

if TYPE_CHECKING:
    from unlearnbench.models.base import TextToImage

NAME = "default"  # of the adapter in peft


def install_lora(model: TextToImage, weights: Collection[str], rank: int, generator: torch.Generator) -> dict[str, nn.Parameter]:
    """Install a LoRA, y -> y + B A x, on each linear or convolution layer whose weight is named.

    Hu et al. 2021 (arXiv 2106.09685), with alpha = rank, no dropout and no bias. A (rank, columns) starts uniform within
    1 / sqrt(columns), B (rows, rank) at zero, so that outputs start unchanged. A convolution's weight (out, in, k, k) counts
    as (out, in k k): A is then a k x k convolution to `rank` channels, B a pointwise one. Both are fp32 whatever the model's
    dtype.

    Args:
        model: a loaded model.
        weights: names of parameters; those that are no weight of such a layer are ignored.
        rank: at least 1.
        generator: draws A, layer by layer; on the CPU. The global generator is not used.

    Returns:
        The parameters of the adapters by name, which are then the only trainable ones.
    """
    freeze(model)
    targets = adaptable_layers(model, weights)
    for part, module in model.modules().items():
        names = [name.removeprefix(f"{part}.") for name, _ in targets if name.startswith(f"{part}.")]
        if names:
            _inject(module, names, rank)
    for _, layer in lora_layers(model):
        _initialise(layer, generator)
    return trainable_parameters(model)


def lora_layers(model: TextToImage) -> list[tuple[str, Any]]:
    """The layers with a LoRA and their names, in the model's order."""
    if not any("peft_config" in vars(module) for module in model.modules().values()):
        return []
    from peft.tuners.lora import LoraLayer

    return [(name, layer) for name, layer in named_layers(model) if isinstance(layer, LoraLayer)]


def lora_tensors(model: TextToImage) -> dict[str, Tensor]:
    """A (rank, columns) and B (rows, rank) of each LoRA, named as diffusers and peft save them; empty without a LoRA."""
    tensors = {}
    for name, layer in lora_layers(model):
        tensors[f"{name}.lora_A.weight"] = layer.lora_A[NAME].weight.detach()
        tensors[f"{name}.lora_B.weight"] = layer.lora_B[NAME].weight.detach()
    return tensors


@torch.no_grad()
def merge_lora(model: TextToImage) -> list[str]:
    """Replace each layer with a LoRA by the original layer with the weight W + B A, computed and stored in fp32.

    Returns the names of the weights.
    """
    names = []
    for name, layer in lora_layers(model):
        original = layer.get_base_layer()
        merged = original.weight.float() + layer.get_delta_weight(NAME)
        original.weight.data = torch.empty_like(original.weight, dtype=torch.float32).copy_(merged)
        part, _, path = name.partition(".")
        model.modules()[part].set_submodule(path, original)
        names.append(f"{name}.weight")
    for module in model.modules().values():
        vars(module).pop("peft_config", None)
    return names


def _inject(module: nn.Module, names: list[str], rank: int) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    exact = "|".join(re.escape(name) for name in names)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=exact, init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(config, module, NAME)


@torch.no_grad()
def _initialise(layer: Any, generator: torch.Generator) -> None:
    down, up = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
    bound = down[0].numel() ** -0.5
    down.data = torch.empty(down.shape).uniform_(-bound, bound, generator=generator).to(down.device)
    up.data = torch.zeros(up.shape, device=up.device)
