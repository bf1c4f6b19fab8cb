"""Random labels: train the concept's prompts to predict what other prompts predict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.examples import Batch
from unlearnbench.algos.losses import denoising_loss, relabelling_loss
from unlearnbench.config.ranges import one_of
from unlearnbench.models.base import TextToImage
from unlearnbench.models.frozen import Frozen


@dataclass
class RandomLabel(Unlearner):
    """Train the concept's prompt to another prompt's prediction, on the concept's own noised images.

    L = |eps(x_t, c_f) - sg eps(x_t, c')|^2 + alpha L_diff(retain), where sg stops the gradient and c' is another prompt.
    This is the generation objective of SalUn (Fan et al. 2024, arXiv 2310.12508) without its mask, which `salun` adds. In
    the paper c' is any prompt but c_f. The authors' code for Stable Diffusion uses a fixed one (the next class, or "a photo
    of a person wearing clothes" for nudity), which is `other: anchor`.

    Attributes:
        alpha: weight of the retain term.
        other: c': "anchor" for the prompt with the concept replaced, "retain" for a random retain prompt.
    """

    alpha: float = 0.1
    other: str = "anchor"
    passes_with_gradient: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "other", "anchor", "retain")

    @property
    def needs_anchors(self) -> bool:
        """See `Unlearner.needs_anchors`."""
        return self.other == "anchor"

    def loss(self, model: TextToImage, frozen: Frozen, forget: Batch, retain: Batch, generator: torch.Generator) -> Tensor:
        """The relabelling loss on the concept plus alpha L_diff(retain)."""
        labels = forget.anchors if self.other == "anchor" else retain.prompts
        return relabelling_loss(model, forget, labels, generator) + self.alpha * denoising_loss(model, retain, generator)
