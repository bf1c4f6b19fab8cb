"""The retrained oracle: the reference for forgetting, a model that never trained on the concept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from unlearnbench.algos.none import NoTraining
from unlearnbench.algos.training import Training, Unlearned
from unlearnbench.models.base import TextToImage
from unlearnbench.models.checkpoint_headers import incompatible_weights
from unlearnbench.models.weights import load_weights
from unlearnbench.worlds import World, embedded_world


@dataclass
class Oracle(NoTraining):
    """Load the weights of an embedded world's model trained from scratch without the concept's scenes, by the same recipe.

    It is the reference for forgetting, accuracy, FID and CLIPScore. It is no upper bound for integrity: a retrained model
    generates other images for the same seed, and a good method lies above it.

    Attributes:
        weights: the name of a concept whose oracle the model's world includes (`World.oracle`), or a file, such as one that
            `unlearnbench world train --without <concept>` writes.
    """

    weights: str = "???"
    cost_note: ClassVar[str] = "not trained here"
    supports_sequential: ClassVar[bool] = False

    def file(self, domain: str) -> Path:
        """The path of the weights for a model of this domain; the file may be absent."""
        return oracle_world(domain).oracle(self.weights) or Path(self.weights)

    def unavailable_reason(self, model: TextToImage) -> str | None:
        """See `Unlearner.unavailable_reason`."""
        world, path = oracle_world(model.domain), self.file(model.domain)
        if path.is_file():
            return incompatible_weights(path, model)
        name, repair = path.stem, f"`{world.training}` trains oracles without one or several of {', '.join(world.concepts)}"
        if {*world.concepts} >= {*name.split("+")}:
            repair = (
                f"train it with `{world.training} --without {name}` (minutes on a GPU, hours on two cores), and set "
                f"algo.weights={world.work}/weights/oracles/{name}.safetensors"
            )
        return f"algo.weights={self.weights}: no such file, and {world.title} includes no such oracle; {repair}"

    def update(self, training: Training) -> Unlearned:
        """Load the weights; the whole UNet and text encoder are new."""
        guidance = load_weights(training.model, self.file(training.model.domain))
        names = [name for name, _ in training.model.named_parameters() if not name.startswith("vae.")]
        return Unlearned(names, guidance)


def oracle_world(domain: str) -> World:
    """The world whose oracles fit a model of this domain; Pictoworld where there is none, whose weights are then refused."""
    world = embedded_world(domain) or embedded_world("pictoworld")
    assert world is not None
    return world
