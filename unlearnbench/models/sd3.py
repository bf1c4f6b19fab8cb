"""Stable Diffusion 3 and 3.5: two CLIP encoders and T5, classifier-free guidance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unlearnbench.models.base import Conditioning, ImageShape
from unlearnbench.models.checkpoint_parts import is_left_out, read_index
from unlearnbench.models.flow_matching import FlowMatching


@dataclass
class StableDiffusion3(FlowMatching):
    """A StableDiffusion3Pipeline; see `FlowMatching` and `TextToImage` for the settings.

    `prompt_embeds` are the penultimate hidden states of both CLIP encoders, concatenated along the width and padded with
    zeros to T5's width, then T5's last hidden state along the tokens (zeros if the checkpoint was saved without T5).
    `pooled_prompt_embeds` are the projected, pooled outputs of both CLIP encoders. Timesteps are drawn by u = sigmoid(n),
    n standard Gaussian, as in diffusers' training script; the loss is not weighted (theirs by s^2).
    """

    pipeline_class: ClassVar[str] = "StableDiffusion3Pipeline"
    parts: ClassVar[tuple[str, ...]] = ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae")
    optional_parts: ClassVar[tuple[str, ...]] = ("text_encoder_3",)
    capabilities: ClassVar[frozenset[str]] = frozenset({"cfg"})

    def timestep_positions(self, count: int, generator: torch.Generator) -> Tensor:
        """See `FlowMatching.timestep_positions`; logit-normal."""
        return torch.randn(count, generator=generator).sigmoid()

    def longest_tokenizer(self) -> tuple[str, int | None]:
        """T5's; CLIP's if the checkpoint was saved without T5."""
        folder = self.local_folder()
        if self.pipeline is not None:
            without_t5 = self.text_encoder_3 is None
        else:
            without_t5 = folder is not None and is_left_out(read_index(folder), "text_encoder_3")
        return super().longest_tokenizer() if without_t5 else ("tokenizer_3", self.tokens)

    def t5(self) -> tuple[Any, Any]:
        """See `FlowMatching.t5`."""
        return self.pipeline.tokenizer_3, self.pipeline.text_encoder_3

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """`prompt_embeds` (n, tokens, width) and `pooled_prompt_embeds` (n, width); see the class."""
        clip_embeds, pooled = [], []
        for tokenizer, encoder in (
            (self.tokenizer, self.text_encoder),
            (self.pipeline.tokenizer_2, self.text_encoder_2),
        ):
            length = self.tokenizer.model_max_length
            inputs = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            with self.autocast():
                output = encoder(inputs.input_ids.to(self.device), output_hidden_states=True)
            clip_embeds.append(output.hidden_states[-2])
            pooled.append(output.text_embeds)
        clip, width = torch.cat(clip_embeds, dim=-1), self.transformer.config.joint_attention_dim
        clip = F.pad(clip, (0, width - clip.shape[-1]))
        t5 = self.t5_embeds(list(prompts))
        if t5 is None:
            t5 = clip.new_zeros(len(prompts), self.tokens, width)
        return {"prompt_embeds": torch.cat([clip, t5], dim=1), "pooled_prompt_embeds": torch.cat(pooled, dim=-1)}

    def tokenize(self, prompts: Sequence[str]) -> list[tuple[int, list[list[int]]]]:
        """CLIP's token ids, which both CLIP encoders take, then T5's."""
        return [*super().tokenize(prompts), self.t5_end_and_ids(list(prompts))]

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """See `TextToImage.predict`."""
        with self.autocast():
            prediction = self.transformer(
                self.in_half(noisy_latents),
                encoder_hidden_states=self.in_half(conditioning["prompt_embeds"]),
                pooled_projections=self.in_half(conditioning["pooled_prompt_embeds"]),
                timestep=timesteps.float().expand(len(noisy_latents)),
            )
        return prediction.sample.float()

    def latent_shape(self, shape: ImageShape | None = None) -> tuple[int, int, int]:
        """See `TextToImage.latent_shape`."""
        height, width = (side // self.pipeline.vae_scale_factor for side in shape or (self.size, self.size))
        return self.transformer.config.in_channels, height, width
