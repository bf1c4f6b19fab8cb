"""The model of an embedded world: a StableDiffusionPipeline whose folder is in the package."""

from __future__ import annotations

from dataclasses import dataclass, replace

from unlearnbench.models.checkpoint_files import CheckpointFiles
from unlearnbench.models.checkpoint_parts import INDEX
from unlearnbench.models.sd import StableDiffusion
from unlearnbench.worlds import embedded_world


@dataclass
class EmbeddedModel(StableDiffusion):
    """The pipeline of a world in the package, if the path is the world's name, or another pipeline by its folder."""

    @property
    def files(self) -> CheckpointFiles:
        """The files of the packaged folder if the path is the name of a world, else those of the path."""
        world = embedded_world(self.path)
        return replace(super().files, packaged_folder=None if world is None else world.weights / "pipeline")

    def unavailable_reason(self) -> str | None:
        """See `TextToImage.unavailable_reason`; the weights of a world may not be in the package."""
        world = embedded_world(self.path)
        if world is not None and not (world.weights / "pipeline" / INDEX).is_file():
            return (
                f"model.path={self.path}: the weights of {world.title} are not in this package; train them by "
                f"`{world.training}`, and set model.path to the folder pipeline that it writes"
            )
        return super().unavailable_reason()
