"""The retrained oracle: what forgetting would be if the concept had never been seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from unlearnbench.algos.base import Examples, Log
from unlearnbench.algos.none import Nothing
from unlearnbench.data import Concept
from unlearnbench.models.base import TextToImage
from unlearnbench.models.headers import misfit


@dataclass
class Oracle(Nothing):
    """Takes the weights of a Pictoworld trained from nothing without the concept's scenes, by the same recipe.

    It is the reference for forgetting, accuracy, FID and CLIPScore. In integrity it is no upper bound: a model trained
    anew paints other pictures for the same seed, and a good method lies above it.

    Attributes:
        weights: the file that `unlearnbench world train --without <concept>` writes.
    """

    weights: str = "???"
    lasting: ClassVar[bool] = False

    def missing(self, model: TextToImage) -> str | None:
        """See `Unlearner.missing`."""
        from unlearnbench.pictoworld.train import CONCEPTS

        path = Path(self.weights)
        if path.is_file():
            return misfit(path, model)
        if CONCEPTS.keys() >= {*path.stem.split("+")}:
            repair = f"make it by `unlearnbench world train --without {path.stem}` (minutes on a GPU, hours on two cores)"
        else:
            repair = f"`unlearnbench world train` makes those of {', '.join(CONCEPTS)} alone"
        return f"algo.weights={self.weights}: no such file; {repair}"

    def unlearn(
        self, model: TextToImage, forget: Examples, retain: Examples, concept: Concept, seed: int, log: Log
    ) -> Sequence[str]:
        """Loads the weights; the whole UNet and text encoder are new."""
        model.load_weights(Path(self.weights))
        return [name for name, _ in model.named_parameters() if not name.startswith("vae.")]
