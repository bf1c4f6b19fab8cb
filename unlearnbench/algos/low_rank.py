"""Low-rank training as part of a method: its own rank, of adapters that are merged at the end."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from unlearnbench.algos.base import Unlearner
from unlearnbench.config.errors import UserError
from unlearnbench.config.ranges import at_least
from unlearnbench.models.adapters.lora import LoRA, install_adapters
from unlearnbench.models.base import TextToImage
from unlearnbench.models.parameters import select_parameters


@dataclass
class LowRank(Unlearner):
    """A method that may train adapters: `train` then selects the linear and convolution weights that get one.

    The names that `unlearn` returns are those of the weights into which the adapters were merged, so that what is saved
    loads like any other weights.

    Attributes:
        rank: of the adapters; 0 trains the weights themselves.
    """

    rank: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "rank")

    def trainable(self, model: TextToImage, generator: torch.Generator) -> dict[str, nn.Parameter]:
        """The adapters, made here, or what `train` says."""
        if self.rank == 0:
            return super().trainable(model, generator)
        made = self.installed(model, generator)
        if not made:
            raise UserError(f"algo.train={self.train}: selects no weight of a linear or convolution layer to adapt")
        return made

    def installed(self, model: TextToImage, generator: torch.Generator) -> dict[str, nn.Parameter]:
        """New adapters on the layers that `train` selects."""
        return install_adapters(model, select_parameters(model, self.train), partial(LoRA, rank=self.rank, generator=generator))
