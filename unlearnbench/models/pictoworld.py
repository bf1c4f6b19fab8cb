"""Pictoworld's model, by the name that stored runs have."""

from __future__ import annotations

from dataclasses import dataclass

from unlearnbench.models.embedded import EmbeddedModel


@dataclass
class Pictoworld(EmbeddedModel):
    """The pipeline in `unlearnbench/pictoworld/weights/pipeline` (path "pictoworld"), or another one by its folder."""
