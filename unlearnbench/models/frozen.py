"""The original model during training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unlearnbench.models.base import DTYPES, TextToImage
from unlearnbench.models.parameters import replaced_values


class Frozen:
    """The original model, which shares all untrained parameters with the model that trains.

    Call it for a context in which the model is the original, or use its methods. No gradient flows.

    Args:
        model: the model that trains.
        trained: its trained parameters, by name; only these are copied.
    """

    def __init__(self, model: TextToImage, trained: dict[str, nn.Parameter]) -> None:
        self._model = model
        self._trained = trained
        self._original = {name: _copy(value.detach(), DTYPES[model.dtype]) for name, value in trained.items()}

    @contextmanager
    def __call__(self) -> Iterator[TextToImage]:
        """Within the block the model has the original parameters."""
        with replaced_values(self._trained, self._original), torch.no_grad():
            yield self._model

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The original values of the trained parameters."""
        return self._original

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, prompts: Sequence[str]) -> Tensor:
        """The original model's prediction (n, c, h, w) for these prompts."""
        with self() as original:
            return original.predict(noisy_latents, timesteps, original.encode_prompts(prompts))


def _copy(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy, in half precision if that is exact, as for weights that were loaded in half precision."""
    half = value.to(dtype, copy=True)
    return half if torch.equal(half.to(value.dtype), value) else value.clone()
