"""Whitened training as part of a method: a step moves least what the retain prompts use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.training import Training
from unlearnbench.config.ranges import at_least
from unlearnbench.models.adapters.lora import install_adapters
from unlearnbench.models.adapters.preconditioned import PreconditionedDelta, precondition
from unlearnbench.models.attention_maps import text_only_weights
from unlearnbench.models.base import TextToImage
from unlearnbench.models.vocabulary import replace_random_words


@dataclass
class Preconditioned(Unlearner):
    """A method that may train weights of layers that read the text alone whitened by what they read of what is kept.

    Attributes:
        whiten: train U in W + U (C + whiten I)^-1/2 instead of W, where W are weights of layers that read the text alone
            (key and value weights of cross-attention, or linear layers of a text encoder) and C the second moment, of mean
            eigenvalue 1, of what they read of the retain prompts. A step then moves most what W does with directions that
            the retain prompts hardly take, and least what it does with theirs; 0 trains W. (UCE and AlphaEdit,
            arXiv 2410.02355, hold the same directions in closed form.)
        others: so many retain prompts, each with one word exchanged at random for another of the vocabulary that is none of
            the concept's, count in C too, so that words are held that no retain prompt says; no image of them is needed.
    """

    whiten: float = 0.0
    others: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "whiten", "others")

    def requires(self) -> frozenset[str]:
        """See `Unlearner.requires`."""
        return super().requires() | ({"xattn"} if self.whiten > 0 and not self.in_encoders() else set())

    def in_encoders(self) -> bool:
        """Whether `train` selects of text encoders alone."""
        return self.train.startswith(("text_encoder", "^text_encoder"))

    def trainable(self, model: TextToImage, generator: torch.Generator) -> dict[str, nn.Parameter]:
        """Adapters of `whiten`, or what `train` says."""
        if self.whiten == 0:
            return super().trainable(model, generator)
        return install_adapters(model, text_only_weights(model, self.train), PreconditionedDelta)

    def begin(self, training: Training) -> Any:
        """Measures what is read of the retain prompts."""
        self.precondition_by(training)
        return None

    def precondition_by(self, training: Training) -> list[str]:
        """Whitens by the retain prompts and the `others`; returns the latter."""
        model, concept, generator = training.model, training.concept, training.generator
        told = list(dict.fromkeys(training.retain.prompts))
        drawn = replace_random_words(model, told, self.others, concept.name_phrases(), generator) if self.others else []
        others = [prompt for prompt in drawn if not concept.is_named_in(prompt)]
        if self.whiten > 0:
            precondition(model, told + others, self.whiten)
        return others
