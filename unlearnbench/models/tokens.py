"""Token ids of prompts, the positions of a phrase, and which tokens of two prompts correspond."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

import torch
from torch import Tensor

from unlearnbench.config.errors import UserError
from unlearnbench.data.concept import Concept
from unlearnbench.models.base import TextToImage


def token_ids(model: TextToImage, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt, padded or cut to the (first) encoder's length."""
    return model.tokenize(prompts)[0][1]


def end_positions(model: TextToImage, ids: Sequence[Sequence[int]]) -> list[int]:
    """Where each prompt's end token is; what follows is padding."""
    return [list(row).index(model.tokenizer.eos_token_id) for row in ids]


def phrase_mask(model: TextToImage, prompts: Sequence[str], phrases: Sequence[str], with_ends: bool) -> Tensor:
    """Which tokens of the prompts belong to one of the phrases: bool, (n, tokens), on the model's device.

    Args:
        model: a loaded model.
        prompts: where to look.
        phrases: words to look for, whole.
        with_ends: count the end token too, and the padding of a tokenizer that pads with it.
    """
    ids = torch.tensor(token_ids(model, prompts))
    found = (ids == model.tokenizer.eos_token_id) & with_ends
    for phrase in phrases:
        wanted = torch.tensor(model.tokenizer(phrase, add_special_tokens=False).input_ids)
        starts = (ids.unfold(1, len(wanted), 1) == wanted).all(2).nonzero()
        for row, start in starts.tolist():
            found[row, start : start + len(wanted)] = True
    return found.to(model.device)


def concept_masks(model: TextToImage, prompts: Sequence[str], concept: Concept, with_ends: bool) -> dict[str, Tensor]:
    """Which tokens of each forget prompt are the concept's, by prompt (see `spoken`).

    Raises:
        UserError: a prompt has none.
    """
    found = dict(zip(prompts, phrase_mask(model, prompts, concept.name_phrases(), with_ends), strict=True))
    for prompt, tokens in found.items():
        if not tokens.any():
            raise UserError(concept.unnamed_problem(prompt))
    return found


def align_tokens(old: Sequence[int], new: Sequence[int], old_end: int, new_end: int) -> list[tuple[int, int, bool]]:
    """For each token of one prompt, the token of another that stands in its place, and whether it is the same token.

    Exchanged words are matched from their last token back; a word left out is matched with what follows it; the
    padding is matched in order.

    Args:
        old: token ids of the one, with its padding.
        new: token ids of the other, as many.
        old_end: where the end token of the one is.
        new_end: where the end token of the other is.

    Examples:
        >>> align_tokens([0, 5, 8, 6, 1, 1], [0, 5, 9, 1, 1, 1], 4, 3)  # "a van gogh" (5 8 6) for "a picture" (5 9)
        [(0, 0, True), (1, 1, True), (2, 2, False), (3, 2, False), (4, 3, True), (5, 4, True)]
    """
    pairs = []
    words = SequenceMatcher(None, old[: old_end + 1], new[: new_end + 1], autojunk=False)
    for kind, i1, i2, j1, j2 in words.get_opcodes():
        pairs += [(i, max(j1, j2 - (i2 - i)), kind == "equal") for i in range(i1, i2)]
    padding = range(old_end + 1, len(old))
    return pairs + [(i, min(i - old_end + new_end, len(new) - 1), True) for i in padding]


def aligned_positions(model: TextToImage, old: Sequence[str], new: Sequence[str]) -> Tensor:
    """For each token that the denoiser is told of a prompt, the token of another that stands in its place.

    That is as `aligned` says; tokens of the other that stand nowhere then, since it has more words, take the first places
    of the padding, for to cross-attention the order is nothing.

    Args:
        model: a loaded model.
        old: prompts.
        new: as many others.

    Returns:
        long, (n, tokens), on the model's device: places among the `states` of `encode`.
    """
    parts, first = [], 0
    for (end, ids), (_, others) in zip(model.tokenize(old), model.tokenize(new), strict=True):
        rows = [_places(a, b, a.index(end), b.index(end)) for a, b in zip(ids, others, strict=True)]
        parts.append(torch.tensor(rows) + first)
        first += len(ids[0])
    return torch.cat(parts, dim=1).to(model.device)


def _places(old: Sequence[int], new: Sequence[int], old_end: int, new_end: int) -> list[int]:
    places = [there for _, there, _ in align_tokens(old, new, old_end, new_end)]
    nowhere = [there for there in range(new_end) if there not in places]
    room = slice(old_end + 1, old_end + 1 + len(nowhere))
    places[room] = nowhere[: len(places[room])]
    return places
