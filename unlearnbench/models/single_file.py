"""What a single file of weights says by the names of its tensors: whether a model is whole, and where its settings are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

PARTS = {  # of Stable Diffusion 1, 2 and XL, after CompVis/stable-diffusion and Stability-AI/generative-models
    "unet": ("model.diffusion_model.",),
    "autoencoder": ("first_stage_model.",),
    "text encoder": ("cond_stage_model.", "conditioner.embedders."),
}
TRANSFORMER = ("double_blocks.", "joint_blocks.", "transformer_blocks.")  # of Flux and Stable Diffusion 3, and in diffusers


def content_problem(path: Path, is_whole: bool) -> str | None:
    """Why a file cannot be loaded as a single file, and the repair; None if it holds the parts that it has to.

    Args:
        path: a safetensors file.
        is_whole: whether it has to hold all parts of the model, or the transformer alone.
    """
    names = _shapes(path)
    if not is_whole:
        has_transformer = any(block in name for name in names for block in TRANSFORMER)
        return None if has_transformer else f"{path}: not a transformer, by the names of its tensors; name the file of one"
    missing = [part for part, prefixes in PARTS.items() if not any(name.startswith(prefixes) for name in names)]
    if not missing:
        return None
    repair = "name a file of a whole model, or a folder in diffusers' layout"
    if "unet" not in missing:
        repair += "; the denoiser of an unlearned model alone goes to algo=checkpoint algo.weights=FILE"
    return f"{path}: no {', no '.join(missing)} in it, by the names of its tensors; {repair}"


def default_settings(path: Path) -> str:
    """The hub id of the model whose settings diffusers takes for a single file without `model.config`, by its tensors."""
    from diffusers.loaders.single_file_utils import fetch_diffusers_config

    tensors = {name: torch.empty(shape, device="meta") for name, shape in _shapes(path).items()}
    return str(fetch_diffusers_config(tensors)["pretrained_model_name_or_path"])


def _shapes(path: Path) -> Mapping[str, list[int]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
