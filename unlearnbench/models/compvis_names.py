"""A Stable Diffusion 1 or XL pipeline under the names of its original single file, CompVis' and Stability AI's.

The inverse of what diffusers' `from_single_file` reads. Names after CompVis/stable-diffusion, ldm/modules/diffusionmodules
(openaimodel.py, model.py), Stability-AI/generative-models (sgm) and mlfoundations/open_clip, whose text encoder is SDXL's
second.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

UNET, VAE = "model.diffusion_model.", "first_stage_model."
ONLY_ENCODER = "cond_stage_model.transformer.text_model."
FIRST_ENCODER, SECOND_ENCODER = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
SINGLE_LAYERS = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2", "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2", "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2", "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1", "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip
RESNET_LAYERS = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
VAE_LAYERS = {
    "conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut", "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2", "mid_block.attentions.0": "mid.attn_1", "group_norm": "norm", "to_q": "q",
    "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "downsamplers.0": "downsample", "upsamplers.0": "upsample",
}  # fmt: skip
OPEN_CLIP_LAYERS = {
    "encoder.layers": "transformer.resblocks", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj", "final_layer_norm": "ln_final",
    "embeddings.token_embedding": "token_embedding", "embeddings.position_embedding.weight": "positional_embedding",
}  # fmt: skip


def unet_names(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """The CompVis name of layers or parameters of diffusers' UNet, both without a prefix.

    Args:
        names: in diffusers' form, such as down_blocks.0.attentions.1.proj_in.weight.
        config: the UNet's settings; read are `layers_per_block` (one number) and `up_block_types`.

    Examples:
        >>> config = {"layers_per_block": 2, "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}
        >>> list(unet_names(["down_blocks.1.attentions.0.norm", "up_blocks.0.upsamplers.0.conv"], config).values())
        ['input_blocks.4.1.norm', 'output_blocks.2.1.conv']
    """
    return {name: _unet_name(name, config["layers_per_block"], config["up_block_types"]) for name in names}


def _unet_name(name: str, layers: int, up_block_types: list[str]) -> str:
    name = _replaced(name, SINGLE_LAYERS)
    if match := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)", name):
        side, block, kind, number = match[1], int(match[2]), match[3], int(match[4])
        first = block * (layers + 1) + (side == "down")
        rest = name[match.end() :]
        if kind == "downsamplers":
            name = f"input_blocks.{first + layers}.0{rest.replace('.conv', '.op')}"
        elif kind == "upsamplers":
            name = f"output_blocks.{first + layers}.{1 + ('Attn' in up_block_types[block])}{rest}"
        else:
            name = f"{'input' if side == 'down' else 'output'}_blocks.{first + number}.{int(kind == 'attentions')}{rest}"
    return name if "transformer_blocks" in name else _replaced(name, RESNET_LAYERS)


def _replaced(name: str, layers: Mapping[str, str]) -> str:
    """The name with the layers renamed that it contains whole."""
    for ours, theirs in layers.items():
        name = re.sub(rf"(?<![^.]){re.escape(ours)}(?![^.])", theirs, name)
    return name


def _vae_tensor(name: str, value: Tensor, blocks: int) -> tuple[str, Tensor]:
    """The name and the value of a parameter of the autoencoder; linear layers of its attention become 1 x 1 convolutions."""
    name = _replaced(name, VAE_LAYERS)
    name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda match: f"up.{blocks - 1 - int(match[1])}.block", name)
    name = re.sub(r"down_blocks\.(\d+)\.", r"down.\1.", name)
    name = re.sub(r"up_blocks\.(\d+)\.", lambda match: f"up.{blocks - 1 - int(match[1])}.", name)
    is_projection = ".attn_1." in name and value.ndim == 2
    return f"{VAE}{name}", value[:, :, None, None] if is_projection else value


def open_clip_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a CLIPTextModelWithProjection in open_clip's names: query, key and value are one matrix."""
    bare = {name.removeprefix("text_model."): value for name, value in weights.items()}
    renamed = {}
    for name, value in bare.items():
        if re.search(r"self_attn\.[kv]_proj", name):
            continue
        if "self_attn.q_proj" in name:
            value = torch.cat([bare[name.replace("q_proj", f"{one}_proj")] for one in "qkv"])
            name = name.replace("self_attn.q_proj.", "attn.in_proj_")
        if name == "text_projection.weight":
            name, value = "text_projection", value.T
        renamed[_replaced(name, OPEN_CLIP_LAYERS)] = value
    return renamed


def single_file_weights(pipeline: Any) -> dict[str, Tensor]:
    """The weights of a Stable Diffusion 1 or XL pipeline under the names of its original single file.

    Args:
        pipeline: of diffusers: its unet, vae and text encoders are read.
    """
    weights: dict[str, Tensor] = {}
    unet = pipeline.unet.state_dict()
    for name, theirs in unet_names(unet, pipeline.unet.config).items():
        weights[f"{UNET}{theirs}"] = unet[name]
    blocks = len(pipeline.vae.config.block_out_channels)
    weights |= (_vae_tensor(name, value, blocks) for name, value in pipeline.vae.state_dict().items())
    second = getattr(pipeline, "text_encoder_2", None)
    prefix = ONLY_ENCODER if second is None else FIRST_ENCODER
    for name, value in pipeline.text_encoder.state_dict().items():
        weights[f"{prefix}{name.removeprefix('text_model.')}"] = value
    if second is not None:
        weights |= {f"{SECOND_ENCODER}{name}": value for name, value in open_clip_weights(second.state_dict()).items()}
    return {name: value.contiguous() for name, value in weights.items()}
