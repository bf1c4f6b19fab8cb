"""Concept ablation: paint the anchor for the concept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.examples import Batch
from unlearnbench.algos.losses import denoising_loss, relabelling_loss
from unlearnbench.algos.training import Training
from unlearnbench.config.ranges import one_of
from unlearnbench.models.base import TextToImage
from unlearnbench.models.frozen import Frozen


@dataclass
class ConceptAblation(Unlearner):
    """On images of the anchor, answer the concept's prompt as the anchor's.

    Model form: L = |eps(x_t, c_f) - sg eps(x_t, c_a)|^2 + keep L_diff(x, c_a), where x is an image that the original paints for
    the anchor c_a and sg stops the gradient of the model in training; noise form: L_diff(x, c_f) + keep L_diff(x, c_a)
    (Kumari et al. 2023, arXiv 2303.13516). The anchor's prompts are the concept's with its words exchanged, as many images
    as there are forget examples (the authors: 200 to 1000 images of prompts from a language model). Without the
    authors' augmentation, AdamW's weight decay, and their stopped gradient at the first token's key and value.

    The defaults are the authors' for styles and objects. For nudity their command is
    `algo.train='attn[12].to_(q|k|v|out)' algo.lr=6.4e-5 algo.steps=400 algo.keep=1`, on two GPUs.

    Attributes:
        form: "model" or "noise".
        keep: the weight of the denoising loss on the anchor; the authors' commands leave it out but for Grumpy Cat,
            memorized images and what is unsafe, where it is 1 (0.2 in their older code base).
    """

    form: str = "model"
    keep: float = 0.0
    needs_images: ClassVar[bool] = False
    needs_anchors: ClassVar[bool] = True
    needs_anchor_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "form", "model", "noise")

    def begin(self, training: Training) -> None:
        """Gives the forget prompts the images of their anchors."""
        training.forget = replace(training.forget, latents=training.forget.anchor_latents)

    def loss(self, model: TextToImage, frozen: Frozen, forget: Batch, retain: Batch, generator: torch.Generator) -> Tensor:
        """The anchor's prediction, or its noise, for the concept's prompt."""
        if self.form == "model":
            forgetting = relabelling_loss(model, forget, forget.anchors, generator)
        else:
            forgetting = denoising_loss(model, forget, generator)
        if not self.keep:
            return forgetting
        return forgetting + self.keep * denoising_loss(model, replace(forget, prompts=forget.anchors), generator)
