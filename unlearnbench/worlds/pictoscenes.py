"""Pictoscenes: one to three subjects a scene, read by a detector."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from unlearnbench.pictoscenes.detector import ORACLES, WEIGHTS, decode, load_detector, packed, unpacked
from unlearnbench.pictoscenes.prompts import ATTRIBUTES, complete, correct, parse
from unlearnbench.pictoscenes.render import render
from unlearnbench.pictoscenes.scenes import CONCEPTS
from unlearnbench.pictoworld.classifier import StagedNetwork
from unlearnbench.worlds.base import World


class Pictoscenes(World):
    """See `World`; the answers are those of the detector, packed into a row an image."""

    name = "pictoscenes"
    title = "Pictoscenes"
    judge = "detector"
    clip = "clip-pictoscenes"
    weights = WEIGHTS
    oracles = ORACLES
    work = "outputs/pictoscenes"
    training = "unlearnbench world train --world pictoscenes"
    concepts = tuple(CONCEPTS)
    attributes = ATTRIBUTES

    def network(self) -> StagedNetwork:
        """See `World.network`."""
        return load_detector()

    def answers(self, network: StagedNetwork, images: Tensor) -> Tensor:
        """See `World.answers`."""
        return packed(decode(network(images)))

    def correct(self, prompts: Sequence[str], answers: Tensor) -> list[dict[str, bool]]:
        """See `World.correct`."""
        return [correct(parse(prompt), *shown) for prompt, shown in zip(prompts, unpacked(answers), strict=True)]

    def subject(self, prompt: str) -> str:
        """See `World.subject`."""
        return next((obj["subject"] for obj in parse(prompt).objects), "")

    def render(self, prompt: str, rng: np.random.Generator) -> np.ndarray:
        """See `World.render`."""
        return render(complete(prompt, rng), rng)[0]


WORLD = Pictoscenes()
