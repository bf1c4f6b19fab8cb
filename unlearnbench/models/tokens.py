"""Token ids of prompts, masks of phrases, and the alignment of the tokens of two prompts."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

import torch
from torch import Tensor

from unlearnbench.config.errors import UserError
from unlearnbench.data.concept import Concept
from unlearnbench.models.base import TextToImage


def token_ids(model: TextToImage, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt, padded or cut to the length of the (first) encoder."""
    return model.tokenize(prompts)[0][1]


def end_positions(model: TextToImage, ids: Sequence[Sequence[int]]) -> list[int]:
    """The position of each prompt's end token; padding follows it."""
    return [list(row).index(model.tokenizer.eos_token_id) for row in ids]


def phrase_mask(model: TextToImage, prompts: Sequence[str], phrases: Sequence[str], with_ends: bool) -> Tensor:
    """A mask of the prompts' tokens that belong to one of the phrases: bool (n, tokens), on the model's device.

    Args:
        model: a loaded model.
        prompts: n prompts.
        phrases: matched as whole sequences of tokens.
        with_ends: include the end token, and the padding of a tokenizer that pads with it.
    """
    ids = torch.tensor(token_ids(model, prompts))
    mask = (ids == model.tokenizer.eos_token_id) & with_ends
    for phrase in phrases:
        phrase_ids = torch.tensor(model.tokenizer(phrase, add_special_tokens=False).input_ids)
        starts = (ids.unfold(1, len(phrase_ids), 1) == phrase_ids).all(2).nonzero()
        for row, start in starts.tolist():
            mask[row, start : start + len(phrase_ids)] = True
    return mask.to(model.device)


def concept_masks(model: TextToImage, prompts: Sequence[str], concept: Concept, with_ends: bool) -> dict[str, Tensor]:
    """The mask (tokens,) of the concept's tokens in each prompt, by prompt (see `phrase_mask`).

    Raises:
        UserError: a prompt has no token of the concept.
    """
    masks = dict(zip(prompts, phrase_mask(model, prompts, concept.name_phrases(), with_ends), strict=True))
    for prompt, mask in masks.items():
        if not mask.any():
            raise UserError(concept.unnamed_problem(prompt))
    return masks


def align_tokens(old: Sequence[int], new: Sequence[int], old_end: int, new_end: int) -> list[tuple[int, int, bool]]:
    """Align each token of one prompt with a token of another: its position, the other's position, whether the ids are equal.

    Replaced words are aligned from their last token backwards. A word that is missing in the other prompt is aligned with the
    token that follows it. Padding is aligned in order.

    Args:
        old: token ids of the one prompt, with padding.
        new: token ids of the other prompt, of the same length.
        old_end: the position of the end token in `old`.
        new_end: the position of the end token in `new`.

    Examples:
        >>> align_tokens([0, 5, 8, 6, 1, 1], [0, 5, 9, 1, 1, 1], 4, 3)  # "a van gogh" (5 8 6) and "a painting" (5 9)
        [(0, 0, True), (1, 1, True), (2, 2, False), (3, 2, False), (4, 3, True), (5, 4, True)]
    """
    pairs = []
    matcher = SequenceMatcher(None, old[: old_end + 1], new[: new_end + 1], autojunk=False)
    for operation, i1, i2, j1, j2 in matcher.get_opcodes():
        pairs += [(i, max(j1, j2 - (i2 - i)), operation == "equal") for i in range(i1, i2)]
    padding = range(old_end + 1, len(old))
    return pairs + [(i, min(i - old_end + new_end, len(new) - 1), True) for i in padding]


def aligned_positions(model: TextToImage, old: Sequence[str], new: Sequence[str]) -> Tensor:
    """For each token of one prompt's embeddings, the position of the aligned token in another's (see `align_tokens`).

    Tokens of the other prompt that are aligned with none, because it has more words, get the first positions of the
    padding: cross-attention does not depend on the order of tokens.

    Args:
        model: a loaded model.
        old: n prompts.
        new: n other prompts.

    Returns:
        long (n, tokens), on the model's device: positions along the tokens of `prompt_embeds`.
    """
    parts, first = [], 0
    for (end, ids), (_, others) in zip(model.tokenize(old), model.tokenize(new), strict=True):
        rows = [_aligned_row(a, b, a.index(end), b.index(end)) for a, b in zip(ids, others, strict=True)]
        parts.append(torch.tensor(rows) + first)
        first += len(ids[0])
    return torch.cat(parts, dim=1).to(model.device)


def _aligned_row(old: Sequence[int], new: Sequence[int], old_end: int, new_end: int) -> list[int]:
    positions = [position for _, position, _ in align_tokens(old, new, old_end, new_end)]
    unaligned = [position for position in range(new_end) if position not in positions]
    padding = slice(old_end + 1, old_end + 1 + len(unaligned))
    positions[padding] = unaligned[: len(positions[padding])]
    return positions
