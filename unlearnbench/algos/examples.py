"""Training examples: prompts with latents, and batches of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unlearnbench.storage.cache import digest
from unlearnbench.storage.tensors import tensor_digest

if TYPE_CHECKING:
    pass


@dataclass
class Batch:
    """Some examples: prompts, the same with the concept exchanged (anchors), and clean latents of both, (n, c, h, w)."""

    prompts: list[str]
    anchors: list[str]
    latents: Tensor
    anchor_latents: Tensor = field(default_factory=lambda: torch.empty(0))

    def part(self, which: slice) -> Batch:
        """Some of them."""
        return Batch(self.prompts[which], self.anchors[which], self.latents[which], self.anchor_latents[which])


@dataclass
class Examples:
    """All training examples of one side, forget or retain; latents are empty where the method needs no images.

    Attributes:
        prompts: one an example.
        anchors: the same with the concept exchanged.
        latents: clean latents, (n, c, h, w).
        weights: how likely each is drawn, up to a factor; None for all alike.
        anchor_latents: clean latents of images that the original paints for the anchors, where the method asks for them.
    """

    prompts: list[str]
    anchors: list[str]
    latents: Tensor
    weights: Tensor | None = None
    anchor_latents: Tensor = field(default_factory=lambda: torch.empty(0))

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """A random batch, with repetition."""
        if self.weights is None:
            chosen = torch.randint(len(self.prompts), (count,), generator=generator).tolist()
        else:
            chosen = torch.multinomial(self.weights, count, replacement=True, generator=generator).tolist()
        latents, others = (x[chosen] if len(x) else x for x in (self.latents, self.anchor_latents))
        return Batch([self.prompts[i] for i in chosen], [self.anchors[i] for i in chosen], latents, others)

    def to(self, device: torch.device) -> Examples:
        """The same, their latents on the device."""
        return replace(self, latents=self.latents.to(device), anchor_latents=self.anchor_latents.to(device))

    def digest(self) -> str:
        """A hash of them all."""
        tensors = {"latents": self.latents, "anchors": self.anchor_latents, "weights": self.weights}
        return digest(self.prompts, self.anchors, tensor_digest({k: v for k, v in tensors.items() if v is not None}))
