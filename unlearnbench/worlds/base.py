"""The description of an embedded world."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from unlearnbench.pictoworld.classifier import StagedNetwork

PICTOWORLD = Path(__file__).parents[1] / "pictoworld"
RENDERING = ("captions.py", "pictograms.py", "render.py", "scenes.py")


class World(ABC):
    """A world whose images are rendered, whose prompts follow a grammar, and which has a network that reads its images.

    Attributes:
        name: its domain, and the path of its model.
        title: its name in messages.
        judge: the name of its network, also as a backbone; the weights are `<judge>.safetensors`.
        clip: the name of its CLIP as a backbone; the weights are the folder `clip`.
        weights: the folder of its network, of its CLIP and of its model (`pipeline`).
        oracles: the folder of models retrained without a concept, or several; the name of a file joins theirs by +.
        work: the folder in which its training keeps scenes and checkpoints by default.
        training: the command that trains its model.
        concepts: what a model can be retrained without, by that command.
        attributes: what a prompt can name, as `correct` has it.
    """

    name: str
    title: str
    judge: str
    clip: str
    weights: Path
    oracles: Path
    work: str
    training: str
    concepts: tuple[str, ...]
    attributes: tuple[str, ...]

    def oracle(self, concepts: str) -> Path | None:
        """The weights of an included model that was retrained without these concepts, and the fewest others; None if none was.

        Args:
            concepts: the name of one, or several as in church+nudity.
        """
        left_out = {path: {*path.stem.split("+")} for path in sorted(self.oracles.glob("*.safetensors"))}
        fitting = [path for path, names in left_out.items() if names >= {*concepts.split("+")}]
        return min(fitting, key=lambda path: len(left_out[path]), default=None)

    @abstractmethod
    def network(self) -> StagedNetwork:
        """The network that reads images, in eval mode."""

    @abstractmethod
    def answers(self, network: StagedNetwork, images: Tensor) -> Tensor:
        """What the network reads, as numbers, (n, ...), for the cache.

        Args:
            network: see `network`.
            images: float (n, 3, 64, 64), in [-1, 1].
        """

    @abstractmethod
    def correct(self, prompts: Sequence[str], answers: Tensor) -> list[dict[str, bool]]:
        """For each image and each attribute that its prompt names, whether the network read that value.

        Args:
            prompts: that of each image.
            answers: see `answers`.
        """

    @abstractmethod
    def subject(self, prompt: str) -> str:
        """The first subject that a prompt names; "" if it names none."""

    def rendering_version(self) -> str:
        """The hash of the code by which `render` draws; the worlds share Pictoworld's."""
        folders = dict.fromkeys([PICTOWORLD, self.weights.parent])
        files = [folder / name for folder in folders for name in RENDERING if (folder / name).is_file()]
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()

    @abstractmethod
    def render(self, prompt: str, rng: np.random.Generator) -> np.ndarray:
        """A scene that the prompt describes, uint8 (64, 64, 3); what it does not name is drawn at random."""
