"""Stable Diffusion XL: two text encoders side by side, the second one's summary, and the picture's size as conditions."""

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

    `states` are the last but one hidden states of both encoders, joined along the width, and `pooled` the second's
    projected summary. The empty prompt is all zeros where the checkpoint says so (force_zeros_for_empty_prompt), as it
    was in training. The picture counts as whole: original and target size are `size`, nothing is cropped.
    """

    kind: ClassVar[str] = "StableDiffusionXLPipeline"
    parts: ClassVar[tuple[str, ...]] = ("unet", "text_encoder", "text_encoder_2", "vae")
    capabilities: ClassVar[frozenset[str]] = frozenset({"cfg", "xattn"})

    def load_overrides(self) -> dict[str, Any]:
        """Nothing; but no watermark is written into images."""
        return {"add_watermarker": False}

    def fingerprint_extras(self) -> list[Any]:
        """The second vocabulary too."""
        return [*super().fingerprint_extras(), vocabulary_hash(self.pipeline.tokenizer_2)]

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """The states of both encoders and the second one's summary."""
        states = []
        for tokenizer, encoder in (
            (self.tokenizer, self.text_encoder),
            (self.pipeline.tokenizer_2, self.text_encoder_2),
        ):
            tokens = tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids
            with self.autocast():
                found = encoder(tokens.to(self.device), output_hidden_states=True)
            states.append(found.hidden_states[-2])
        text = {"prompt_embeds": torch.cat(states, dim=-1), "pooled_prompt_embeds": found.text_embeds}
        if self.pipeline.config.force_zeros_for_empty_prompt:
            said = torch.tensor([prompt != "" for prompt in prompts], device=self.device)
            text = {key: torch.where(said.view(-1, *[1] * (value.dim() - 1)), value, 0) for key, value in text.items()}
        return text

    def predict(self, noisy: Tensor, times: Tensor, text: Conditioning) -> Tensor:
        """See `TextToImage.predict`."""
        sizes = torch.tensor(
            [[self.size, self.size, 0, 0, self.size, self.size]], device=self.device, dtype=text["pooled_prompt_embeds"].dtype
        )
        added = {"text_embeds": text["pooled_prompt_embeds"], "time_ids": sizes.expand(len(noisy), -1)}
        with self.autocast():
            return self.unet(noisy, times, text["prompt_embeds"], added_cond_kwargs=added).sample.float()
