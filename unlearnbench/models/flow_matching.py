"""Flow matching by a transformer that reads text and picture as one sequence: what Stable Diffusion 3 and Flux share."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unlearnbench.config.ranges import at_least
from unlearnbench.models.base import DTYPES, fresh_scheduler, vocabulary_hash
from unlearnbench.models.diffusers_model import DiffusersModel

DOUBLE = r"^transformer\.transformer_blocks\.\d+\."
TEXT_STREAM = r"attn\.(add_[qkv]_proj|to_add_out)\."
JOINT = {
    "none": r"$^",
    "xattn": DOUBLE + TEXT_STREAM,
    "xattn_kv": DOUBLE + r"attn\.add_[kv]_proj\.",
    "not_xattn": r"^transformer\.(?!transformer_blocks\.\d+\." + TEXT_STREAM + ")",
    "self_attn": DOUBLE + r"attn2?\.to_(q|k|v|out)\b",
    "blocks": r"^transformer\.(single_)?transformer_blocks\.",
    "lora": r"^transformer\..*\.attn2?\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)\.weight$",
    "full": r"^transformer\.",
    "text_encoder": r"^text_encoder",
}


@dataclass
class FlowMatching(DiffusersModel):
    """A rectified flow: x_s = (1 - s) x + s e, v = e - x, s = t / 1000 (Esser et al. 2024, arXiv 2403.03206, equation 13).

    There is no cross-attention: in joint attention the queries, keys and values of text and picture are attended to
    together. What comes nearest, and what `xattn` means here, are the projections of the text's stream (add_q_proj,
    add_k_proj, add_v_proj, to_add_out); `xattn_kv` its keys and values; `self_attn` the picture's projections.

    Training times follow the scheduler's own grid of 1000 times, with its static shift if it has one, at random places u
    of which `places` says the density.

    Attributes:
        tokens: the length to which T5 pads or cuts a prompt.
    """

    tokens: int = 256

    denoiser: ClassVar[str] = "transformer"
    file_is_whole: ClassVar[bool] = False
    patterns: ClassVar[dict[str, str]] = JOINT

    @abstractmethod
    def places(self, count: int, generator: torch.Generator) -> Tensor:
        """Random places in the grid of training times, (count,), from 0 (pure noise) to 1."""

    @abstractmethod
    def t5(self) -> tuple[Any, Any]:
        """The tokenizer and the encoder T5; None, None if the checkpoint was saved without."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "tokens")

    def draw_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """See `TextToImage.draw_timesteps`."""
        grid = self.scheduler.timesteps
        chosen = (self.places(count, generator) * len(grid)).long().clamp(max=len(grid) - 1)
        return grid[chosen].to(self.device)

    def target(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The velocity, noise - clean."""
        return noise - clean

    def add_noise(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """(1 - s) clean + s noise, s = t / 1000."""
        share = (times.float() / self.scheduler.config.num_train_timesteps).view(-1, 1, 1, 1)
        return (1 - share) * clean + share * noise

    def long_states(self, prompts: list[str]) -> Tensor | None:
        """T5's last hidden state, (n, tokens, width); None without T5."""
        _, encoder = self.t5()
        if encoder is None:
            return None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype != "fp32"):  # its sums overflow fp16
            return encoder(self.long_tokens(prompts).to(self.device)).last_hidden_state

    def long_spelled(self, prompts: list[str]) -> tuple[int, list[list[int]]]:
        """T5's end token, and the ids of what `long_states` stands for; without T5 nothing is said."""
        tokenizer, encoder = self.t5()
        if encoder is None:
            return 0, [[0] * self.tokens for _ in prompts]
        return tokenizer.eos_token_id, self.long_tokens(prompts).tolist()

    def long_tokens(self, prompts: list[str]) -> Tensor:
        """T5's token ids, (n, tokens)."""
        tokenizer, _ = self.t5()
        return tokenizer(prompts, padding="max_length", max_length=self.tokens, truncation=True, return_tensors="pt").input_ids

    def seen(self, scheduler: Any, latents: Tensor, time: Tensor) -> Tensor:
        """The latents as they are."""
        return latents

    def schedule(self, steps: int) -> Any:
        """See `Pipeline.schedule`; the shift grows with the picture where the scheduler says so."""
        scheduler, mu = fresh_scheduler(self.scheduler), None
        given = scheduler.config
        if given.use_dynamic_shifting:
            _, height, width = self.latent_shape()
            beyond = height * width // self.patch() ** 2 - given.base_image_seq_len
            slope = (given.max_shift - given.base_shift) / (given.max_image_seq_len - given.base_image_seq_len)
            mu = given.base_shift + slope * beyond
        scheduler.set_timesteps(steps, device=self.device, sigmas=self.sigmas(steps), mu=mu)
        return scheduler

    def sigmas(self, steps: int) -> list[float] | None:
        """The shares of noise before any shift; None for the scheduler's own."""
        return None

    def patch(self) -> int:
        """Two by two latent pixels are one token."""
        return 2

    def fingerprint_extras(self) -> list[Any]:
        """The other vocabularies and T5's length too."""
        tokenizers = [self.pipeline.tokenizer_2, getattr(self.pipeline, "tokenizer_3", None)]
        return [*super().fingerprint_extras(), self.tokens, *(vocabulary_hash(t) for t in tokenizers if t is not None)]

    def from_file(self, kind: Any) -> Any:
        """The pipeline in `config`, its transformer from the single file."""
        import diffusers

        made = getattr(diffusers, inspect.signature(kind.__init__).parameters["transformer"].annotation.__name__)
        transformer = made.from_single_file(
            self.path, config=self.config, subfolder="transformer", torch_dtype=DTYPES[self.dtype]
        )
        return kind.from_pretrained(self.config, transformer=transformer, torch_dtype=DTYPES[self.dtype], use_safetensors=True)

    def file_needs(self) -> str:
        """See `Pipeline.file_needs`."""
        return "the transformer's config.json, and all other parts with their weights"
