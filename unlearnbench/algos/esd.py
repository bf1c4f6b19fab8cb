"""ESD: Erased Stable Diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.examples import Batch
from unlearnbench.algos.negative_guidance import negative_guidance_target, partially_denoise
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
    That code samples x_t with the original, and its u does not train norm layers.

    Attributes:
        eta: strength of the negative guidance.
        source: c_from: "empty" as in the paper, or "concept" as in the authors' later code.
        sample_steps: steps of the complete sampling, of which x_t is an intermediate state.
        sample_guidance: guidance scale of that sampling.
    """

    eta: float = 1.0
    source: str = "empty"
    sample_steps: int = 50
    sample_guidance: float = 3.0
    needs_images: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "source", "concept", "empty")
        at_least(self, 1, "sample_steps")

    def requires(self) -> frozenset[str]:
        """See `Unlearner.requires`."""
        return frozenset({"cfg"})

    def loss(self, model: TextToImage, frozen: Frozen, forget: Batch, retain: Batch, generator: torch.Generator) -> Tensor:
        """The mean squared distance to the original's negatively guided prediction."""
        noisy_latents, timesteps = partially_denoise(model, forget.prompts, self.sample_steps, self.sample_guidance, generator)
        target = negative_guidance_target(frozen, noisy_latents, timesteps, forget.prompts, self.eta, self.source)
        return F.mse_loss(model.predict(noisy_latents, timesteps, model.encode_prompts(forget.prompts)), target)
