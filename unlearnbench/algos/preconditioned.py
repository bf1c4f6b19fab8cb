"""Preconditioned training as part of a method: a step changes least what the retain prompts use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.training import Training
from unlearnbench.config.ranges import at_least
from unlearnbench.models.adapters.preconditioned import install_deltas, precondition
from unlearnbench.models.attention_maps import text_only_weights
from unlearnbench.models.base import TextToImage
from unlearnbench.models.vocabulary import replace_random_words


@dataclass
class Preconditioned(Unlearner):
    """A method that can precondition its steps on text-only layers by the covariance of the retained text states.

    Attributes:
        whiten: train U in W + U (C + whiten I)^-1/2 instead of W; 0 trains W. W are weights of layers that read the text
            alone: key and value weights of cross-attention, or linear layers of a text encoder. C is the second moment of
            their inputs over the retain prompts, scaled to mean eigenvalue 1. A step then moves W most along input
            directions that the retain prompts hardly use. (UCE and AlphaEdit, arXiv 2410.02355, preserve the same
            directions in closed form.)
        others: the number of further prompts in C: retain prompts with one word replaced by a random word of the vocabulary,
            but not by one of the concept's. They preserve words that no retain prompt contains, and need no images.
    """

    whiten: float = 0.0
    others: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "whiten", "others")

    def requires(self) -> frozenset[str]:
        """See `Unlearner.requires`."""
        return super().requires() | ({"xattn"} if self.whiten > 0 and not self.trains_text_encoders() else set())

    def trains_text_encoders(self) -> bool:
        """Whether `train` selects text encoders only."""
        return self.train.startswith(("text_encoder", "^text_encoder"))

    @property
    def trains_adapters(self) -> bool:
        """See `Unlearner.trains_adapters`."""
        return self.whiten > 0 or super().trains_adapters

    @property
    def no_lora_reason(self) -> str:
        """See `Unlearner.no_lora_reason`."""
        return "preconditioned adapters train; set algo.whiten=0 for others" if self.whiten > 0 else ""

    @property
    def preconditioned(self) -> str:
        """See `Unlearner.preconditioned`."""
        return self.train if self.whiten > 0 else ""

    def trainable(self, model: TextToImage, generator: torch.Generator) -> dict[str, nn.Parameter]:
        """The preconditioned adapters, or without `whiten` what `train` selects."""
        if self.whiten == 0:
            return super().trainable(model, generator)
        return install_deltas(model, text_only_weights(model, self.train))

    def begin(self, training: Training) -> Any:
        """Compute the preconditioners from the retain prompts."""
        self.precondition_layers(training)
        return None

    def precondition_layers(self, training: Training) -> list[str]:
        """Precondition by the retain prompts and the prompts of `others`; returns the latter."""
        model, concept, generator = training.model, training.concept, training.generator
        prompts = list(dict.fromkeys(training.retain.prompts))
        others: list[str] = []
        if self.others:
            others = replace_random_words(model, prompts, self.others, concept.name_phrases(), generator)
        others = [prompt for prompt in others if not concept.is_named_in(prompt)]
        if self.whiten > 0:
            precondition(model, prompts + others, self.whiten)
        return others
