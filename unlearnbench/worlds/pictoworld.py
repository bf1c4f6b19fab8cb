"""Pictoworld: one subject a scene, read by an attribute classifier."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from unlearnbench.pictoworld.captions import complete, parse
from unlearnbench.pictoworld.classifier import ORACLES, WEIGHTS, StagedNetwork, load_classifier
from unlearnbench.pictoworld.render import ATTRIBUTES, render
from unlearnbench.pictoworld.scenes import CONCEPTS
from unlearnbench.worlds.base import World


class Pictoworld(World):
    """See `World`; the answers are the place of each attribute's likeliest value in `ATTRIBUTES`, (n, attributes)."""

    name = "pictoworld"
    title = "Pictoworld"
    judge = "classifier"
    clip = "clip-pictoworld"
    weights = WEIGHTS
    oracles = ORACLES
    work = "outputs/world"
    training = "unlearnbench world train"
    concepts = tuple(CONCEPTS)
    attributes = tuple(ATTRIBUTES)

    def network(self) -> StagedNetwork:
        """See `World.network`."""
        return load_classifier()

    def answers(self, network: StagedNetwork, images: Tensor) -> Tensor:
        """See `World.answers`."""
        logits = network(images)
        return torch.stack([logits[name].argmax(1) for name in ATTRIBUTES], dim=1)

    def correct(self, prompts: Sequence[str], answers: Tensor) -> list[dict[str, bool]]:
        """See `World.correct`."""
        return [
            {name: reading[name] == value for name, value in parse(prompt).items()}
            for prompt, reading in zip(prompts, named_attributes(answers), strict=True)
        ]

    def subject(self, prompt: str) -> str:
        """See `World.subject`."""
        return parse(prompt).get("subject", "")

    def render(self, prompt: str, rng: np.random.Generator) -> np.ndarray:
        """See `World.render`."""
        return render(complete(prompt, rng), rng)


def named_attributes(answers: Tensor) -> list[dict[str, str]]:
    """The value of every attribute of each image, from the world's answers."""
    return [{name: values[i] for (name, values), i in zip(ATTRIBUTES.items(), row, strict=True)} for row in answers.tolist()]


WORLD = Pictoworld()
