"""How much of a GPU's memory a run takes at least: counted from the checkpoint's headers, before anything is loaded."""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch

from unlearnbench.algos.base import Unlearner
from unlearnbench.models.base import DTYPES, TextToImage
from unlearnbench.models.checkpoint_headers import shapes_of_folder
from unlearnbench.models.diffusers_model import DiffusersModel
from unlearnbench.models.parameters import name_pattern

EMBEDDING = re.compile(r"embed|shared|relative_attention_bias")  # matrices of text encoders that no layer multiplies with


def least_memory(model: DiffusersModel, algo: Unlearner, folder: Path) -> int:
    """Bytes of the weights, and of what training adds, without a single activation.

    A parameter that trains is held in fp32, with a gradient and Adam's two moments: 16 bytes, or 10 with 8-bit Adam; besides it
    the original's value in `dtype`, as one that does not train. An adapter of a weight (rows, columns) has rank (rows + columns)
    of them; a whitened one rows columns, and columns^2 numbers in fp32 that do not train.
    """
    held = DTYPES[model.dtype].itemsize
    pattern = name_pattern(model, algo.selection)
    rank = getattr(algo, "rank", 0) if algo.lora is None else algo.lora
    whitened = getattr(algo, "whiten", 0) > 0
    frozen = trained = white = 0
    for name, shape in shapes_of_folder(folder, model.parts).items():
        count = math.prod(shape)
        if algo.steps == 0 or not pattern.search(name):
            frozen += count
        elif rank and len(shape) > 1:
            frozen, trained = frozen + count, trained + rank * (shape[0] + count // shape[0])
        elif whitened:
            frozen += count
            if len(shape) == 2 and not EMBEDDING.search(name):
                trained, white = trained + count, white + 4 * shape[1] ** 2
        else:
            trained += count
    return frozen * held + white + trained * (held + (10 if model.adam8bit else 16))


def memory_problem(model: TextToImage, algo: Unlearner, device: torch.device) -> str | None:
    """What keeps the run from fitting a GPU, with the repair; None where it may fit, or nothing is known before a download."""
    if device.type != "cuda" or not isinstance(model, DiffusersModel) or (folder := model.local_folder()) is None:
        return None
    wanted, there = least_memory(model, algo, folder), torch.cuda.get_device_properties(device).total_memory
    if wanted <= there:
        return None
    return (
        f"model.path={model.path}: weights and training state take {wanted / 1e9:.1f} GB before any activation, "
        f"and {torch.cuda.get_device_name(device)} has {there / 1e9:.1f}; try {_repair(model, algo)}"
    )


def _repair(model: DiffusersModel, algo: Unlearner) -> str:
    """What takes less and is not set yet."""
    ways = ["model.dtype=bf16"] if model.dtype == "fp32" else []
    ways += [] if model.adam8bit else ["model.adam8bit=true"]
    if algo.train != "text_encoder":
        ways.append("algo.train=lora")
    elif "text_encoder_3" in model.parts:
        ways.append("algo.train='^text_encoder(_2)?[.]', which leaves T5 out")
    return " or ".join([*ways, "another algorithm"])
