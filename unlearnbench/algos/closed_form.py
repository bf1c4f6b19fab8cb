"""What closed-form edits of cross-attention share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from unlearnbench.models.base import TextToImage
from unlearnbench.models.tokens import end_positions, token_ids


def linear_map(old: Tensor, new: Tensor, same: Tensor) -> Tensor:
    """M = (sum c* c^T + same) (sum c c^T + same)^-1, over the rows c of `old` and c* of `new`: W M solves for W*."""
    return torch.linalg.solve(old.T @ old + same, new.T @ old + same, left=False)


def paired_token_ids(model: TextToImage, pairs: dict[str, str]) -> Iterator[tuple[list[int], list[int], int, int]]:
    """Of each phrase and its anchor the token ids, and where each one's end token is."""
    old, new = token_ids(model, list(pairs)), token_ids(model, list(pairs.values()))
    return zip(old, new, end_positions(model, old), end_positions(model, new), strict=True)


@torch.no_grad()
def text_hidden_states(model: TextToImage, prompts: Sequence[str]) -> Tensor:
    """The text encoder's token embeddings, (n, tokens, width), double, on the CPU.

    An empty prompt is encoded as a space, whose tokens are the same: to SDXL "" is no prompt, of which all is 0.
    """
    return model.encode_prompts([prompt or " " for prompt in prompts])["prompt_embeds"].double().cpu()
