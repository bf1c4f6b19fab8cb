"""Concept ablation: map the concept's prompts to the anchor."""

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
    """On images of the anchor, train the concept's prompt to predict what the anchor's prompt predicts.

    Model form: L = |eps(x_t, c_f) - sg eps(x_t, c_a)|^2 + keep L_diff(x, c_a). x is an image that the original generates for
    the anchor c_a, and sg stops the gradient of the model in training. Noise form: L_diff(x, c_f) + keep L_diff(x, c_a).
    Kumari et al. 2023 (arXiv 2303.13516).

    Ours differs: an anchor prompt is the forget prompt with the concept's words replaced, and there is one image for each
    forget example (theirs: 200 to 1000 images of prompts from a language model). Left out are the authors' augmentation,
    AdamW's weight decay, and the stopped gradient at the first token's key and value.

    The defaults are the authors' for styles and objects. For nudity their command is
    `algo.train='attn[12].to_(q|k|v|out)' algo.lr=6.4e-5 algo.steps=400 algo.keep=1`, on two GPUs.

    Attributes:
        form: "model" or "noise".
        keep: weight of the denoising loss on the anchor. The authors' commands use 1 for Grumpy Cat, memorized images and
            unsafe content (0.2 in their older code), and 0 otherwise.
    """

    form: str = "model"
    keep: float = 0.0
    needs_images: ClassVar[bool] = False
    needs_anchors: ClassVar[bool] = True
    needs_anchor_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "form", "model", "noise")

    @property
    def passes_with_gradient(self) -> int:
        """See `Unlearner.passes_with_gradient`."""
        return 2 if self.keep else 1

    def begin(self, training: Training) -> None:
        """Pair the forget prompts with the images of their anchors."""
        training.forget = replace(training.forget, latents=training.forget.anchor_latents)

    def loss(self, model: TextToImage, frozen: Frozen, forget: Batch, retain: Batch, generator: torch.Generator) -> Tensor:
        """The distance to the anchor's prediction (model form) or to the noise (noise form), under the concept's prompt."""
        if self.form == "model":
            forget_loss = relabelling_loss(model, forget, forget.anchors, generator)
        else:
            forget_loss = denoising_loss(model, forget, generator)
        if not self.keep:
            return forget_loss
        return forget_loss + self.keep * denoising_loss(model, replace(forget, prompts=forget.anchors), generator)
