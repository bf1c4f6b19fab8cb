"""Flux: T5, CLIP's pooled prompt embeddings, and guidance distilled into the transformer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unlearnbench.models.base import Conditioning, ImageShape, Predictor
from unlearnbench.models.flow_matching import FlowMatching


@dataclass
class Flux(FlowMatching):
    """A FluxPipeline; see `FlowMatching` and `TextToImage` for the settings.

    `prompt_embeds` are T5's last hidden state, `pooled_prompt_embeds` CLIP's pooled output. The guidance scale is an input
    of the transformer (FLUX.1-dev) or does not exist (FLUX.1-schnell). Each step computes one prediction, already guided;
    there is no unconditional prediction. In training the scale is `guidance`, and timesteps are uniform, as in diffusers'
    training script.
    """

    guidance: float = 3.5
    tokens: int = 512

    pipeline_class: ClassVar[str] = "FluxPipeline"
    parts: ClassVar[tuple[str, ...]] = ("transformer", "text_encoder", "text_encoder_2", "vae")
    capabilities: ClassVar[frozenset[str]] = frozenset()

    def timestep_positions(self, count: int, generator: torch.Generator) -> Tensor:
        """See `FlowMatching.timestep_positions`; uniform."""
        return torch.rand(count, generator=generator)

    def longest_tokenizer(self) -> tuple[str, int | None]:
        """T5's."""
        return "tokenizer_2", self.tokens

    def t5(self) -> tuple[Any, Any]:
        """See `FlowMatching.t5`."""
        return self.pipeline.tokenizer_2, self.text_encoder_2

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """`prompt_embeds` (n, tokens, width) and `pooled_prompt_embeds` (n, width); see the class."""
        inputs = self.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt")
        with self.autocast():
            pooled = self.text_encoder(inputs.input_ids.to(self.device)).pooler_output
        embeds = self.t5_embeds(list(prompts))
        assert embeds is not None
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def tokenize(self, prompts: Sequence[str]) -> list[tuple[int, list[list[int]]]]:
        """T5's token ids."""
        return [self.t5_end_and_ids(list(prompts))]

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """See `TextToImage.predict`."""
        return self.velocity(noisy_latents, timesteps, conditioning, self.guidance)

    def predictor(self, cond: Conditioning, uncond: Conditioning, scale: float) -> Predictor:
        """See `TextToImage.predictor`; the scale is an input of the transformer, and `uncond` is not used."""
        return lambda step, latents, timestep: self.velocity(latents, timestep, cond, scale)

    def velocity(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning, scale: float) -> Tensor:
        """The prediction (n, c, h, w) at a guidance scale; the transformer takes the latents as h/2 w/2 tokens of width 4c."""
        count, _, height, width = noisy_latents.shape
        rows, columns = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
        positions = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1).to(noisy_latents)
        scales = torch.full((count,), scale, device=self.device) if self.transformer.config.guidance_embeds else None
        with self.autocast():
            prediction = self.transformer(
                self.in_half(F.pixel_unshuffle(noisy_latents, 2).flatten(2).transpose(1, 2)),
                timestep=timesteps.float().expand(count) / 1000,
                guidance=scales,
                pooled_projections=self.in_half(conditioning["pooled_prompt_embeds"]),
                encoder_hidden_states=self.in_half(conditioning["prompt_embeds"]),
                txt_ids=torch.zeros(conditioning["prompt_embeds"].shape[1], 3).to(noisy_latents),
                img_ids=positions,
            ).sample.float()
        return F.pixel_shuffle(prediction.transpose(1, 2).unflatten(2, (height // 2, width // 2)), 2)

    def latent_shape(self, shape: ImageShape | None = None) -> tuple[int, int, int]:
        """See `TextToImage.latent_shape`."""
        height, width = (side // self.pipeline.vae_scale_factor for side in shape or (self.size, self.size))
        return self.transformer.config.in_channels // 4, height, width

    def latents_per_channel(self) -> int:
        """4: the transformer takes squares of 2 x 2 latent pixels."""
        return 4

    def sigmas(self, steps: int) -> list[float]:
        """See `FlowMatching.sigmas`; evenly from 1 to 1 / steps."""
        return np.linspace(1.0, 1 / steps, steps).tolist()
