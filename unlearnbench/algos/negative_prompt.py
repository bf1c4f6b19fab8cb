"""A control: the concept as the negative prompt."""

from __future__ import annotations

from dataclasses import dataclass

from unlearnbench.algos.rewritten_prompts import PromptFilter
from unlearnbench.algos.training import Training, Unlearned
from unlearnbench.models.base import Conditioning, Predictor, SamplingGuidance, TextToImage


@dataclass
class NegativePrompt(PromptFilter):
    """Sample with the concept's bare phrase in place of the empty prompt of classifier-free guidance; no weight changes.

    The guided prediction is e_s + g (e_p - e_s), with e_p and e_s those for the prompt and the concept (diffusers'
    `negative_prompt`).
    """

    def requires(self) -> frozenset[str]:
        """See `Unlearner.requires`."""
        return frozenset({"cfg"})

    def update(self, training: Training) -> Unlearned:
        """Return the guidance with the negative prompt; changes no parameter."""
        return Unlearned([], NegativePromptGuidance(training.concept.guide))


@dataclass
class NegativePromptGuidance(SamplingGuidance):
    """Classifier-free guidance away from a prompt."""

    negative: str

    def start(self, model: TextToImage, cond: Conditioning, uncond: Conditioning, steps: int, scale: float) -> Predictor:
        """See `SamplingGuidance.start`."""
        return model.predictor(cond, model.encode_prompts([self.negative]), scale)
