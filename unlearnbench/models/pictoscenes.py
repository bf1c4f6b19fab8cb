"""Pictoscenes' model."""

from __future__ import annotations

from dataclasses import dataclass

from unlearnbench.models.embedded import EmbeddedModel


@dataclass
class Pictoscenes(EmbeddedModel):
    """The pipeline in `unlearnbench/pictoscenes/weights/pipeline` (path "pictoscenes"), or another one by its folder."""
