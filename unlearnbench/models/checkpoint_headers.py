"""The names and shapes of a model's parameters, from the headers of its safetensors files; nothing is loaded."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from unlearnbench.config.errors import UserError
from unlearnbench.models.adapters.bottleneck import CROSS_ATTENTION
from unlearnbench.models.adapters.gated_lora import MEMBRANES
from unlearnbench.models.base import TextToImage
from unlearnbench.models.checkpoint_parts import is_left_out, read_index
from unlearnbench.models.diffusers_model import DiffusersModel
from unlearnbench.models.tiny import Tiny
from unlearnbench.storage.tensors import SCALE

Shapes = dict[str, list[int]]


def shapes_of_file(path: Path) -> Shapes:
    """The shape of every tensor in a file, by name.

    Raises:
        SafetensorError: the file is damaged.
    """
    with safe_open(path, framework="pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys() if not name.endswith(SCALE)}  # noqa: SIM118


def shapes_of_folder(folder: Path, parts: tuple[str, ...]) -> Shapes:
    """The shape of every parameter of these parts of a pipeline folder, by name; damaged files are left out."""
    shapes: Shapes = {}
    for part in parts:
        for path in sorted((folder / part).glob("*.safetensors")):
            with suppress(SafetensorError, OSError):
                shapes |= {f"{part}.{name}": shape for name, shape in shapes_of_file(path).items()}
    return shapes


def shapes_of_model(model: TextToImage) -> Shapes:
    """The shape of every parameter of a loaded model, by name."""
    return {name: list(parameter.shape) for name, parameter in model.named_parameters()}


def known_shapes(model: TextToImage) -> Shapes | None:
    """The shape of every parameter of the model, by name; None if some of its parts are not on this machine."""
    if isinstance(model, Tiny):
        return shapes_of_model(model.load(torch.device("cpu")))
    if isinstance(model, DiffusersModel) and model.pipeline is not None:
        return shapes_of_model(model)
    folder = model.local_folder() if isinstance(model, DiffusersModel) else None
    if folder is None or not isinstance(model, DiffusersModel):
        return None
    try:
        index = read_index(folder)
    except UserError:
        return None
    shapes = shapes_of_folder(folder, model.parts)
    parts = {part for part in model.parts if not (part in model.optional_parts and is_left_out(index, part))}
    return shapes if {name.partition(".")[0] for name in shapes} == parts else None


def name_variants(name: str) -> tuple[str, str]:
    """A parameter's name in transformers 5, and in earlier versions, whose CLIP parameters are below `text_model`."""
    part, _, rest = name.replace(".text_model.", ".", 1).partition(".")
    return f"{part}.{rest}", f"{part}.text_model.{rest}" if part.startswith("text_encoder") else f"{part}.{rest}"


def incompatible_weights(path: Path, model: TextToImage) -> str | None:
    """Why saved weights do not fit the model; None if they do, or if the model's parameters are unknown before it is loaded."""
    try:
        saved = shapes_of_file(path)
    except (SafetensorError, OSError) as error:
        return f"{path}: cannot be read as safetensors ({error})"
    model_shapes = known_shapes(model)
    if model_shapes is None:
        return None
    expected = {name_variants(name)[0]: shape for name, shape in model_shapes.items()}
    for name, shape in saved.items():
        of_adapter = f"{CROSS_ATTENTION}.to_out.1." in name or f".{MEMBRANES}." in name
        if not of_adapter and not name.startswith("vae.") and expected.get(name_variants(name)[0]) != shape:
            return f"{path}: {name} does not fit {model.path}; these weights belong to another model"
    return None
