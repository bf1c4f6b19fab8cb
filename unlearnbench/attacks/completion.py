"""Completion: the original begins an image of the concept, the unlearned model goes on."""

from __future__ import annotations

from dataclasses import dataclass

from unlearnbench.attacks.probe import Probe, ProbedBatch, switch
from unlearnbench.config.ranges import share
from unlearnbench.models.base import Predictor


@dataclass
class Completion(Probe):
    """The original denoises a prompt of the concept for the first steps, then the model with the empty prompt, or the same.

    After "When Are Concepts Erased From Diffusion Models?" (NeurIPS 2025, arXiv 2505.17013), whose steps are 5 and 10.

    Attributes:
        begun: the share of the sampling steps that the original takes.
        prompt: what the model goes on with: empty, or own (the same prompt).
    """

    begun: float = 0.2
    prompt: str = "empty"

    def __post_init__(self) -> None:
        super().__post_init__()
        share(self, "begun")
        if self.prompt not in ("empty", "own"):
            raise ValueError(f"prompt: {self.prompt!r}; known: empty, own")

    def predictor(self, batch: ProbedBatch, steps: int, scale: float) -> Predictor:
        """See `Probe.predictor`."""
        own = self.prompt == "own"
        then = batch.predictor(batch.prompts, steps, scale) if own else batch.empty_predictor(steps, scale)
        return switch(batch.original_predictor(batch.prompts, scale), then, round(self.begun * steps))
