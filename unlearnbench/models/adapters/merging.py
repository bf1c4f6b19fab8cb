"""Adapters merged into the weights of their layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unlearnbench.models.adapters.lora import merge_lora
from unlearnbench.models.adapters.preconditioned import merge_deltas

if TYPE_CHECKING:
    from unlearnbench.models.base import TextToImage


def merge_adapters(model: TextToImage) -> list[str]:
    """Merge all LoRAs and preconditioned deltas into the weights, in fp32, and remove them.

    Returns the names of the weights; gated and bottleneck adapters stay.
    """
    return [*merge_lora(model), *merge_deltas(model)]
