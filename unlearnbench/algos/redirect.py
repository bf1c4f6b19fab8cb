"""Redirect the concept's words to the anchor's in the text encoder, without images: our method."""

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
    """Retain prompts with one word replaced at random."""

    others: list[str] = field(metadata=NOT_SAVED)


@dataclass
class Redirect(Preconditioned):
    """Train the text encoder to encode a forget prompt as the original encodes its anchor, and other prompts as before.

    L = d(E(c_f), E_0(c_a)) + keep d(E(c_r), E_0(c_r)). d is the mean squared distance of a conditioning tensor, token by token,
    divided by the mean square of the second over all tokens; of several trained tensors it is the sum. Where the anchor has
    another number of words, each token is compared with the aligned token of the anchor. c_r are retain prompts and an equal
    number of the `others` of `Preconditioned`. The denoiser computes nothing. Ours; the first term is the redirection of
    Safe-CLIP (Poppi et al. 2023, arXiv 2311.16254), which has cosine and contrastive losses, images, and no preconditioning.

    Attributes:
        keep: weight of the retain term.
    """

    keep: float = 1.0
    train: str = "text_encoder"
    needs_images: ClassVar[bool] = False
    needs_anchors: ClassVar[bool] = True
    passes_with_gradient: ClassVar[int] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "keep")
        if not self.trains_text_encoders():
            raise ValueError(f"train: {self.train!r}; this method trains only text encoders, so try text_encoder")

    def begin(self, training: Training) -> RedirectState:
        """Compute the preconditioners, and store the `others` for the loss."""
        return RedirectState(self.precondition_layers(training))

    def step_loss(self, training: Training, step: Step) -> Tensor:
        """The redirection loss plus the weighted retain loss."""
        model, others, (forget, retain, generator) = training.model, training.state.others, step
        count, retained = len(forget.prompts), list(retain.prompts)
        if others:
            retained += [others[i] for i in torch.randint(len(others), (len(retained),), generator=generator).tolist()]
        with training.original() as original:
            target = original.encode_prompts(forget.anchors + retained)
            positions = aligned_positions(model, forget.prompts, forget.anchors)[..., None]
            target["prompt_embeds"][:count] = target["prompt_embeds"][:count].take_along_dim(positions, dim=1)
        prediction = model.encode_prompts(forget.prompts + retained)
        forget_loss = relative_distance(prediction, target, slice(count))
        return forget_loss + self.keep * relative_distance(prediction, target, slice(count, None))


def relative_distance(prediction: Conditioning, target: Conditioning, rows: slice) -> Tensor:
    """mean (prediction - target)^2 / mean target^2 over some prompts, summed over the tensors that have a gradient."""
    trained = [key for key, value in prediction.items() if value.requires_grad]
    pairs = [(prediction[key][rows].float(), target[key][rows].float()) for key in trained]
    return torch.stack([F.mse_loss(a, b) / b.square().mean() for a, b in pairs]).sum()
