"""Flow matching by a transformer that attends to text and image tokens as one sequence: Stable Diffusion 3 and Flux."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from unlearnbench.config.ranges import at_least
from unlearnbench.models.base import DTYPES, ImageShape, fresh_scheduler, vocabulary_hash
from unlearnbench.models.checkpoint_parts import Configs, read_index
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

    There is no cross-attention: joint attention is over the tokens of text and image together. The nearest equivalent,
    which `xattn` selects, are the projections of the text stream (add_q_proj, add_k_proj, add_v_proj, to_add_out).
    `xattn_kv` selects its keys and values, `self_attn` the projections of the image stream.

    Training timesteps are taken from the scheduler's own grid of 1000, with its static shift if it has one, at random
    positions (see `timestep_positions`).

    Attributes:
        tokens: the length in tokens to which T5's tokenizer pads or cuts a prompt.
    """

    tokens: int = 256

    denoiser: ClassVar[str] = "transformer"
    single_file_is_whole: ClassVar[bool] = False
    patterns: ClassVar[dict[str, str]] = JOINT

    @abstractmethod
    def timestep_positions(self, count: int, generator: torch.Generator) -> Tensor:
        """Random positions (count,) in the grid of training timesteps, from 0 (pure noise) to 1, by the family's density."""

    @abstractmethod
    def t5(self) -> tuple[Any, Any]:
        """T5's tokenizer and encoder; None, None if the checkpoint was saved without T5."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "tokens")
        for name in ("scheduler", "clip_skip"):
            if getattr(self, name):
                raise ValueError(f"{name}: a flow-matching model has its own scheduler and text encoders; leave it out")

    def draw_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """See `TextToImage.draw_timesteps`."""
        grid = self.noise_scheduler.timesteps
        indices = (self.timestep_positions(count, generator) * len(grid)).long().clamp(max=len(grid) - 1)
        return grid[indices].to(self.device)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The velocity, noise - latents."""
        return noise - latents

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """(1 - s) latents + s noise, s = t / 1000."""
        sigma = (timesteps.float() / self.noise_scheduler.config.num_train_timesteps).view(-1, 1, 1, 1)
        return (1 - sigma) * latents + sigma * noise

    def t5_embeds(self, prompts: list[str]) -> Tensor | None:
        """T5's last hidden state (n, tokens, width); None without T5."""
        _, encoder = self.t5()
        if encoder is None:
            return None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype != "fp32"):  # its sums overflow fp16
            return encoder(self.t5_token_ids(prompts).to(self.device)).last_hidden_state

    def t5_end_and_ids(self, prompts: list[str]) -> tuple[int, list[list[int]]]:
        """T5's end token and the token ids of each prompt; without T5 both are zeros, as the prompt embeddings are."""
        tokenizer, encoder = self.t5()
        if encoder is None:
            return 0, [[0] * self.tokens for _ in prompts]
        return tokenizer.eos_token_id, self.t5_token_ids(prompts).tolist()

    def t5_token_ids(self, prompts: list[str]) -> Tensor:
        """T5's token ids (n, tokens), on the CPU."""
        tokenizer, _ = self.t5()
        return tokenizer(prompts, padding="max_length", max_length=self.tokens, truncation=True, return_tensors="pt").input_ids

    def scaled_latents(self, scheduler: Any, latents: Tensor, timestep: Tensor) -> Tensor:
        """The latents, unscaled."""
        return latents

    def schedule(self, steps: int, shape: ImageShape | None = None) -> Any:
        """See `DiffusersModel.schedule`; with dynamic shifting the shift is linear in the number of image tokens."""
        scheduler, mu = fresh_scheduler(self.noise_scheduler), None
        config = scheduler.config
        if config.use_dynamic_shifting:
            _, height, width = self.latent_shape(shape)
            tokens_above_base = height * width // self.latent_pixels_per_token() ** 2 - config.base_image_seq_len
            slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
            mu = config.base_shift + slope * tokens_above_base
        scheduler.set_timesteps(steps, device=self.device, sigmas=self.sigmas(steps), mu=mu)
        return scheduler

    def sigmas(self, steps: int) -> list[float] | None:
        """The noise levels of the sampling steps before any shift, from 1 to 0; None for the scheduler's own."""
        return None

    def most_steps(self, configs: Configs) -> int | None:
        """None: the noise levels are computed for any number of steps."""
        return None

    def latent_pixels_per_token(self) -> int:
        """2: a token is a square of 2 x 2 latent pixels."""
        return 2

    def fingerprint_extras(self) -> list[Any]:
        """Also the vocabularies of the other tokenizers, and T5's length."""
        tokenizers = [self.pipeline.tokenizer_2, getattr(self.pipeline, "tokenizer_3", None)]
        return [*super().fingerprint_extras(), self.tokens, *(vocabulary_hash(t) for t in tokenizers if t is not None)]

    def load_single_file(self, pipeline_class: Any) -> Any:
        """The pipeline in `config` with the transformer of the single file."""
        import diffusers

        dtype = DTYPES[self.dtype]
        annotation = inspect.signature(pipeline_class.__init__).parameters["transformer"].annotation
        transformer_class = getattr(diffusers, annotation.__name__)
        transformer = transformer_class.from_single_file(
            self.path, config=self.config, subfolder="transformer", torch_dtype=dtype
        )
        assert self.config is not None
        others = tuple(part for part in self.parts if part != "transformer")
        files = replace(self.files, path=self.config, config=None, parts=others)
        left_out = {name: None for name, saved in read_index(Path(self.config)).items() if saved == [None, None]}
        return pipeline_class.from_pretrained(
            self.config, transformer=transformer, torch_dtype=dtype, use_safetensors=True, variant=files.loaded_variant(),
            local_files_only=True, **left_out,
        )  # fmt: skip
