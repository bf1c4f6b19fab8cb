"""A run's low-rank adapter as a file in diffusers' names, and in kohya's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlearnbench.storage.tensors import read_tensors, write_tensors

LORA_FILE = "lora.safetensors"


def save_lora_stage(path: Path, stage: int, lora: dict[str, Tensor], original: str) -> int:
    """Save the adapter of a stage of unlearning together with those of the stages before it.

    The weight after n stages is W + B_1 A_1 + ... + B_n A_n. One adapter holds them all: its A are stacked along the rows,
    its B along the columns. The file's note has the rank of each stage, so that a stage which is repeated replaces what it
    saved before.

    Args:
        path: the file; the stages before are read from it. Nothing is written if one of them is missing.
        stage: the number of the stage, from 0.
        lora: A and B of each layer, by name: `lora_tensors`.
        original: the path of the original model, for the note.

    Returns:
        How many numbers the adapter has; 0 if nothing was written.
    """
    if stage and not path.is_file():
        return 0
    earlier, note = read_tensors(path) if stage else ({}, {"ranks": []})
    ranks = note["ranks"][:stage]
    if len(ranks) < stage:
        return 0
    stacked = {}
    for name, value in lora.items():
        rank_dimension = 0 if name.endswith(".lora_A.weight") else 1
        before = [earlier[name].narrow(rank_dimension, 0, sum(ranks))] if stage else []
        stacked[name] = torch.cat([*before, value.detach().cpu()], rank_dimension)
    rank = next(len(value) for name, value in lora.items() if name.endswith(".lora_A.weight"))
    write_tensors(path, stacked, {"original": original, "ranks": [*ranks, rank]})
    return sum(value.numel() for value in stacked.values())


def lora_weights(names: Sequence[str]) -> set[str]:
    """The weights that an adapter with these names changes."""
    return {f"{name.removesuffix('.lora_A.weight')}.weight" for name in names if name.endswith(".lora_A.weight")}


def in_kohya_names(lora: dict[str, Tensor], unet_names: dict[str, str], encoders: int) -> dict[str, Tensor]:
    """A LoRA of a UNet and CLIP encoders in kohya's names, with alpha = rank.

    Names after kohya-ss/sd-scripts, networks/lora.py: `lora_unet_` or `lora_te_` (`lora_te1_`, `lora_te2_` where there are
    two encoders) and the path of the layer with "_" for "."; the path of an encoder's layer begins with text_model.

    Args:
        lora: A and B of each layer, by name.
        unet_names: another name for layers of the UNet, such as that of CompVis' UNet, which kohya uses for SDXL.
        encoders: the number of text encoders of the model.
    """
    renamed: dict[str, Tensor] = {}
    for name, down in lora.items():
        if not name.endswith(".lora_A.weight"):
            continue
        layer = name.removesuffix(".lora_A.weight")
        part, _, path = layer.partition(".")
        if part == "unet":
            prefix, path = "lora_unet", unet_names.get(path, path)
        else:
            prefix = "lora_te" if encoders == 1 else {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}[part]
            path = f"text_model.{path.removeprefix('text_model.')}"
        key = f"{prefix}_{path.replace('.', '_')}"
        renamed[f"{key}.lora_down.weight"] = down
        renamed[f"{key}.lora_up.weight"] = lora[f"{layer}.lora_B.weight"]
        renamed[f"{key}.alpha"] = torch.tensor(float(len(down)))
    return renamed


def kohya_metadata(lora: dict[str, Tensor], family: str) -> dict[str, Any]:
    """The metadata by which programs with kohya's names show a LoRA."""
    rank = next(len(value) for name, value in lora.items() if name.endswith(".lora_A.weight"))
    return {
        "ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(rank),
        "ss_base_model_version": family,
    }  # fmt: skip
