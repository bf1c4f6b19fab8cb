"""Membranes: low-rank additions beside a layer's weight, open as far as the prompt is like the concept that they hold back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearnbench.models.adapters.lora import LoRA, named_layers
from unlearnbench.models.base import Predictor, SamplingGuidance

if TYPE_CHECKING:
    from unlearnbench.models.base import Conditioning, TextToImage


MEMBRANES = "membranes"  # what a layer's are called among its modules
SAVED = re.compile(rf"(.+)\.{MEMBRANES}\.(\d+)\.down")


class GatedLoRA(LoRA):
    """y -> y + gate up down x beside a linear or convolution layer that answers y to x; up starts at zero.

    `gate`, one number an example (n,), is 1 unless it is set.
    """

    gate: Tensor | None = None

    def beside(self, layer: Any, x: Tensor) -> Tensor:
        """What it adds."""
        if isinstance(layer, nn.Conv2d):
            kernel = self.down.view(-1, *layer.weight.shape[1:])
            inner = F.conv2d(x, kernel, None, layer.stride, layer.padding, layer.dilation)
            added = F.conv2d(inner, self.up[:, :, None, None])
        else:
            added = F.linear(F.linear(x, self.down), self.up)
        return added if self.gate is None else added * self.gate.to(added).view(-1, *[1] * (added.dim() - 1))


class _WithGatedLoRA:
    """A layer with adapters beside it; the names of its own parameters stay."""

    membranes: Any  # a ModuleList of GatedLoRA

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output plus that of each adapter."""
        output = super().forward(x)  # type: ignore[misc]
        for adapter in self.membranes:
            output = output + adapter.beside(self, x)
        return output


class GatedLinear(_WithGatedLoRA, nn.Linear):
    """A linear layer with adapters."""


class GatedConv2d(_WithGatedLoRA, nn.Conv2d):
    """A convolution with adapters."""


def with_adapters(layer: Any) -> Any:
    """A layer of the same parameters that has room for adapters; the layer itself if it has some already."""
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
    """One more adapter on the linear or convolution layer of this name, which gets room for adapters first."""
    part, _, path = name.partition(".")
    module = model.modules()[part]
    gated = with_adapters(module.get_submodule(path))
    gated.membranes.append(adapter)
    module.set_submodule(path, gated)


def gated_loras(model: TextToImage) -> list[tuple[int, GatedLoRA]]:
    """The adapters of a model, each with its number on its layer, which is that of its concept."""
    gated = [layer for _, layer in named_layers(model) if isinstance(layer, _WithGatedLoRA)]
    return [(number, adapter) for layer in gated for number, adapter in enumerate(layer.membranes)]


def restore_gated_loras(model: TextToImage, saved: Iterable[tuple[str, Tensor]]) -> None:
    """Add an adapter where saved weights have one and the model has none yet."""
    for name, value in saved:
        match = SAVED.fullmatch(name)
        if match and match[1] in (layers := dict(named_layers(model))):
            for _ in range(len(getattr(layers[match[1]], MEMBRANES, ())), int(match[2]) + 1):
                add_gated_lora(model, match[1], GatedLoRA(layers[match[1]].weight, len(value), torch.Generator()))


@dataclass
class FacilitatedTransport(SamplingGuidance):
    """While the model samples, each prompt opens the membranes of each concept as far as it is like it.

    A gate is the greater of the cosine of the two texts' states, flattened, and of the share of the concept's tokens that
    the prompt has, and of several phrases the greatest (Lyu et al. 2024, arXiv 2312.16145, "facilitated transport"; form
    after the authors' code). It holds for the empty prompt's prediction of guidance, too.

    Attributes:
        concepts: the phrases of each concept, in the order of the membranes.
    """

    concepts: list[list[str]]

    def saved(self) -> dict[str, Any]:
        """See `SamplingGuidance.saved`."""
        return {"transport": self.concepts}

    def conditioned(self, model: TextToImage, prompts: Sequence[str], cond: Conditioning) -> Conditioning:
        """Adds `gates`, (prompts, concepts)."""
        embeds, tokens, gates = cond["prompt_embeds"].flatten(1).float(), prompt_token_sets(model, prompts), []
        for phrases in self.concepts:
            phrase_embeds = model.encode_prompts(phrases)["prompt_embeds"].flatten(1).float()
            cosines = F.cosine_similarity(embeds[:, None], phrase_embeds[None], dim=-1)
            phrase_tokens = prompt_token_sets(model, phrases)
            overlap = [[len(phrase & own) / max(len(phrase), 1) for phrase in phrase_tokens] for own in tokens]
            gates.append(torch.maximum(cosines, torch.tensor(overlap).to(cosines)).amax(1))
        return {**cond, "gates": torch.stack(gates, dim=1)}

    def start(self, model: TextToImage, cond: Conditioning, uncond: Conditioning, steps: int, scale: float) -> Predictor:
        """See `SamplingGuidance.start`; conditioning without `gates` opens all adapters."""
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
    """The tokens of each prompt, less those that every prompt has."""
    _, rows = model.tokenize(prompts)[0]
    return [set(row) - set(model.tokenizer.all_special_ids) for row in rows]
