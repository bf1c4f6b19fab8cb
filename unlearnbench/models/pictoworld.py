"""The embedded model: a StableDiffusionPipeline whose folder lies in the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unlearnbench.models.sd import StableDiffusion
from unlearnbench.pictoworld.classifier import WEIGHTS


@dataclass
class Pictoworld(StableDiffusion):
    """The pipeline in `unlearnbench/pictoworld/weights/pipeline`, or another one of the world by its folder."""

    def folder(self) -> Path | None:
        """The shipped folder, unless the path names another."""
        return WEIGHTS / "pipeline" if self.path == "pictoworld" else super().folder()
