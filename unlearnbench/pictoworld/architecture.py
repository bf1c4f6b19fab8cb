"""The networks of the embedded model, untrained."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TOKENS = 32
BYTE_PAIRS = Path(__file__).with_name("byte_pairs.json")


# --- the parts of the pipeline ----------------------------------------------------------------------------------------


def make_tokenizer(file: Path = BYTE_PAIRS, tokens: int = TOKENS) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer, trained on a world's language: each of its words is one token, any other word several."""
    vocab, merges = byte_pairs(file)
    return CLIPTokenizer(vocab=dict(vocab), merges=list(merges), model_max_length=tokens)


@cache
def byte_pairs(file: Path = BYTE_PAIRS) -> tuple[dict[str, int], list[tuple[str, ...]]]:
    """The tokenizer's vocabulary and merges, as recipes/byte_pairs.py trained them."""
    stored = json.loads(file.read_text(encoding="utf-8"))
    return stored["vocab"], [tuple(pair) for pair in stored["merges"]]


def make_vae() -> AutoencoderKL:
    """An autoencoder from 64 x 64 x 3 to 16 x 16 x 8."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64), layers_per_block=1, latent_channels=8, norm_num_groups=8,
        sample_size=64, mid_block_add_attention=False,
    )  # fmt: skip


def make_text_encoder(vocabulary: int, end: int, layers: int = 2, tokens: int = TOKENS) -> CLIPTextModel:
    """A CLIP text encoder of width 128."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary, hidden_size=128, intermediate_size=256, num_hidden_layers=layers, num_attention_heads=4,
            max_position_embeddings=tokens, projection_dim=128, eos_token_id=end, bos_token_id=0, pad_token_id=end,
        )
    )  # fmt: skip


def make_unet() -> UNet2DConditionModel:
    """A UNet over 16 x 16 x 8 with three levels, cross-attention in the lower two."""
    return UNet2DConditionModel(
        sample_size=16, in_channels=8, out_channels=8, block_out_channels=(32, 64, 128), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128, attention_head_dim=4, norm_num_groups=8,
    )  # fmt: skip


def make_scheduler() -> DDIMScheduler:
    """v-prediction with zero terminal SNR and trailing steps (Lin et al. 2024, arXiv 2305.08891).

    Without zero terminal SNR, training never contains pure noise, from which sampling starts; the model then cannot set the
    image's mean, and the background's colour is wrong.
    """
    return DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False,
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", steps_offset=1,
    )  # fmt: skip
