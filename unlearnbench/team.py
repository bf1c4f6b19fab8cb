"""Several processes for one run, one a GPU: each paints its share of the batches; all else is the first one's work."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from unlearnbench.sampling import Batch, draw

if TYPE_CHECKING:
    from unlearnbench.models.base import TextToImage
    from unlearnbench.models.steering import Steering


class Changed(NamedTuple):
    """How the model differs from its checkpoint by now: a file of weights, and what steers its sampling."""

    weights: Path
    steering: Steering | None


def asked() -> bool:
    """Was this process started together with others?"""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def own_gpu(device: torch.device) -> torch.device:
    """The device, or this process's own GPU where it has company and a GPU is meant."""
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if device.type == "cuda" and asked() else device


class Team:
    """The processes that `torchrun` or `accelerate launch` started together.

    The first leads: it does the run. The others follow: they load the same model and paint the batches that they are handed.
    Each batch is one that a single process would paint, so that images do not depend on the number of processes. What
    goes between them are prompts, seeds, pixels and where the weights are, by gloo, on the CPU.
    """

    def __init__(self, model: TextToImage) -> None:
        """Meet the others; the leader's model then paints with their help."""
        dist.init_process_group("gloo", timeout=timedelta(days=365))
        self.rank, self.size, self.model = dist.get_rank(), dist.get_world_size(), model
        if self.rank == 0:
            model.team = self

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *error: object) -> None:
        """Let the followers go."""
        self.model.team = None
        self._tell(None)
        dist.destroy_process_group()

    def paint(self, batches: Sequence[Batch]) -> Iterator[Tensor]:
        """The images of every batch, in order, as many batches at a time as there are processes."""
        for start in range(0, len(batches), self.size):
            now = list(batches[start : start + self.size])
            self._tell(now)
            yield from self._paint(now)

    def change(self, weights: Path) -> None:
        """Tell the followers what has become of the model."""
        self._tell(Changed(weights.resolve(), self.model.steering))

    def follow(self, device: torch.device) -> None:
        """Load the model once it is needed, and paint what the leader hands out, until it lets go."""
        while (word := self._tell(None)) is not None:
            if self.model.scheduler is None:
                self.model.load(device)
            if isinstance(word, Changed):
                self.model.load_weights(word.weights)
                self.model.steering = word.steering
            else:
                self._paint(word)
        dist.destroy_process_group()

    def _paint(self, batches: Sequence[Batch]) -> list[Tensor]:
        mine = draw(self.model, *batches[self.rank]) if self.rank < len(batches) else None
        found: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(mine, found)
        return (found or [])[: len(batches)]

    def _tell(self, word: Any) -> Any:
        """The leader's word, which all hear."""
        box = [word]
        dist.broadcast_object_list(box)
        return box[0]
