"""What the tests that compute by hand share: a concept, explicit randomness, and all examples as one batch."""

from __future__ import annotations

import torch

from unlearnbench.algos.base import Batch, Examples
from unlearnbench.data import Concept

CHURCH = Concept("church", ["church"], "", {"church": "house"}, "church", {})


def draws(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def whole(examples: Examples, count: int = 3) -> Batch:
    return Batch(examples.prompts[:count], examples.anchors[:count], examples.latents[:count], examples.anchor_latents[:count])
