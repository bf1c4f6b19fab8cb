"""Flux: CLIP's summary and T5, and guidance distilled into the transformer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unlearnbench.models.base import Conditioning, Predictor
from unlearnbench.models.flow_matching import FlowMatching


@dataclass
class Flux(FlowMatching):
    """A FluxPipeline; see `FlowMatching` and `TextToImage` for the settings.

    `states` are T5's, `pooled` is CLIP's summary. The guidance scale is an input of the transformer (FLUX.1-dev), or none at
    all (FLUX.1-schnell): one prediction a step, already guided, and none that is unconditional. In training the
    scale is `guidance`, and times are drawn evenly, as in diffusers' training script.
    """

    guidance: float = 3.5
    tokens: int = 512

    kind: ClassVar[str] = "FluxPipeline"
    parts: ClassVar[tuple[str, ...]] = ("transformer", "text_encoder", "text_encoder_2", "vae")
    capabilities: ClassVar[frozenset[str]] = frozenset()

    def places(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform."""
        return torch.rand(count, generator=generator)

    def t5(self) -> tuple[Any, Any]:
        """See `FlowMatching.t5`."""
        return self.pipeline.tokenizer_2, self.text_encoder_2

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """T5's states and CLIP's summary."""
        asked = self.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt")
        with self.autocast():
            pooled = self.text_encoder(asked.input_ids.to(self.device)).pooler_output
        states = self.long_states(list(prompts))
        assert states is not None
        return {"prompt_embeds": states, "pooled_prompt_embeds": pooled}

    def tokenize(self, prompts: Sequence[str]) -> list[tuple[int, list[list[int]]]]:
        """T5's tokens."""
        return [self.long_spelled(list(prompts))]

    def predict(self, noisy: Tensor, times: Tensor, text: Conditioning) -> Tensor:
        """See `TextToImage.predict`."""
        return self.velocity(noisy, times, text, self.guidance)

    def predictor(self, cond: Conditioning, uncond: Conditioning, scale: float) -> Predictor:
        """The prediction at this guidance; the empty prompt is not asked."""
        return lambda step, latents, timestep: self.velocity(latents, timestep, cond, scale)

    def velocity(self, noisy: Tensor, times: Tensor, text: Conditioning, guidance: float) -> Tensor:
        """The prediction for latents (n, c, h, w), which the transformer sees as h / 2 w / 2 tokens of 4 c numbers."""
        height, width = noisy.shape[2] // 2, noisy.shape[3] // 2
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1).to(noisy)
        scale = torch.full((len(noisy),), guidance, device=self.device) if self.transformer.config.guidance_embeds else None
        with self.autocast():
            found = self.transformer(
                F.pixel_unshuffle(noisy, 2).flatten(2).transpose(1, 2),
                timestep=times.float().expand(len(noisy)) / 1000,
                guidance=scale,
                pooled_projections=text["pooled_prompt_embeds"],
                encoder_hidden_states=text["prompt_embeds"],
                txt_ids=torch.zeros(text["prompt_embeds"].shape[1], 3).to(noisy),
                img_ids=places,
            ).sample.float()
        return F.pixel_shuffle(found.transpose(1, 2).unflatten(2, (height, width)), 2)

    def latent_shape(self) -> tuple[int, int, int]:
        """See `TextToImage.latent_shape`."""
        side = self.size // self.pipeline.vae_scale_factor
        return self.transformer.config.in_channels // 4, side, side

    def sigmas(self, steps: int) -> list[float]:
        """From 1 down to 1 / steps, evenly."""
        return np.linspace(1.0, 1 / steps, steps).tolist()
