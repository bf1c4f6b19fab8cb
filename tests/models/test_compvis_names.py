"""The names of original single files: what is written under them, diffusers reads back as it was."""

from __future__ import annotations

import pytest
import torch
from full_pipelines import make_full_pipeline
from safetensors.torch import save_file

from unlearnbench.models.compvis_names import single_file_weights


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_diffusers_reads_each_parameter_of_a_single_file_back(family, tmp_path):
    pipeline = make_full_pipeline(family)
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
    names = single_file_weights(make_full_pipeline("sdxl")).keys()
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
