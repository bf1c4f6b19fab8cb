"""The networks of Pictoscenes, untrained. The scheduler is Pictoworld's."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from unlearnbench.pictoworld import architecture as pictoworld

TOKENS = 40
BYTE_PAIRS = Path(__file__).with_name("byte_pairs.json")
LATENT_CHANNELS = 16
LATENT_SIZE = 8
WIDTH = 128


def make_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer, trained on Pictoscenes' language."""
    return pictoworld.make_tokenizer(BYTE_PAIRS, TOKENS)


def make_text_encoder() -> CLIPTextModel:
    """A CLIP text encoder with three layers of width 128."""
    tokenizer = make_tokenizer()
    return pictoworld.make_text_encoder(len(tokenizer), tokenizer.eos_token_id, layers=3, tokens=TOKENS)


def make_vae() -> AutoencoderKL:
    """An autoencoder from 64 x 64 x 3 to 8 x 8 x 16."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, WIDTH), layers_per_block=1, latent_channels=LATENT_CHANNELS, norm_num_groups=8,
        sample_size=64, mid_block_add_attention=False,
    )  # fmt: skip


def make_unet() -> UNet2DConditionModel:
    """A UNet over 8 x 8 x 16 with two levels of width 128, cross-attention in both, so that all places see each other."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, block_out_channels=(WIDTH, WIDTH),
        layers_per_block=1, down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=WIDTH, attention_head_dim=4, norm_num_groups=8,
    )  # fmt: skip
