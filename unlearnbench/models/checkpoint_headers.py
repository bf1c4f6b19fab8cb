"""What the headers of safetensors files tell of a model's parameters before anything is loaded: their names and shapes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open

from unlearnbench.models.adapters.bottleneck import PLACE
from unlearnbench.models.adapters.gated_lora import MEMBRANES
from unlearnbench.models.base import TextToImage
from unlearnbench.models.diffusers_model import DiffusersModel
from unlearnbench.storage.tensors import SCALE

Shapes = dict[str, list[int]]


def shapes_of_file(path: Path) -> Shapes:
    """The shape of everything in a file, by name; no number is read.

    Raises:
        SafetensorError: it is damaged, or no such file.
    """
    with safe_open(path, framework="pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys() if not name.endswith(SCALE)}  # noqa: SIM118


def shapes_of_folder(folder: Path, parts: tuple[str, ...]) -> Shapes:
    """The shape of every parameter of these parts of a pipeline folder, by name, less those of damaged files."""
    found: Shapes = {}
    for part in parts:
        for path in sorted((folder / part).glob("*.safetensors")):
            with suppress(SafetensorError):
                found |= {f"{part}.{name}": shape for name, shape in shapes_of_file(path).items()}
    return found


def known_shapes(model: TextToImage) -> Shapes | None:
    """The shape of every parameter of the model, by name; None where not all its parts are on this machine."""
    folder = model.local() if isinstance(model, DiffusersModel) else None
    found = {} if folder is None else shapes_of_folder(folder, model.parts)
    return found if {name.partition(".")[0] for name in found} == {*model.parts} else None


def name_variants(name: str) -> tuple[str, str]:
    """A name as transformers 5 has it, and as earlier versions, in which CLIP's parameters lie in `text_model`."""
    part, _, rest = name.replace(".text_model.", ".", 1).partition(".")
    return f"{part}.{rest}", f"{part}.text_model.{rest}" if part.startswith("text_encoder") else f"{part}.{rest}"


def incompatible_weights(path: Path, model: TextToImage) -> str | None:
    """Why saved weights cannot be put over the model's; None if they can, or nothing is known of it before it is loaded."""
    try:
        saved = shapes_of_file(path)
    except (SafetensorError, OSError) as error:
        return f"{path}: cannot be read as safetensors ({error})"
    there = known_shapes(model)
    if there is None:
        return None
    fitting = {name_variants(name)[0]: shape for name, shape in there.items()}
    for name, shape in saved.items():
        added = f"{PLACE}.to_out.1." in name or f".{MEMBRANES}." in name  # for which the model makes room
        if not added and not name.startswith("vae.") and fitting.get(name_variants(name)[0]) != shape:
            return f"{path}: {name} does not fit {model.path}; these weights belong to another model"
    return None
