"""The retrained oracle: what forgetting would be if the concept had never been seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from unlearnbench.algos.none import NoTraining
from unlearnbench.algos.training import Training, Unlearned
from unlearnbench.models.base import TextToImage
from unlearnbench.models.checkpoint_headers import incompatible_weights
from unlearnbench.models.weights import load_weights
from unlearnbench.pictoworld.classifier import ORACLES


@dataclass
class Oracle(NoTraining):
    """Takes the weights of a Pictoworld trained from nothing without the concept's scenes, by the same recipe.

    It is the reference for forgetting, accuracy, FID and CLIPScore. In integrity it is no upper bound: a model trained
    anew paints other pictures for the same seed, and a good method lies above it.

    Attributes:
        weights: the name of a concept whose oracle comes with Pictoworld, or a file that
            `unlearnbench world train --without <concept>` writes.
    """

    weights: str = "???"
    lasting: ClassVar[bool] = False

    def file(self) -> Path:
        """Where they are, or should be."""
        shipped = ORACLES / f"{self.weights}.safetensors"
        return shipped if shipped.is_file() else Path(self.weights)

    def unavailable_reason(self, model: TextToImage) -> str | None:
        """See `Unlearner.unavailable_reason`."""
        from unlearnbench.pictoworld.scenes import CONCEPTS

        path = self.file()
        if path.is_file():
            return incompatible_weights(path, model)
        name = path.stem
        repair = f"`unlearnbench world train` makes those of {', '.join(CONCEPTS)} alone, or of several of them"
        if CONCEPTS.keys() >= {*name.split("+")}:
            repair = (
                f"make it by `unlearnbench world train --without {name}` (minutes on a GPU, hours on two cores), and set "
                f"algo.weights=outputs/world/weights/oracles/{name}.safetensors"
            )
        return f"algo.weights={self.weights}: no such file, and no oracle that comes with Pictoworld; {repair}"

    def update(self, training: Training) -> Unlearned:
        """Loads the weights; the whole UNet and text encoder are new."""
        guidance = load_weights(training.model, self.file())
        names = [name for name, _ in training.model.named_parameters() if not name.startswith("vae.")]
        return Unlearned(names, guidance)
