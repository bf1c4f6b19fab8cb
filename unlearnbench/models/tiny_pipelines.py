"""A tiny random pipeline of every model family, created in memory: for tests and smoke tests without a hub."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from unlearnbench.pictoworld.architecture import TOKENS, make_tokenizer

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
WORDS = ("a", "the", "red", "blue", "church", "house", "star", "tree", "fish", "on", "left", "of", "large", "picture")


def make_tiny_pipeline(family: str) -> Any:
    """The pipeline of a family (a name of conf/model), the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {"sd15": _sd15, "sd21": _sd21, "sdxl": _sdxl, "sd3": _sd3, "flux": _flux}[family]()


def _sd15() -> Any:
    return _stable_diffusion(PNDMScheduler(**NOISE, skip_prk_steps=True, steps_offset=1))


def _sd21() -> Any:
    return _stable_diffusion(DDIMScheduler(**NOISE, prediction_type="v_prediction", clip_sample=False, steps_offset=1))


def _stable_diffusion(scheduler: Any) -> Any:
    tokenizer = _tokens()
    return StableDiffusionPipeline(
        vae=_vae(), text_encoder=_clip(tokenizer), tokenizer=tokenizer, unet=_unet(cross_attention_dim=16), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _sdxl() -> Any:
    tokenizer = _tokens()
    unet = _unet(
        cross_attention_dim=32, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 12,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=_vae(), text_encoder=_clip(tokenizer), tokenizer=tokenizer, text_encoder_2=_clip(tokenizer, projected=True),
        tokenizer_2=tokenizer, unet=unet, scheduler=EulerDiscreteScheduler(**NOISE, timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    )  # fmt: skip


def _sd3() -> Any:
    tokenizer = _tokens()
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=40, caption_projection_dim=16, pooled_projection_dim=24, pos_embed_max_size=8,
        dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=_vae(shift_factor=0.06),
        text_encoder=_clip(tokenizer, projected=True), tokenizer=tokenizer,
        text_encoder_2=_clip(tokenizer, projected=True), tokenizer_2=tokenizer, text_encoder_3=_t5(40), tokenizer_3=_words(),
    )  # fmt: skip


def _flux() -> Any:
    tokenizer = _tokens()
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=24, pooled_projection_dim=16, guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    return FluxPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae=_vae(shift_factor=0.1),
        text_encoder=_clip(tokenizer), tokenizer=tokenizer, text_encoder_2=_t5(24), tokenizer_2=_words(),
    )  # fmt: skip


def _unet(**settings: Any) -> Any:
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2, norm_num_groups=4, **settings,
    )  # fmt: skip


def _vae(**settings: Any) -> Any:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=32,
        mid_block_add_attention=False, **settings,
    )  # fmt: skip


def _clip(tokenizer: Any, projected: bool = False) -> Any:
    end = tokenizer.eos_token_id
    settings = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=TOKENS, projection_dim=12, eos_token_id=end, bos_token_id=0, pad_token_id=end,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(settings)


def _t5(width: int) -> Any:
    settings = T5Config(vocab_size=len(_words()), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return T5EncoderModel(settings)


@functools.cache
def _tokens() -> Any:
    return make_tokenizer()


def _words() -> Any:
    known = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((f"▁{word}", -1.0) for word in WORDS)]
    return T5Tokenizer(vocab=known, extra_ids=0)


def tiny_overrides(family: str, path: Path | str) -> list[str]:
    """The overrides that choose a tiny checkpoint of this family, saved at `path`."""
    tiny = ["model.domain=pictoworld", "model.size=32", "model.steps=3", "model.guidance=2.0", "model.dtype=fp32"]
    return [f"model={family}", f"model.path={path}", *tiny, *(["model.tokens=8"] if family in ("sd3", "flux") else [])]
