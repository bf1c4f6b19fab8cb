"""Steering: what changes how a model samples, and none of its weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from unlearnbench.models.base import Text, TextToImage

Predictor = Callable[[int, Tensor, Tensor], Tensor]


class Steering(ABC):
    """A change of sampling; where `model.steering` is one, the model's `encode` and `denoise` consult it."""

    def encoded(self, model: TextToImage, prompts: Sequence[str], text: Text) -> Text:
        """What the denoiser is told of the prompts, from what the text encoder said of them; by default just that."""
        return text

    def saved(self) -> dict[str, Any]:
        """What a file of weights says of it, so that it returns with them; by default nothing."""
        return {}

    @abstractmethod
    def start(self, model: TextToImage, text: Text, empty: Text, steps: int, guidance: float) -> Predictor:
        """Begin to sample one batch.

        Args:
            model: the model that samples.
            text: what it is told of the batch's prompts.
            empty: what it is told of the empty prompt, one row.
            steps: sampling steps.
            guidance: the classifier-free guidance scale; 1 or less switches it off.

        Returns:
            A function of the step's number, the scaled latents (n, c, h, w) and the time: the guided prediction.
        """


def stacked(*texts: Text) -> Text:
    """Texts one after another as one batch; a text of one row is repeated to the length of the longest.

    Examples:
        >>> stacked({"states": torch.zeros(1, 2, 3)}, {"states": torch.ones(4, 2, 3)})["states"].shape
        torch.Size([8, 2, 3])
    """
    count = max(len(value) for text in texts for value in text.values())
    return {key: torch.cat([text[key].expand(count, *text[key].shape[1:]) for text in texts]) for key in texts[0]}
