"""SLD: Safe Latent Diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unlearnbench.algos.none import NoTraining
from unlearnbench.algos.training import Training, Unlearned
from unlearnbench.config.ranges import share
from unlearnbench.models.base import Conditioning, Predictor, SamplingGuidance, TextToImage, stack_conditioning


@dataclass
class SLD(NoTraining):
    """Guide each sampling step away from the concept where the prompt leads toward it; no weight changes.

    With e, e_p and e_s the predictions for the empty prompt, the prompt and the concept, elementwise:
    mu = min(1, scale |e_p - e_s|) where e_p - e_s < threshold, else 0; s = mu (e_s - e) + momentum nu;
    nu' = decay nu + (1 - decay) s; the guided prediction is e + g (e_p - e - s), without s during the warm-up
    (Schramowski et al. 2023, arXiv 2211.05105, equations 3 to 8). As in the authors' code, a scale below 1, or sampling
    without guidance, disables it. The four strengths are those of diffusers' SafetyConfig, whose warm-up counts steps of
    50; ours is a share of the steps.

    Ours differs: the unsafe text is the concept's bare phrase, theirs a list of inappropriate content. The threshold applies
    to the model's prediction, noise or velocity; there it is noise.

    Attributes:
        scale: how fast the guidance grows with the difference (20 weak, 1000 medium, 2000 strong, 5000 max).
        threshold: the largest signed difference e_p - e_s that counts (0, .01, .025, 1).
        momentum: the share of earlier steps' guidance that is added (0, .3, .5, .5).
        decay: the share of that guidance that persists from step to step (0, .4, .7, .7).
        warmup: the share of sampling steps before it begins (.3, .2, .14, 0).
    """

    scale: float = 1000.0
    threshold: float = 0.01
    momentum: float = 0.3
    decay: float = 0.4
    warmup: float = 0.2
    supports_sequential: ClassVar[bool] = False
    saves_as_pipeline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        share(self, "momentum", "decay", "warmup")

    def requires(self) -> frozenset[str]:
        """See `Unlearner.requires`."""
        return frozenset({"cfg"})

    def update(self, training: Training) -> Unlearned:
        """Return the guidance of the model's sampling; changes no parameter."""
        return Unlearned([], SafeGuidance(self, training.concept.guide) if self.scale >= 1 else None)


@dataclass
class SafeGuidance(SamplingGuidance):
    """The sampling of SLD: its settings, and the unsafe text."""

    settings: SLD
    unsafe: str

    def start(self, model: TextToImage, cond: Conditioning, uncond: Conditioning, steps: int, scale: float) -> Predictor:
        """See `SamplingGuidance.start`; the model predicts for all three prompts in one batch."""
        if scale <= 1:
            return lambda step, latents, timestep: model.predict(latents, timestep, cond)
        stacked = stack_conditioning(uncond, cond, model.encode_prompts([self.unsafe]))
        first = round(self.settings.warmup * steps)
        accumulated = torch.zeros(())

        def predict(step: int, latents: Tensor, timestep: Tensor) -> Tensor:
            nonlocal accumulated
            pred_uncond, pred_cond, pred_unsafe = model.predict(torch.cat([latents] * 3), timestep, stacked).chunk(3)
            strength = (self.settings.scale * (pred_cond - pred_unsafe).abs()).clamp(max=1)
            below = pred_cond - pred_unsafe < self.settings.threshold
            safety = torch.where(below, strength, 0.0) * (pred_unsafe - pred_uncond)
            safety = safety + self.settings.momentum * accumulated
            accumulated = self.settings.decay * accumulated + (1 - self.settings.decay) * safety
            return pred_uncond + scale * (pred_cond - pred_uncond - (safety if step >= first else 0))

        return predict
