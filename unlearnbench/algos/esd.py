"""ESD: Erased Stable Diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.examples import Batch
from unlearnbench.algos.negative_guidance import (
    PartialSamples,
    negative_guidance_target,
    original_partial_samples,
    partially_denoise,
)
from unlearnbench.algos.training import Step, Training
from unlearnbench.config.ranges import at_least, one_of
from unlearnbench.models.base import TextToImage
from unlearnbench.models.frozen import Frozen


@dataclass
class ESD(Unlearner):
    """Steer the concept's prompts away from the concept by the original's negated guidance.

    L = |eps(x_t, c) - (eps_0(x_t, c_from) - eta (eps_0(x_t, c) - eps_0(x_t, "")))|^2, where x_t is a sample of the model
    in training, stopped at a random step (Gandikota et al. 2023, arXiv 2303.07345, equation 7). The target is linear, so
    it holds for velocity as for noise. The variants differ in `train`: x is xattn, u is not_xattn, x-strict is
    xattn_kv. The method needs no images.

    The defaults are those of the authors' later code for Stable Diffusion 1 (for SDXL: lr 2e-4, eta 1, sample_guidance 2).
    That code samples x_t with the original, as `sampler: original` does, and its u does not train norm layers.

    Attributes:
        eta: strength of the negative guidance.
        source: c_from: "empty" as in the paper, or "concept" as in the authors' later code.
        sample_steps: steps of the complete sampling, of which x_t is an intermediate state.
        sample_guidance: guidance scale of that sampling.
        sampler: the model that samples x_t: trained, at every step, as in the paper; or original, as in the authors' later
            code: all x_t are then sampled before the first step, in large batches, which is faster on a GPU.
    """

    eta: float = 1.0
    source: str = "empty"
    sample_steps: int = 50
    sample_guidance: float = 3.0
    sampler: str = "trained"
    needs_images: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "source", "concept", "empty")
        one_of(self, "sampler", "trained", "original")
        at_least(self, 1, "sample_steps")

    def requires(self) -> frozenset[str]:
        """See `Unlearner.requires`."""
        return frozenset({"cfg"})

    def begin(self, training: Training) -> PartialSamples | None:
        """Sample every x_t by the original, if it is the sampler."""
        if self.sampler == "trained":
            return None
        count = self.steps * self.batch * len(training.concept.concepts_by_split("forget"))
        prompts = training.forget.draw(count, training.generator).prompts
        return original_partial_samples(training.model, prompts, self.sample_steps, self.sample_guidance, training.generator)

    def step_loss(self, training: Training, step: Step) -> Tensor:
        """See `Unlearner.step_loss`; with x_t of the original, a random part of them."""
        if training.state is None:
            return self.loss(training.model, training.original, *step)
        samples = training.state.draw(len(step.forget.prompts), step.generator)
        return self._distance(training.model, training.original, samples)

    def loss(self, model: TextToImage, frozen: Frozen, forget: Batch, retain: Batch, generator: torch.Generator) -> Tensor:
        """The mean squared distance to the original's negatively guided prediction."""
        latents, timesteps = partially_denoise(model, forget.prompts, self.sample_steps, self.sample_guidance, generator)
        return self._distance(model, frozen, PartialSamples(forget.prompts, latents, timesteps))

    def _distance(self, model: TextToImage, frozen: Frozen, samples: PartialSamples) -> Tensor:
        target = negative_guidance_target(frozen, samples.latents, samples.timesteps, samples.prompts, self.eta, self.source)
        return F.mse_loss(model.predict(samples.latents, samples.timesteps, model.encode_prompts(samples.prompts)), target)
