"""A text encoder's vocabulary as words: tokens that a text of their own spells."""

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
    """The tokens as prompts; a copied CLIP tokenizer leaves its marks of a word's end, which are spaces."""
    texts = model.tokenizer.batch_decode(tokens.tolist(), skip_special_tokens=True)
    return [text.replace("</w>", " ").strip() for text in texts]


def whole_words(model: Any) -> Tensor:
    """The ids of the tokens that are words of their own: written out and tokenized again, they are the same token."""
    spelled_out = decode_tokens(model, torch.arange(len(model.tokenizer))[:, None])
    kept = [i for i, ids in enumerate(bare_token_ids(model, spelled_out)) if ids == [i]]
    return torch.tensor(kept, device=model.device)


def with_random_words(
    model: Any, prompts: Sequence[str], count: int, never: Sequence[str], generator: torch.Generator
) -> list[str]:
    """So many prompts, each one of those given with one word exchanged for another of the vocabulary, all at random.

    Args:
        model: a loaded model.
        prompts: one or more, none empty.
        count: how many.
        never: phrases whose tokens are not among the words that come in.
        generator: the only source of randomness, on the CPU.
    """
    avoided = {token for row in bare_token_ids(model, never) for token in row}
    kept = [[token] for token in whole_words(model).tolist() if token not in avoided]
    vocabulary = decode_tokens(model, torch.tensor(kept))
    made = []
    for chance in torch.rand(count, 3, generator=generator, dtype=torch.float64).tolist():
        words = prompts[int(chance[0] * len(prompts))].split()
        words[int(chance[1] * len(words))] = vocabulary[int(chance[2] * len(vocabulary))]
        made.append(" ".join(words))
    return made
