"""Stable Diffusion XL: two text encoders; pooled prompt embeddings and the image size are further conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unlearnbench.models.base import Conditioning, vocabulary_hash
from unlearnbench.models.sd import StableDiffusion


@dataclass
class StableDiffusionXL(StableDiffusion):
    """A StableDiffusionXLPipeline; see `TextToImage` for the settings.

    `prompt_embeds` are the penultimate hidden states of both encoders, concatenated, or earlier ones (`clip_skip`).
    `pooled_prompt_embeds` is the projected, pooled output of the second. Both are zero for the empty prompt if the
    checkpoint sets force_zeros_for_empty_prompt, as in its training. The size conditions are those of an uncropped
    image: original and target size are `size`.
    """

    pipeline_class: ClassVar[str] = "StableDiffusionXLPipeline"
    parts: ClassVar[tuple[str, ...]] = ("unet", "text_encoder", "text_encoder_2", "vae")
    capabilities: ClassVar[frozenset[str]] = frozenset({"cfg", "xattn"})

    def load_overrides(self) -> dict[str, Any]:
        """No watermark is written into images."""
        return {"add_watermarker": False}

    def fingerprint_extras(self) -> list[Any]:
        """Also the second tokenizer's vocabulary."""
        return [*super().fingerprint_extras(), vocabulary_hash(self.pipeline.tokenizer_2)]

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """`prompt_embeds` (n, tokens, width) and `pooled_prompt_embeds` (n, width); see the class."""
        hidden_states = []
        for tokenizer, encoder in (
            (self.tokenizer, self.text_encoder),
            (self.pipeline.tokenizer_2, self.text_encoder_2),
        ):
            token_ids = tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids
            with self.autocast():
                output = encoder(token_ids.to(self.device), output_hidden_states=True)
            hidden_states.append(output.hidden_states[-2 - self.clip_skip])
        embeds = {"prompt_embeds": torch.cat(hidden_states, dim=-1), "pooled_prompt_embeds": output.text_embeds}
        if self.pipeline.config.force_zeros_for_empty_prompt:
            nonempty = torch.tensor([prompt != "" for prompt in prompts], device=self.device)
            embeds = {key: torch.where(nonempty.view(-1, *[1] * (x.dim() - 1)), x, 0) for key, x in embeds.items()}
        return embeds

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """See `TextToImage.predict`."""
        pooled, embeds = (self.in_half(conditioning[name]) for name in ("pooled_prompt_embeds", "prompt_embeds"))
        size = [side * self.pipeline.vae_scale_factor for side in noisy_latents.shape[2:]]
        sizes = torch.tensor([[*size, 0, 0, *size]], device=self.device, dtype=pooled.dtype)
        added = {"text_embeds": pooled, "time_ids": sizes.expand(len(noisy_latents), -1)}
        with self.autocast():
            prediction = self.unet(self.in_half(noisy_latents), timesteps, embeds, added_cond_kwargs=added)
        return prediction.sample.float()
