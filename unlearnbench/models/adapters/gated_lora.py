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


class WithGatedLoRA:
    """What a layer's class becomes once it has membranes; the names of its own parameters stay."""

    membranes: Any  # a ModuleList of them

    def forward(self, x: Tensor) -> Tensor:
        """The layer's answer and what each membrane adds."""
        found = super().forward(x)  # type: ignore[misc]
        for membrane in self.membranes:
            found = found + membrane.beside(self, x)
        return found


def add_gated_lora(layer: Any, membrane: GatedLoRA) -> None:
    """One more membrane on a linear or convolution layer."""
    if not isinstance(layer, WithGatedLoRA):
        layer.__class__ = type(f"Membraned{type(layer).__name__}", (WithGatedLoRA, type(layer)), {})
        layer.membranes = nn.ModuleList()
    layer.membranes.append(membrane)


def gated_loras(model: TextToImage) -> list[tuple[int, GatedLoRA]]:
    """Those that a model has, each with its number on its layer, which is that of its concept."""
    having = [layer for _, layer in named_layers(model) if isinstance(layer, WithGatedLoRA)]
    return [(number, membrane) for layer in having for number, membrane in enumerate(layer.membranes)]


def restore_gated_loras(model: TextToImage, saved: Iterable[tuple[str, Tensor]]) -> None:
    """Put a membrane where saved weights have one and the model has none yet."""
    by_name = dict(named_layers(model))
    for name, value in saved:
        match = SAVED.fullmatch(name)
        if match and match[1] in by_name:
            layer = by_name[match[1]]
            while len(getattr(layer, MEMBRANES, ())) <= int(match[2]):
                add_gated_lora(layer, GatedLoRA(layer.weight, len(value), torch.Generator()))


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
        """See `Steering.saved`."""
        return {"transport": self.concepts}

    def encoded(self, model: TextToImage, prompts: Sequence[str], text: Conditioning) -> Conditioning:
        """Adds `gates`, (prompts, concepts)."""
        states, said, gates = text["states"].flatten(1).float(), prompt_token_sets(model, prompts), []
        for phrases in self.concepts:
            cosines = F.cosine_similarity(states[:, None], self._states(model, phrases)[None], dim=-1)
            names = prompt_token_sets(model, phrases)
            shares = [[len(name & own) / max(len(name), 1) for name in names] for own in said]
            gates.append(torch.maximum(cosines, torch.tensor(shares).to(cosines)).amax(1))
        return {**text, "gates": torch.stack(gates, dim=1)}

    def _states(self, model: TextToImage, phrases: Sequence[str]) -> Tensor:
        model.steering = None  # whose `encoded` this is part of
        try:
            return model.encode(phrases)["states"].flatten(1).float()
        finally:
            model.steering = self

    def start(self, model: TextToImage, text: Conditioning, empty: Conditioning, steps: int, guidance: float) -> Predictor:
        """See `Steering.start`; embeddings behind which no prompt stands open all membranes."""
        from unlearnbench.models.diffusers_model import DiffusersModel

        assert isinstance(model, DiffusersModel)
        plain, placed, gates = model.predictor(text, empty, guidance), gated_loras(model), text.get("gates")
        if gates is not None and guidance > 1:
            gates = torch.cat([gates, gates])

        def predict(step: int, seen: Tensor, time: Tensor) -> Tensor:
            for number, membrane in placed:
                membrane.gate = gates[:, number] if gates is not None and number < gates.shape[1] else None
            try:
                return plain(step, seen, time)
            finally:
                for _, membrane in placed:
                    membrane.gate = None

        return predict


def prompt_token_sets(model: TextToImage, prompts: Sequence[str]) -> list[set[int]]:
    """The tokens of each prompt, less those that every prompt has."""
    _, rows = model.spelled(prompts)[0]
    return [set(row) - set(model.tokenizer.all_special_ids) for row in rows]
