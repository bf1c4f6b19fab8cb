"""What closed-form edits of cross-attention share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from unlearnbench.models.base import TextToImage
from unlearnbench.models.tokens import end_positions, token_ids
from unlearnbench.storage.fitting_batches import FittingBatches


def linear_map(old: Tensor, new: Tensor, regularizer: Tensor) -> Tensor:
    """M = (sum c* c^T + R) (sum c c^T + R)^-1 over the rows c of `old` and c* of `new`; the edited weight is W M."""
    return torch.linalg.solve(old.T @ old + regularizer, new.T @ old + regularizer, left=False)


def apply_map(weights: dict[str, nn.Parameter], change: Tensor) -> None:
    """Replace each weight W by W M, computed in double precision on the CPU."""
    for weight in weights.values():
        weight.data = (weight.data.cpu().double() @ change).to(weight)


def paired_token_ids(model: TextToImage, pairs: dict[str, str]) -> Iterator[tuple[list[int], list[int], int, int]]:
    """For each phrase and its anchor: the token ids of both, and the positions of both end tokens."""
    old, new = token_ids(model, list(pairs)), token_ids(model, list(pairs.values()))
    return zip(old, new, end_positions(model, old), end_positions(model, new), strict=True)


def gram(hidden_states: Tensor) -> Tensor:
    """The sum of c c^T over all tokens, (width, width)."""
    return hidden_states.flatten(0, -2).T @ hidden_states.flatten(0, -2)


@torch.no_grad()
def text_hidden_states(model: TextToImage, prompts: Sequence[str]) -> Tensor:
    """The text encoder's token embeddings, (n, tokens, width), double, on the CPU.

    An empty prompt is encoded as a space, which has the same tokens: SDXL encodes "" as zeros. Prompts that do not fit into
    memory together are encoded in smaller batches.
    """
    texts = [prompt or " " for prompt in prompts]

    def embeds(part: slice) -> Tensor:
        return model.encode_prompts(texts[part])["prompt_embeds"].cpu().double()

    return torch.cat([*FittingBatches("prompts").run(len(texts), embeds)])
