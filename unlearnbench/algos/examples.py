"""Training examples: prompts with latents, and batches of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from unlearnbench.storage.cache import digest
from unlearnbench.storage.tensors import tensor_digest


@dataclass
class Batch:
    """Some examples: prompts, anchors (the prompts with the concept replaced), and clean latents of both, (n, c, h, w)."""

    prompts: list[str]
    anchors: list[str]
    latents: Tensor
    anchor_latents: Tensor = field(default_factory=lambda: torch.empty(0))

    def part(self, which: slice) -> Batch:
        """The examples of a slice."""
        return Batch(self.prompts[which], self.anchors[which], self.latents[which], self.anchor_latents[which])


@dataclass
class Examples:
    """All training examples of one side, forget or retain; latents are empty where the method needs no images.

    Attributes:
        prompts: one for each example.
        anchors: the prompts with the concept replaced.
        latents: clean latents, (n, c, h, w).
        weights: the sampling weight of each example; None for equal weights.
        anchor_latents: clean latents of images that the original generates for the anchors, where the method needs them.
    """

    prompts: list[str]
    anchors: list[str]
    latents: Tensor
    weights: Tensor | None = None
    anchor_latents: Tensor = field(default_factory=lambda: torch.empty(0))

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """A random batch, drawn with replacement."""
        if self.weights is None:
            rows = torch.randint(len(self.prompts), (count,), generator=generator).tolist()
        else:
            rows = torch.multinomial(self.weights, count, replacement=True, generator=generator).tolist()
        latents, anchor_latents = (x[rows] if len(x) else x for x in (self.latents, self.anchor_latents))
        return Batch([self.prompts[i] for i in rows], [self.anchors[i] for i in rows], latents, anchor_latents)

    def batches(self, size: int) -> list[Batch]:
        """All examples in order, in batches of a size; the last one may be smaller. The batches have no anchor latents."""
        parts = [slice(i, i + size) for i in range(0, len(self.prompts), size)]
        return [Batch(self.prompts[part], self.anchors[part], self.latents[part]) for part in parts]

    def to(self, device: torch.device) -> Examples:
        """The same examples with their latents on the device."""
        return replace(self, latents=self.latents.to(device), anchor_latents=self.anchor_latents.to(device))

    def digest(self) -> str:
        """A hash of all examples."""
        tensors = {"latents": self.latents, "anchors": self.anchor_latents, "weights": self.weights}
        return digest(self.prompts, self.anchors, tensor_digest({k: v for k, v in tensors.items() if v is not None}))
