"""The networks of the embedded model, untrained."""

from __future__ import annotations

import json
from functools import cache

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from unlearnbench.pictoworld.captions import corpus

TOKENS = 32


# --- the parts of the pipeline ----------------------------------------------------------------------------------------


def make_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer, trained on Pictoworld's language: each of its words is one token, any other word several."""
    vocab, merges = train_byte_pairs()
    return CLIPTokenizer(vocab=dict(vocab), merges=list(merges), model_max_length=TOKENS)


@cache
def train_byte_pairs() -> tuple[dict[str, int], list[tuple[str, ...]]]:
    """The tokenizer's vocabulary and merges; trained once in a process, which takes seconds."""
    special = ["<|startoftext|>", "<|endoftext|>"]
    bpe = Tokenizer(models.BPE(unk_token=special[1], end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = [chr(c) for c in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=2_000, special_tokens=special, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator([*corpus(), *letters, " ".join(letters)], trainer)
    model = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) if not isinstance(pair, str) else tuple(pair.split(" ")) for pair in model["merges"]]
    merged = ["".join(pair) for pair in merges]
    single = sorted(set(model["vocab"]) - {*special, *merged})  # the trainer's order of these varies
    return {token: number for number, token in enumerate(dict.fromkeys([*special, *single, *merged]))}, merges


def make_vae() -> AutoencoderKL:
    """An autoencoder from 64 x 64 x 3 to 16 x 16 x 8."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64), layers_per_block=1, latent_channels=8, norm_num_groups=8,
        sample_size=64, mid_block_add_attention=False,
    )  # fmt: skip


def make_text_encoder(vocabulary: int, end: int) -> CLIPTextModel:
    """A CLIP text encoder with two layers of width 128."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=TOKENS, projection_dim=128, eos_token_id=end, bos_token_id=0, pad_token_id=end,
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
