"""The networks of Pictoscenes, untrained. The autoencoder and the scheduler are Pictoworld's."""

from __future__ import annotations

from pathlib import Path

from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from unlearnbench.pictoworld import architecture as pictoworld

TOKENS = 40
BYTE_PAIRS = Path(__file__).with_name("byte_pairs.json")
LATENT_CHANNELS = 8
LATENT_SIZE = 16
WIDTH = 128


def make_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer, trained on Pictoscenes' language."""
    return pictoworld.make_tokenizer(BYTE_PAIRS, TOKENS)


def make_text_encoder() -> CLIPTextModel:
    """A CLIP text encoder with three layers of width 128."""
    tokenizer = make_tokenizer()
    return pictoworld.make_text_encoder(len(tokenizer), tokenizer.eos_token_id, layers=3, tokens=TOKENS)


def make_unet() -> UNet2DConditionModel:
    """A UNet over 16 x 16 x 8: a thin first level, then two of width 128 with cross-attention."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS,
        block_out_channels=(WIDTH // 4, WIDTH, WIDTH), layers_per_block=1, cross_attention_dim=WIDTH, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), norm_num_groups=8,
    )  # fmt: skip
