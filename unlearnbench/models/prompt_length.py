"""Prompts that are longer than the text encoder: its tokenizer cuts what follows the last token without a word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from unlearnbench.models.checkpoint_parts import read_settings
from unlearnbench.models.diffusers_model import DiffusersModel

Count = Callable[[str], int]


class CutPrompts(NamedTuple):
    """The prompts that no text encoder of a model reads to their end, and how many tokens the longest encoder reads."""

    prompts: list[str]
    tokens: int


def cut_prompts(model: DiffusersModel, prompts: Sequence[str]) -> CutPrompts:
    """The prompts that are cut; none before the model is loaded, if its tokenizer is not on this machine."""
    name, length = model.longest_tokenizer()
    if model.pipeline is not None:
        tokenizer = getattr(model.pipeline, name)
        length = length or tokenizer.model_max_length
        return CutPrompts([p for p in prompts if len(tokenizer(p, verbose=False).input_ids) > length], length)
    folder = model.tokenizer_folder(name)
    if folder is None or not (folder / "tokenizer_config.json").is_file():
        return CutPrompts([], 0)
    length = length or int(read_settings(folder / "tokenizer_config.json").get("model_max_length", 77))
    long = [prompt for prompt in prompts if len(prompt.encode(errors="replace")) + 2 > length]  # a token has a byte or more
    count = _counter(folder) if long else len
    return CutPrompts([prompt for prompt in long if count(prompt) > length], length)


def _counter(folder: Path) -> Count:
    """Counts the tokens of a prompt, with those at its ends; transformers, which takes seconds to import, only where it must."""
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return lambda prompt: len(tokenizer.encode(prompt).ids)
    from transformers import AutoTokenizer

    slow = AutoTokenizer.from_pretrained(str(folder))
    return lambda prompt: len(slow(prompt, verbose=False).input_ids)
