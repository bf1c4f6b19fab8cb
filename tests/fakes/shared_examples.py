"""What the tests that compute by hand share: a concept, explicit randomness, and all examples as one batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from unlearnbench.algos.examples import Batch, Examples
from unlearnbench.algos.training import Training, TrainingContext
from unlearnbench.data.concept import Concept
from unlearnbench.models.frozen import Frozen

CHURCH = Concept("church", ["church"], "", {"church": "house"}, "church", {})


# An edit, trainings on prompts, on images and of the text encoder, adapters, states, guidance, and two controls.
KINDS = ("uce", "esd_x", "ga", "redirect", "spm", "receler", "sld", "word_swap", "none")


def by_kind(names: Iterable[Any], kinds: Sequence[Any] = KINDS) -> list[Any]:
    """Names as parameters of a test: one of each kind for `make test`, the others for `make thorough`."""
    return [name if name in kinds else pytest.param(name, marks=pytest.mark.thorough) for name in names]


def draws(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def whole(examples: Examples, count: int = 3) -> Batch:
    return Batch(examples.prompts[:count], examples.anchors[:count], examples.latents[:count], examples.anchor_latents[:count])


def tiny_examples(model):
    """Forget and retain examples with random latents."""
    made = []
    for prompts, seed in ((["a red church", "a large church on the left"], 1), (["a blue star", "a tree"], 2)):
        anchors = [prompt.replace("church", "house") for prompt in prompts]
        latents, others = (torch.randn(2, *model.latent_shape(), generator=draws(seed + i)) for i in (0, 10))
        made.append(Examples(prompts, anchors, latents, anchor_latents=others))
    return made


class LossLog(TrainingContext):
    """Appends the loss of each step to a list."""

    def __init__(self, losses: list[float]) -> None:
        self.losses = losses

    def log(self, step: int, loss: float) -> None:
        self.losses.append(loss)


class StepLog(TrainingContext):
    """Appends the number and the loss of each step to a list."""

    def __init__(self, steps: list[tuple[int, float]]) -> None:
        self.steps = steps

    def log(self, step: int, loss: float) -> None:
        self.steps.append((step, loss))


def begun(algo, model, forget, retain, concept=CHURCH, seed=3, parameters=None):
    """A training as it stands before its first step."""
    training = Training(model, forget, retain, concept, draws(seed))
    training.parameters = algo.trainable(model, training.generator) if parameters is None else parameters
    training.original = Frozen(model, training.parameters)
    training.state = algo.begin(training)
    return training


def unlearn(algo, model, examples, concept, seed=0, context=None, guidance=None):
    """Unlearn in place, with latents only where the algorithm says that it needs them."""
    needed = {"latents": algo.needs_images, "anchor_latents": algo.needs_anchor_images}
    forget, retain = (
        replace(side, **{name: getattr(side, name).to(model.device) if n else torch.empty(0) for name, n in needed.items()})
        for side in examples
    )
    return algo.unlearn(model, forget, retain, concept, seed, context or TrainingContext(), guidance)
