"""Redirect the concept's words to its anchor's, in the text encoder alone and without an image: ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unlearnbench.algos.preconditioned import Preconditioned
from unlearnbench.algos.state import NOT_SAVED
from unlearnbench.algos.training import Step, Training
from unlearnbench.config.ranges import at_least
from unlearnbench.models.base import Conditioning
from unlearnbench.models.tokens import aligned_positions


@dataclass
class RedirectState:
    """Retain prompts with one word exchanged at random."""

    others: list[str] = field(metadata=NOT_SAVED)


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

    def begin(self, training: Training) -> RedirectState:
        """Keeps the `others` for the loss, too."""
        return RedirectState(self.precondition_by(training))

    def step_loss(self, training: Training, step: Step) -> Tensor:
        """The redirection and what it is weighed against."""
        model, others, (forget, retain, generator) = training.model, training.state.others, step
        count, kept = len(forget.prompts), list(retain.prompts)
        if others:
            kept += [others[i] for i in torch.randint(len(others), (len(kept),), generator=generator).tolist()]
        with training.original() as original:
            taught = original.encode_prompts(forget.anchors + kept)
            states = taught["prompt_embeds"]
            states[:count] = states[:count].take_along_dim(
                aligned_positions(model, forget.prompts, forget.anchors)[..., None], dim=1
            )
        told = model.encode_prompts(forget.prompts + kept)
        return apart(told, taught, slice(count)) + self.keep * apart(told, taught, slice(count, None))


def apart(told: Conditioning, taught: Conditioning, which: slice) -> Tensor:
    """The sum over tensors that train of mean (told - taught)^2 / mean taught^2, of some of the prompts."""
    trained = [key for key, value in told.items() if value.requires_grad]
    pairs = [(told[key][which].float(), taught[key][which].float()) for key in trained]
    return torch.stack([F.mse_loss(a, b) / b.square().mean() for a, b in pairs]).sum()
