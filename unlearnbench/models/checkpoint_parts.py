"""The parts of a pipeline folder: which files are missing or damaged, and their settings; no weights are read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from unlearnbench.config.errors import UserError
from unlearnbench.models.checkpoint_variants import INDEX_FILE, local_variant

INDEX = "model_index.json"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model")
NEVER_LOADED = ("safety_checker",)
LFS_POINTER = b"version https://git-lfs"

Configs = dict[str, dict[str, Any]]


def read_settings(path: Path) -> dict[str, Any]:
    """The content of a JSON file with settings.

    Raises:
        UserError: it is no JSON, or not a mapping.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); fetch it again") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path}: not a mapping of settings; fetch it again")
    return settings


def read_index(folder: Path) -> dict[str, Any]:
    """The content of a pipeline folder's model_index.json.

    Raises:
        UserError: it is damaged.
    """
    return read_settings(folder / INDEX)


def is_left_out(index: dict[str, Any], part: str) -> bool:
    """Whether the checkpoint was saved without this part."""
    return index.get(part) == [None, None]


def part_configs(folder: Path, parts: tuple[str, ...]) -> Configs:
    """The settings of each part that has a config.json, and of the scheduler.

    Raises:
        UserError: one is damaged.
    """
    paths = {part: folder / part / "config.json" for part in parts} | {"scheduler": folder / "scheduler/scheduler_config.json"}
    return {part: read_settings(path) for part, path in paths.items() if path.is_file()}


def file_names(folder: Path, parts: tuple[str, ...]) -> list[str]:
    """The files of these parts that are on this machine, relative to the folder of the pipeline."""
    return [f"{part}/{path.name}" for part in parts for path in sorted((folder / part).glob("*")) if path.is_file()]


def missing_files(
    folder: Path, index: dict[str, Any], parts: tuple[str, ...], optional: tuple[str, ...] = (), variant: str | None = None
) -> list[str]:
    """The files without which diffusers cannot load the pipeline, relative to its folder.

    Args:
        folder: a folder in diffusers' layout.
        index: the content of its model_index.json.
        parts: the parts that have weights.
        optional: the parts that a checkpoint may leave out.
        variant: the variant of the weights that the user names; None takes what is whole.
    """
    required = _required(index, parts, optional)
    chosen, without = local_variant(file_names(folder, required), required, variant)
    missing = missing_settings(folder, index, parts, optional)
    for part in required:
        shards = _missing_shards(folder, part, chosen)
        missing += shards or [name for name in without if name.startswith(f"{part}/")]
    return missing


def missing_settings(folder: Path, index: dict[str, Any], parts: tuple[str, ...], optional: tuple[str, ...] = ()) -> list[str]:
    """Those of the files of `missing_files` that are no weights: settings and tokenizers."""
    missing = []
    for part in _required(index, parts, optional):
        if not (folder / part / "config.json").is_file():
            missing.append(f"{part}/config.json")
        tokenizer = part.replace("text_encoder", "tokenizer")
        if tokenizer != part and not any((folder / tokenizer / name).is_file() for name in TOKENIZER_FILES):
            missing.append(f"{tokenizer}/tokenizer.json")
    if not (folder / "scheduler/scheduler_config.json").is_file():
        missing.append("scheduler/scheduler_config.json")
    known = {"scheduler", *parts, *(part.replace("text_encoder", "tokenizer") for part in parts), *NEVER_LOADED}
    for name, saved in index.items():
        is_part = isinstance(saved, list) and saved != [None, None] and name not in known
        if is_part and not any((folder / name).glob("*.json")):
            missing.append(f"{name}/")
    return missing


def _required(index: dict[str, Any], parts: tuple[str, ...], optional: tuple[str, ...]) -> tuple[str, ...]:
    """The parts that a checkpoint has to hold: all but those that are optional and were not saved."""
    return tuple(part for part in parts if not (part in optional and is_left_out(index, part)))


def _missing_shards(folder: Path, part: str, variant: str) -> list[str]:
    """The shards that the index of a part's weights names and that are not there."""
    indices = [(path, match) for path in (folder / part).glob("*.json") if (match := INDEX_FILE.fullmatch(path.name))]
    paths = [path for path, match in indices if (match["variant"] or "") == variant]
    shards = {name for path in paths for name in shard_names(path)}
    return [f"{part}/{name}" for name in sorted(shards) if not (folder / part / name).is_file()]


def shard_names(path: Path) -> list[str]:
    """The files that the index of sharded weights names.

    Raises:
        UserError: the index is damaged.
    """
    weights = read_settings(path).get("weight_map")
    return [str(name) for name in weights.values()] if isinstance(weights, dict) else []


def damage(path: Path) -> str | None:
    """Why a safetensors file is not whole, and the repair; None if it is. Only its header is read."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            return f"{path}: a pointer of Git LFS in place of the weights; fetch them by `git lfs pull`"
    try:
        with safe_open(path, framework="pt"):
            return None
    except (SafetensorError, OSError) as error:
        return f"{path}: damaged or cut short ({str(error).splitlines()[0]}); fetch it again"


def pickle_repair(path: Path) -> str:
    """The command that converts a pickle, to the name that diffusers and transformers look for."""
    new = path.with_name(re.sub(r"^pytorch_model", "model", path.stem) + ".safetensors")
    return f"convert it once: `unlearnbench convert {path} {new}`"


def lora_problem(path: Path) -> str | None:
    """Why a single file is no checkpoint: it holds the adapters of one."""
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
    if names and all("lora" in name.lower() or name.endswith(".alpha") for name in names):
        return f"{path}: a LoRA, not a model; merge it once by `pipe.fuse_lora()`, then `pipe.save_pretrained(folder)`"
    return None
