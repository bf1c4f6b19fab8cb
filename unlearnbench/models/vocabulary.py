"""The vocabulary of a text encoder: token ids as words, and random words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def token_embedding(model: Any) -> Any:
    """The layer of token embeddings of the (first) text encoder."""
    return model.text_encoder.get_input_embeddings()


def bare_token_ids(model: Any, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt without start, end and padding."""
    return model.tokenizer(list(prompts), add_special_tokens=False).input_ids


def decode_tokens(model: Any, tokens: Tensor) -> list[str]:
    """Decode token ids (n, length) to prompts; the end-of-word marks that some CLIP tokenizers leave become spaces."""
    texts = model.tokenizer.batch_decode(tokens.tolist(), skip_special_tokens=True)
    return [text.replace("</w>", " ").strip() for text in texts]


def whole_words(model: Any) -> Tensor:
    """The ids (count,) of the tokens that are whole words: decoded and tokenized again, they give the same token."""
    texts = decode_tokens(model, torch.arange(len(model.tokenizer))[:, None])
    words = [i for i, ids in enumerate(bare_token_ids(model, texts)) if ids == [i]]
    return torch.tensor(words, device=model.device)


def replace_random_words(
    model: Any, prompts: Sequence[str], count: int, excluded: Sequence[str], generator: torch.Generator
) -> list[str]:
    """Random prompts, each one of the given prompts with one word replaced by a word of the vocabulary.

    Args:
        model: a loaded model.
        prompts: at least one, none empty.
        count: the number of prompts returned.
        excluded: phrases whose tokens no replacement has.
        generator: the only source of randomness, on the CPU.
    """
    excluded_ids = {token for row in bare_token_ids(model, excluded) for token in row}
    candidates = [[token] for token in whole_words(model).tolist() if token not in excluded_ids]
    vocabulary = decode_tokens(model, torch.tensor(candidates))
    replaced = []
    for draw in torch.rand(count, 3, generator=generator, dtype=torch.float64).tolist():
        words = prompts[int(draw[0] * len(prompts))].split()
        words[int(draw[1] * len(words))] = vocabulary[int(draw[2] * len(vocabulary))]
        replaced.append(" ".join(words))
    return replaced
