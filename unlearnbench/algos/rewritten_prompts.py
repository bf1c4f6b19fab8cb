"""Sampling with another prompt than the user's: what a filter in front of the model does, with its weights as they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from unlearnbench.algos.none import NoTraining
from unlearnbench.models.base import Conditioning, Predictor, SamplingGuidance, TextToImage


@dataclass
class PromptFilter(NoTraining):
    """A control: only the prompt changes, and no weight; a method that equals it hides the concept's name and removes nothing."""

    supports_sequential: ClassVar[bool] = False
    saves_as_pipeline: ClassVar[bool] = False


@dataclass
class RewrittenPrompts(SamplingGuidance):
    """Encodes rewrite(prompt) in place of the prompt."""

    rewrite: Callable[[str], str]

    def conditioned(self, model: TextToImage, prompts: Sequence[str], cond: Conditioning) -> Conditioning:
        """The conditioning of the rewritten prompts."""
        return model.encode_prompts([self.rewrite(prompt) for prompt in prompts])

    def start(self, model: TextToImage, cond: Conditioning, uncond: Conditioning, steps: int, scale: float) -> Predictor:
        """See `SamplingGuidance.start`; plain sampling."""
        return model.predictor(cond, uncond, scale)
