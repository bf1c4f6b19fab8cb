"""The embedded model: a StableDiffusionPipeline whose folder is in the package."""

from __future__ import annotations

from dataclasses import dataclass, replace

from unlearnbench.models.checkpoint_files import CheckpointFiles
from unlearnbench.models.sd import StableDiffusion
from unlearnbench.pictoworld.classifier import WEIGHTS


@dataclass
class Pictoworld(StableDiffusion):
    """The pipeline in `unlearnbench/pictoworld/weights/pipeline` (path "pictoworld"), or another one by its folder."""

    @property
    def files(self) -> CheckpointFiles:
        """The files of the packaged folder if the path is "pictoworld", else those of the path."""
        return replace(super().files, packaged_folder=WEIGHTS / "pipeline" if self.path == "pictoworld" else None)
