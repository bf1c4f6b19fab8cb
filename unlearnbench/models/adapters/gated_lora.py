"""Gated LoRA: low-rank adapters whose gate depends on the prompt: SPM's membranes (Lyu et al. 2024, arXiv 2312.16145)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearnbench.models.adapters.layers import adaptable_layers, freeze, named_layers
from unlearnbench.models.base import Predictor, SamplingGuidance
from unlearnbench.models.parameters import trainable_parameters

if TYPE_CHECKING:
    from unlearnbench.models.base import Conditioning, TextToImage


MEMBRANES = "membranes"  # the attribute of a layer that holds its adapters; part of the names of saved tensors
SAVED = re.compile(rf"(.+)\.{MEMBRANES}\.(\d+)\.down")


class GatedLoRA(nn.Module):
    """y -> y + gate up down x, for the output y of a linear or convolution layer on x; up starts at zero.

    `down` is (rank, columns) and `up` (rows, rank) for a weight (rows, columns). A convolution's weight (out, in, k, k) counts
    as (out, in k k): down is then a k x k convolution to `rank` channels, up a pointwise one. Both are fp32.

    Args:
        weight: of the layer.
        rank: at least 1.
        generator: draws down, uniform within 1 / sqrt(columns); on the CPU.

    Attributes:
        gate: one number per example (n,), from 0 (closed) to 1 (open); None is 1.
    """

    gate: Tensor | None = None

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        bound = columns**-0.5
        down = torch.empty(rank, columns).uniform_(-bound, bound, generator=generator)
        self.down = nn.Parameter(down.to(weight.device))
        self.up = nn.Parameter(torch.zeros(rows, rank, device=weight.device))

    def addition(self, layer: Any, x: Tensor) -> Tensor:
        """The term that the adapter adds to the layer's output on x, of the output's shape."""
        if isinstance(layer, nn.Conv2d):
            kernel = self.down.view(-1, *layer.weight.shape[1:])
            inner = F.conv2d(x, kernel, None, layer.stride, layer.padding, layer.dilation)
            added = F.conv2d(inner, self.up[:, :, None, None])
        else:
            added = F.linear(F.linear(x, self.down), self.up)
        return added if self.gate is None else added * self.gate.to(added).view(-1, *[1] * (added.dim() - 1))


class _WithGatedLoRA:
    """A layer with a list of adapters; its own parameters keep their names."""

    membranes: Any  # a ModuleList of GatedLoRA

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output plus the addition of each adapter."""
        output = super().forward(x)  # type: ignore[misc]
        for adapter in self.membranes:
            output = output + adapter.addition(self, x)
        return output


class GatedLinear(_WithGatedLoRA, nn.Linear):
    """A linear layer with adapters."""


class GatedConv2d(_WithGatedLoRA, nn.Conv2d):
    """A convolution with adapters."""


def gated_layer(layer: Any) -> Any:
    """A layer with the same parameters and a list of adapters; the layer itself if it has such a list."""
    if isinstance(layer, _WithGatedLoRA):
        return layer
    bias = layer.bias is not None
    gated: Any
    if isinstance(layer, nn.Conv2d):
        shape = layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation
        gated = nn.utils.skip_init(GatedConv2d, *shape, layer.groups, bias, layer.padding_mode)
    else:
        gated = nn.utils.skip_init(GatedLinear, layer.in_features, layer.out_features, bias)
    gated.weight, gated.bias, gated.membranes = layer.weight, layer.bias, nn.ModuleList()
    return gated.train(layer.training)


def add_gated_lora(model: TextToImage, name: str, adapter: GatedLoRA) -> None:
    """Append an adapter to the linear or convolution layer of this name, which `gated_layer` replaces if necessary."""
    part, _, path = name.partition(".")
    module = model.modules()[part]
    gated = gated_layer(module.get_submodule(path))
    gated.membranes.append(adapter)
    module.set_submodule(path, gated)


def install_gated_lora(
    model: TextToImage, weights: Collection[str], rank: int, generator: torch.Generator
) -> dict[str, nn.Parameter]:
    """Add a `GatedLoRA` to each linear or convolution layer whose weight is named.

    Returns the parameters of these adapters by name, which are then the only trainable ones.
    """
    freeze(model)
    for name, layer in adaptable_layers(model, weights):
        add_gated_lora(model, name, GatedLoRA(layer.weight, rank, generator))
    return trainable_parameters(model)


def gated_loras(model: TextToImage) -> list[tuple[int, GatedLoRA]]:
    """The adapters of a model, each with its index on its layer, which is the index of its concept."""
    gated = [layer for _, layer in named_layers(model) if isinstance(layer, _WithGatedLoRA)]
    return [(number, adapter) for layer in gated for number, adapter in enumerate(layer.membranes)]


def restore_gated_loras(model: TextToImage, saved: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Add the adapters of saved weights that the model does not have yet; returns the names of their layers."""
    restored = []
    for name, value in saved:
        match = SAVED.fullmatch(name)
        if match and match[1] in (layers := dict(named_layers(model))):
            for _ in range(len(getattr(layers[match[1]], MEMBRANES, ())), int(match[2]) + 1):
                add_gated_lora(model, match[1], GatedLoRA(layers[match[1]].weight, len(value), torch.Generator()))
                restored.append(match[1])
    return restored


@dataclass
class FacilitatedTransport(SamplingGuidance):
    """Sampling in which the similarity of a prompt and a concept sets the gate of the concept's adapters.

    The gate of a phrase is the greater of two numbers: the cosine of the flattened prompt embeddings of prompt and phrase,
    and the fraction of the phrase's tokens that the prompt has. The gate of a concept is the greatest of its phrases'.
    Lyu et al. 2024 (arXiv 2312.16145), "facilitated transport"; form after the authors' code. The unconditional prediction
    of classifier-free guidance has the prompt's gates, too.

    Attributes:
        concepts: the phrases of each concept, in the order of the adapters.
        exponent: of the gates. The authors' code (Con6924/SPM, infer_spm.py) multiplies both matrices of an adapter by the gate,
            which squares it; the paper has 1.
    """

    concepts: list[list[str]]
    exponent: float = 1.0

    def saved(self) -> dict[str, Any]:
        """See `SamplingGuidance.saved`."""
        return {"transport": self.concepts, **({"transport_exponent": self.exponent} if self.exponent != 1 else {})}

    def conditioned(self, model: TextToImage, prompts: Sequence[str], cond: Conditioning) -> Conditioning:
        """Adds `gates` (prompts, concepts), from 0 to 1."""
        embeds, tokens, gates = cond["prompt_embeds"].flatten(1).float(), prompt_token_sets(model, prompts), []
        for phrases in self.concepts:
            phrase_embeds = model.encode_prompts(phrases)["prompt_embeds"].flatten(1).float()
            cosines = F.cosine_similarity(embeds[:, None], phrase_embeds[None], dim=-1)
            phrase_tokens = prompt_token_sets(model, phrases)
            overlap = [[len(phrase & own) / max(len(phrase), 1) for phrase in phrase_tokens] for own in tokens]
            gates.append(torch.maximum(cosines, torch.tensor(overlap).to(cosines)).amax(1))
        return {**cond, "gates": torch.stack(gates, dim=1) ** self.exponent}

    def start(self, model: TextToImage, cond: Conditioning, uncond: Conditioning, steps: int, scale: float) -> Predictor:
        """See `SamplingGuidance.start`; without `gates` in the conditioning all adapters are open."""
        plain, adapters, gates = model.predictor(cond, uncond, scale), gated_loras(model), cond.get("gates")
        if gates is not None and scale > 1:
            gates = torch.cat([gates, gates])

        def predict(step: int, latents: Tensor, timestep: Tensor) -> Tensor:
            for number, adapter in adapters:
                adapter.gate = gates[:, number] if gates is not None and number < gates.shape[1] else None
            try:
                return plain(step, latents, timestep)
            finally:
                for _, adapter in adapters:
                    adapter.gate = None

        return predict


def prompt_token_sets(model: TextToImage, prompts: Sequence[str]) -> list[set[int]]:
    """The token ids of each prompt without the special tokens."""
    _, rows = model.tokenize(prompts)[0]
    return [set(row) - set(model.tokenizer.all_special_ids) for row in rows]
