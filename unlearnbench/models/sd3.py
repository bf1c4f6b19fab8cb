"""Stable Diffusion 3 and 3.5: two CLIP encoders and T5, classifier-free guidance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unlearnbench.models.base import Conditioning
from unlearnbench.models.flow_matching import FlowMatching


@dataclass
class StableDiffusion3(FlowMatching):
    """A StableDiffusion3Pipeline; see `FlowMatching` and `TextToImage` for the settings.

    `states` are the CLIP encoders' last but one hidden states joined along the width and padded with zeros to T5's, then
    T5's along the tokens (zeros if the checkpoint was saved without T5); `pooled` both CLIP summaries. Times are drawn by
    u = sigmoid(n), n standard Gaussian, as in diffusers' training script; the loss is not weighted (theirs by s^2).
    """

    kind: ClassVar[str] = "StableDiffusion3Pipeline"
    parts: ClassVar[tuple[str, ...]] = ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae")
    may_lack: ClassVar[tuple[str, ...]] = ("text_encoder_3",)
    capabilities: ClassVar[frozenset[str]] = frozenset({"cfg"})

    def places(self, count: int, generator: torch.Generator) -> Tensor:
        """Logit-normal."""
        return torch.randn(count, generator=generator).sigmoid()

    def t5(self) -> tuple[Any, Any]:
        """See `FlowMatching.t5`."""
        return self.pipeline.tokenizer_3, self.pipeline.text_encoder_3

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """The states of the three encoders and the summaries of two."""
        states, pooled = [], []
        for tokenizer, encoder in (
            (self.tokenizer, self.text_encoder),
            (self.pipeline.tokenizer_2, self.text_encoder_2),
        ):
            length = self.tokenizer.model_max_length
            asked = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            with self.autocast():
                found = encoder(asked.input_ids.to(self.device), output_hidden_states=True)
            states.append(found.hidden_states[-2])
            pooled.append(found.text_embeds)
        short, width = torch.cat(states, dim=-1), self.transformer.config.joint_attention_dim
        short = F.pad(short, (0, width - short.shape[-1]))
        long = self.long_states(list(prompts))
        if long is None:
            long = short.new_zeros(len(prompts), self.tokens, width)
        return {"prompt_embeds": torch.cat([short, long], dim=1), "pooled_prompt_embeds": torch.cat(pooled, dim=-1)}

    def tokenize(self, prompts: Sequence[str]) -> list[tuple[int, list[list[int]]]]:
        """CLIP's tokens, which both encoders read, then T5's."""
        return [*super().tokenize(prompts), self.long_spelled(list(prompts))]

    def predict(self, noisy: Tensor, times: Tensor, text: Conditioning) -> Tensor:
        """See `TextToImage.predict`."""
        times = times.float().expand(len(noisy))
        with self.autocast():
            found = self.transformer(
                noisy,
                encoder_hidden_states=text["prompt_embeds"],
                pooled_projections=text["pooled_prompt_embeds"],
                timestep=times,
            )
        return found.sample.float()

    def latent_shape(self) -> tuple[int, int, int]:
        """See `TextToImage.latent_shape`."""
        side = self.size // self.pipeline.vae_scale_factor
        return self.transformer.config.in_channels, side, side
