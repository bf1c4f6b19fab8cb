"""The names of original single files: what is written under them, diffusers reads back as it was."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from unlearnbench.models.compvis_names import single_file_weights
from unlearnbench.models.tiny_pipelines import make_tiny_pipeline

NARROW, WIDE = 16, 24  # the widths of the text encoders, which differ as SDXL's do


def blocks(attends):
    return tuple(f"{'CrossAttn' * (cross == 'x')}DownBlock2D" for cross in attends)


def like_the_original(family):
    """A pipeline with all kinds of layers that the real one has: two layers a block, attention in the autoencoder."""
    pipeline = make_tiny_pipeline(family)
    downs = blocks("-x" if family == "sdxl" else "x-")
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


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_diffusers_reads_each_parameter_of_a_single_file_back(family, tmp_path):
    pipeline = like_the_original(family)
    pipeline.save_pretrained(tmp_path / "folder")
    weights = single_file_weights(pipeline)
    save_file(weights, tmp_path / "model.safetensors")
    again = type(pipeline).from_single_file(str(tmp_path / "model.safetensors"), config=str(tmp_path / "folder"))
    parts = [part for part in ("unet", "vae", "text_encoder", "text_encoder_2") if hasattr(pipeline, part)]
    for part in parts:
        before, after = (getattr(one, part).state_dict() for one in (pipeline, again))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before), part
    in_projections = sum(name.endswith(("in_proj_weight", "in_proj_bias")) for name in weights)
    saved = sum(len(getattr(pipeline, part).state_dict()) for part in parts)
    assert len(weights) == saved - 2 * in_projections  # query, key and value are one tensor in open_clip


def test_names_are_those_of_the_original_files():
    names = single_file_weights(like_the_original("sdxl")).keys()
    assert {
        "model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.input_blocks.3.0.op.weight",
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.1.attn2.to_k.weight",
        "model.diffusion_model.output_blocks.2.2.conv.weight", "model.diffusion_model.output_blocks.0.0.skip_connection.weight",
        "model.diffusion_model.middle_block.1.proj_in.weight", "model.diffusion_model.label_emb.0.2.bias",
        "model.diffusion_model.time_embed.0.weight", "model.diffusion_model.out.2.weight",
        "first_stage_model.encoder.mid.attn_1.q.weight", "first_stage_model.decoder.up.2.upsample.conv.weight",
        "first_stage_model.encoder.down.1.block.0.nin_shortcut.weight", "first_stage_model.post_quant_conv.weight",
        "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
        "conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_weight",
        "conditioner.embedders.1.model.positional_embedding", "conditioner.embedders.1.model.text_projection",
    } <= names  # fmt: skip
