"""Tiny pipelines with two layers a block, attention in the autoencoder and text encoders of two widths, as the real ones."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from unlearnbench.models.tiny_pipelines import make_tiny_pipeline

NARROW, WIDE = 16, 24  # the widths of the text encoders, which differ as SDXL's do


def make_full_pipeline(family):
    """A pipeline of sd15 or sdxl with all kinds of layers that the real one has, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _full(make_tiny_pipeline(family), family)


def _full(pipeline, family):
    downs = ("CrossAttnDownBlock2D", "DownBlock2D")[:: -1 if family == "sdxl" else 1]
    settings = {"cross_attention_dim": NARROW}
    if family == "sdxl":
        config = CLIPTextConfig(**{**pipeline.text_encoder_2.config.to_dict(), "hidden_size": WIDE, "num_attention_heads": 2})
        pipeline.text_encoder_2 = CLIPTextModelWithProjection(config).eval()
        settings = {"cross_attention_dim": NARROW + WIDE, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
                    "projection_class_embeddings_input_dim": 6 * 8 + 12, "use_linear_projection": True,
                    "transformer_layers_per_block": 2}  # fmt: skip
    pipeline.unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=2, attention_head_dim=2, norm_num_groups=4, **settings,
        down_block_types=downs, up_block_types=tuple(name.replace("Down", "Up") for name in downs[::-1]),
    ).eval()  # fmt: skip
    pipeline.vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, block_out_channels=(4, 8, 8),
        layers_per_block=2, latent_channels=4, norm_num_groups=4, sample_size=32,
    ).eval()  # fmt: skip
    return pipeline
