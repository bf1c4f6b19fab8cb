"""Low-rank training as part of a method: adapters of the method's own rank, merged at the end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from unlearnbench.algos.base import Unlearner
from unlearnbench.config.errors import UserError
from unlearnbench.config.ranges import at_least
from unlearnbench.models.adapters.lora import install_lora
from unlearnbench.models.base import TextToImage
from unlearnbench.models.parameters import select_parameters


@dataclass
class LowRank(Unlearner):
    """A method that can train adapters: `train` then selects the linear and convolution weights that get one.

    `unlearn` returns the names of the weights into which the adapters were merged, so the saved file loads like any other.

    Attributes:
        rank: rank of the adapters; 0 trains the weights themselves.
    """

    rank: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "rank")

    @property
    def trains_adapters(self) -> bool:
        """See `Unlearner.trains_adapters`."""
        return self.rank > 0 or super().trains_adapters

    @property
    def no_lora_reason(self) -> str:
        """See `Unlearner.no_lora_reason`."""
        return "algo.rank is the rank of this method's adapters; set it, and algo.train to their layers" if self.rank > 0 else ""

    def trainable(self, model: TextToImage, generator: torch.Generator) -> dict[str, nn.Parameter]:
        """New adapters, or with rank 0 what `train` selects."""
        if self.rank == 0:
            return super().trainable(model, generator)
        adapters = self.add_adapters(model, generator)
        if not adapters:
            raise UserError(f"algo.train={self.train}: selects no weight of a linear or convolution layer to adapt")
        return adapters

    def add_adapters(self, model: TextToImage, generator: torch.Generator) -> dict[str, nn.Parameter]:
        """Install new adapters on the layers that `train` selects; returns their parameters by name."""
        return install_lora(model, select_parameters(model, self.train), self.rank, generator)
