"""Pickles of PyTorch (.pt, .pth, .bin, .ckpt) turned into safetensors: tensors alone, no code is run."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from unlearnbench.config.errors import UserError, first_line
from unlearnbench.storage.atomic import atomic_path

ZIP, PICKLE_PROTOCOL = b"PK\x03\x04", b"\x80"  # how the two formats of torch.save begin
REFUSED_CLASS = re.compile(r"(?:GLOBAL|class|import) `?((?!WeightsUnpickler)[\w.]+\.\w+)`?")


@dataclass(frozen=True)
class Conversion:
    """What `convert_pickle` wrote.

    Attributes:
        tensors: how many.
        size: bytes of the new file.
        left_out: the names of what is no tensor.
    """

    tensors: int
    size: int
    left_out: list[str]


def is_pickle(path: Path) -> bool:
    """Whether a file begins as those of torch.save do."""
    with path.open("rb") as file:
        start = file.read(9)
    is_safetensors = start[8:] == b"{"  # after the length of the header, which may have any bytes
    return not is_safetensors and start.startswith((ZIP, PICKLE_PROTOCOL))


def convert_pickle(old: Path, new: Path) -> Conversion:
    """Write the tensors of a pickle to a safetensors file, atomically.

    The pickle is opened by torch.load(weights_only=True), which runs no code. Names of nested mappings are joined by dots. Of
    a checkpoint with a `state_dict`, only that is taken.

    Raises:
        UserError: it cannot be opened so, or holds no named tensors; nothing is written.
    """
    tensors: dict[str, torch.Tensor] = {}
    left_out: list[str] = []
    for name, value in _leaves(_state_dict(_load(old), left_out)):
        if isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized:
            tensors[name] = value.detach().clone().contiguous()  # safetensors refuses tensors that share memory
        else:
            left_out.append(name)
    if not tensors:
        raise UserError(f"{old}: holds no named tensor; a state dict of weights was expected")
    with atomic_path(new) as temporary:
        save_file(tensors, temporary, {"format": "pt"})  # without it transformers refuses the file
        temporary.chmod(0o644)
    return Conversion(len(tensors), new.stat().st_size, left_out)


def _load(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if not is_pickle(path):
        raise UserError(f"{path}: not a file of torch.save; a .safetensors file needs no conversion")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        match = REFUSED_CLASS.search(str(error))
        content = f"an object of {match[1]}" if match else "an object that is no tensor"
        repair = "where you trust it, load it and save its tensors alone by safetensors.torch.save_file"
        raise UserError(f"{path}: holds {content}, which torch.load(weights_only=True) refuses; {repair}") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise UserError(f"{path}: damaged or cut short ({first_line(error)}); fetch it again") from error


def _state_dict(content: Any, left_out: list[str]) -> Mapping[Any, Any]:
    """The mapping that holds the weights; the names of what lies beside it are added to `left_out`."""
    if not isinstance(content, Mapping):
        return {}
    nested = content.get("state_dict")
    if not isinstance(nested, Mapping):
        return content
    left_out += [str(name) for name in content if name != "state_dict"]
    return nested


def _leaves(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
