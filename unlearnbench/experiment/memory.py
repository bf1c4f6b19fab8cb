"""The least memory of a GPU that a run needs, counted from the checkpoint's headers; and the peak that it used."""

from __future__ import annotations

import math
import re
import sys
from contextlib import suppress
from pathlib import Path

import torch

from unlearnbench.algos.base import Unlearner
from unlearnbench.models.base import DTYPES, TextToImage
from unlearnbench.models.checkpoint_headers import shapes_of_folder
from unlearnbench.models.diffusers_model import DiffusersModel
from unlearnbench.models.parameters import name_pattern

CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")  # of Linux
EMBEDDING = re.compile(r"embed|shared|relative_attention_bias")  # matrices of text encoders that are looked up


def least_memory(model: DiffusersModel, algo: Unlearner, folder: Path) -> int:
    """Bytes of the weights and of the training state, without activations.

    A parameter that trains is stored in fp32, with a gradient and Adam's two moments: 16 bytes, or 10 with 8-bit Adam; the
    original value is stored in `dtype` as well. An adapter of a weight (rows, columns) trains rank (rows + columns) parameters;
    a preconditioned one trains rows * columns, and stores columns^2 numbers in fp32 that do not train.
    A method may precondition other weights than those that `train` selects (`Unlearner.preconditioned`).
    """
    bytes_each = DTYPES[model.dtype].itemsize
    pattern = name_pattern(model, algo.selection)
    rank = getattr(algo, "rank", 0) if algo.lora is None else algo.lora
    preconditioned = name_pattern(model, algo.preconditioned) if algo.preconditioned else None
    frozen = trained = covariance = 0
    for name, shape in shapes_of_folder(folder, model.parts).items():
        count = math.prod(shape)
        if algo.steps == 0:
            frozen += count
        elif preconditioned is not None and preconditioned.search(name):
            frozen += count
            if len(shape) == 2 and not EMBEDDING.search(name):
                trained, covariance = trained + count, covariance + 4 * shape[1] ** 2
        elif not pattern.search(name):
            frozen += count
        elif rank and len(shape) > 1:
            frozen, trained = frozen + count, trained + rank * (shape[0] + count // shape[0])
        else:
            trained += count
    return frozen * bytes_each + covariance + trained * (bytes_each + (10 if model.adam8bit else 16))


def text_encoder_memory(model: DiffusersModel, folder: Path) -> int:
    """Bytes of the text encoders in the model's precision."""
    encoders = tuple(part for part in model.parts if part.startswith("text_encoder"))
    return sum(map(math.prod, shapes_of_folder(folder, encoders).values())) * DTYPES[model.dtype].itemsize


def memory_problem(model: TextToImage, algo: Unlearner, device: torch.device) -> str | None:
    """Why the run does not fit into the GPU's memory, with the repair; None if it may fit or the model is not downloaded yet."""
    if device.type != "cuda" or not isinstance(model, DiffusersModel) or (folder := model.local_folder()) is None:
        return None
    needed, available = least_memory(model, algo, folder), torch.cuda.get_device_properties(device).total_memory
    if needed <= available:
        return None
    return (
        f"model.path={model.path}: weights and training state need {needed / 1e9:.1f} GB without activations, "
        f"and {torch.cuda.get_device_name(device)} has {available / 1e9:.1f}; try {_repair(model, algo)}"
    )


def _repair(model: DiffusersModel, algo: Unlearner) -> str:
    """Settings that need less memory and are not set yet."""
    settings = ["model.dtype=bf16"] if model.dtype == "fp32" else []
    settings += [] if model.adam8bit else ["model.adam8bit=true"]
    if algo.train != "text_encoder" and not algo.no_lora_reason:
        settings.append("algo.train=lora")
    elif "text_encoder_3" in model.parts:
        settings.append("algo.train='^text_encoder(_2)?[.]', which leaves T5 out")
    return " or ".join([*settings, "another algorithm"])


def reset_peak_memory() -> None:
    """Forget the process's peak memory of earlier runs, on Linux."""
    with suppress(OSError):
        CLEAR_REFS.write_text("5")


def peak_memory(device: torch.device) -> float:
    """Peak memory in 2^20 bytes: of the GPU since unlearning began; else of the process, on Linux since the run began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if match := re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text() if STATUS.exists() else ""):
        return int(match.group(1)) / 2**10
    try:
        import resource
    except ImportError:  # on Windows
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
