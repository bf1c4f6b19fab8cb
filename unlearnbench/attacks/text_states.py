"""Text states: which of the two, text encoder or denoiser, lost the concept."""

from __future__ import annotations

from dataclasses import dataclass

from unlearnbench.attacks.probe import Probe, ProbedBatch
from unlearnbench.models.base import Predictor

ORIGINAL_ENCODER, ORIGINAL_DENOISER = "the original's text states", "the original's denoiser"


@dataclass
class TextStates(Probe):
    """The original's text encoder before the unlearned denoiser, and the unlearned text encoder before the original's denoiser.

    A concept that the first brings back was lost in the text encoder alone: the denoiser still has it.
    """

    def kinds(self) -> list[str]:
        """See `Probe.kinds`."""
        return [ORIGINAL_ENCODER, ORIGINAL_DENOISER]

    def predictor(self, batch: ProbedBatch, steps: int, scale: float) -> Predictor:
        """See `Probe.predictor`."""
        if batch.kind == ORIGINAL_ENCODER:
            return self._original_encoder(batch, steps, scale)
        return self._original_denoiser(batch, scale)

    def _original_encoder(self, batch: ProbedBatch, steps: int, scale: float) -> Predictor:
        with batch.original() as original:
            cond, uncond = original.encode_prompts(batch.prompts), original.encode_prompts([""])
        if batch.guidance is None:
            return batch.model.predictor(cond, uncond, scale)
        return batch.guidance.start(batch.model, cond, uncond, steps, scale)

    def _original_denoiser(self, batch: ProbedBatch, scale: float) -> Predictor:
        model, prompts = batch.model, batch.prompts
        cond, uncond = model.encode_prompts(prompts), model.encode_prompts([""])
        if batch.guidance is not None:
            cond = batch.guidance.conditioned(model, prompts, cond)
        return batch.by_original(model.predictor(cond, uncond, scale))
