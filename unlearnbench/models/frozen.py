"""The original model beside the one that trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from unlearnbench.models.base import DTYPES, TextToImage

if TYPE_CHECKING:
    pass


class Frozen:
    """The original model, seen through the modules of the one that trains: only what trains is held twice.

    Use it as a context, or through the methods that open it themselves; no gradient flows.
    """

    def __init__(self, model: TextToImage, trained: dict[str, nn.Parameter]) -> None:
        self._model = model
        self._trained = trained
        self._original = {name: _copy(value.detach(), DTYPES[model.dtype]) for name, value in trained.items()}

    @contextmanager
    def __call__(self) -> Iterator[TextToImage]:
        """Within the block the model's parameters are the original's."""
        current = {name: value.data for name, value in self._trained.items()}
        try:
            for name, value in self._trained.items():
                value.data = self._original[name]
            with torch.no_grad():
                yield self._model
        finally:
            for name, value in self._trained.items():
                value.data = current[name]

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The original values of what trains."""
        return self._original

    def predict(self, noisy: Tensor, times: Tensor, prompts: Sequence[str]) -> Tensor:
        """The original's prediction for these prompts."""
        with self() as original:
            return original.predict(noisy, times, original.encode_prompts(prompts))


def _copy(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy in half precision where that loses nothing, as with weights that were loaded so; else as it is."""
    half = value.to(dtype, copy=True)
    return half if torch.equal(half.to(value.dtype), value) else value.clone()
