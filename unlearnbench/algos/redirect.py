"""Redirect the concept's words to its anchor's, in the text encoder alone and without an image: ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unlearnbench.algos.examples import Batch, Examples
from unlearnbench.algos.preconditioned import Preconditioned
from unlearnbench.config.ranges import at_least
from unlearnbench.data.concept import Concept
from unlearnbench.models.base import Conditioning, TextToImage
from unlearnbench.models.frozen import Frozen
from unlearnbench.models.tokens import aligned_positions


@dataclass
class Redirect(Preconditioned):
    """The text encoder says of a forget prompt what the original says of its anchor, and of all else what it said.

    L = d(E(c_f), E_0(c_a)) + keep d(E(c_r), E_0(c_r)), with d the mean squared distance of all that the denoiser is told, in
    units of the mean square of the second, token by token: each with that which stands in its place if the anchor has more
    words or fewer. c_r are retain prompts and as many of the `others` of `Whitening`. The denoiser computes nothing. Ours;
    the first term is the redirection of Safe-CLIP (Poppi et al. 2023, arXiv 2311.16254), which has cosine and
    contrastive losses, images, and no whitening.

    Attributes:
        keep: the weight of the retain term.
    """

    keep: float = 1.0
    train: str = "text_encoder"
    needs_images: ClassVar[bool] = False
    needs_anchors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "keep")
        if not self.in_encoders():
            raise ValueError(f"train: {self.train!r}; this method trains text encoders alone, so try text_encoder")

    def begin(
        self, model: TextToImage, frozen: Frozen, forget: Examples, retain: Examples, concept: Concept, generator: torch.Generator
    ) -> None:
        """Keeps the `others` for the loss, too."""
        self.drawn_from = self.hold(model, retain, concept, generator)

    def state(self) -> dict[str, Tensor]:
        """Nothing moves from step to step."""
        return {}

    def loss(self, model: TextToImage, frozen: Frozen, forget: Batch, retain: Batch, generator: torch.Generator) -> Tensor:
        """The redirection and what it is weighed against."""
        count, kept = len(forget.prompts), list(retain.prompts)
        if self.drawn_from:
            kept += [self.drawn_from[i] for i in torch.randint(len(self.drawn_from), (len(kept),), generator=generator).tolist()]
        with frozen() as original:
            taught = original.encode(forget.anchors + kept)
            states = taught["states"]
            states[:count] = states[:count].take_along_dim(
                aligned_positions(model, forget.prompts, forget.anchors)[..., None], dim=1
            )
        told = model.encode(forget.prompts + kept)
        return apart(told, taught, slice(count)) + self.keep * apart(told, taught, slice(count, None))


def apart(told: Conditioning, taught: Conditioning, which: slice) -> Tensor:
    """The sum over tensors that train of mean (told - taught)^2 / mean taught^2, of some of the prompts."""
    trained = [key for key, value in told.items() if value.requires_grad]
    pairs = [(told[key][which].float(), taught[key][which].float()) for key in trained]
    return torch.stack([F.mse_loss(a, b) / b.square().mean() for a, b in pairs]).sum()
