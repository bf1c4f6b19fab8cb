"""A tiny random pipeline, created in memory: for smoke tests, and for tests that need a folder in diffusers' layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearnbench.models.checkpoint_parts import Configs
from unlearnbench.models.sd import StableDiffusion
from unlearnbench.pictoworld.classifier import WEIGHTS


def make_pipeline(seed: int = 0):  # noqa: ANN201
    """A StableDiffusionPipeline of 64-pixel images with random weights, and Pictoworld's tokenizer and scheduler."""
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from unlearnbench.pictoworld.architecture import TOKENS, make_scheduler, make_tokenizer

    tokenizer = make_tokenizer()
    end = tokenizer.eos_token_id
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                max_position_embeddings=TOKENS, eos_token_id=end, bos_token_id=0, pad_token_id=end,
            )
        )  # fmt: skip
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(4, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=64,
            mid_block_add_attention=False,
        )  # fmt: skip
        unet = UNet2DConditionModel(
            sample_size=16, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16, attention_head_dim=2, norm_num_groups=4,
        )  # fmt: skip
    return StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=make_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


@dataclass
class Tiny(StableDiffusion):
    """The tiny pipeline; it has no files."""

    def unavailable_reason(self) -> str | None:
        """Why the pipeline cannot have this size; it is always available."""
        return self.unsupported_reason(self.configs())

    def local_folder(self) -> Path | None:
        """None: there is no folder."""
        return None

    def configs(self) -> Configs:
        """Before the pipeline is made, what decides the steps and sizes that it can sample."""
        if self.pipeline is not None:
            return super().configs()
        return {"scheduler": {"num_train_timesteps": 1000}, "vae": {"block_out_channels": [4, 8, 8]}}

    def tokenizer_folder(self, name: str) -> Path | None:
        """That of Pictoworld, whose tokenizer the pipeline has."""
        return WEIGHTS / "pipeline" / name

    def download(self) -> None:
        """None: nothing is downloaded."""
        return

    def commit(self) -> None:
        """None: it is not from the hub."""
        return

    def _load_pipeline(self) -> Any:
        return make_pipeline()
