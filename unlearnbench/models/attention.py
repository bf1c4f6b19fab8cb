"""Cross-attention, where the text meets the picture: its maps, its key and value weights, and the tokens of a phrase."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import Tensor, nn

from unlearnbench.config import UserError
from unlearnbench.data import Concept
from unlearnbench.models.base import TextToImage

READ_TEXT = ("attn2.to_k.weight", "attn2.to_v.weight")


class _Keeping:
    """An attention processor that keeps the probabilities and leaves the output to the processor it stands for."""

    def __init__(self, inner: Any, kept: list[Tensor]) -> None:
        self.inner = inner
        self.kept = kept

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
        mask = attn.prepare_attention_mask(attention_mask, key.shape[1], len(hidden_states))
        maps = attn.get_attention_scores(query, key, mask)
        self.kept.append(maps.float().unflatten(0, (len(hidden_states), -1)))
        return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask)


@contextmanager
def attention_maps(model: TextToImage) -> Iterator[list[Tensor]]:
    """Within the block every prediction adds to the list the map of each cross-attention layer, with its gradient.

    A map is (n, heads, pixels, tokens) and sums to 1 over the tokens. Predictions are what they are without it, and keep
    their activations, since what is computed again in the backward pass would add its maps a second time.

    Raises:
        UserError: the model has no such layer.
    """
    named = [item for part in model.modules().values() for item in part.named_modules()]
    layers: list[Any] = [layer for name, layer in named if name.endswith("attn2")]
    if not layers:
        raise UserError(f"model.path={model.path}: no cross-attention layer (attn2), and this algorithm works on those")
    processors = [layer.processor for layer in layers]
    kept: list[Tensor] = []
    again: list[Any] = [module for part in model.modules().values() for module in part.modules() if keeps_less(module)]
    try:
        for module in again:
            module.gradient_checkpointing = False
        for layer, processor in zip(layers, processors, strict=True):
            layer.set_processor(_Keeping(processor, kept))
        with torch.compiler.set_stance("force_eager"):  # a compiled denoiser would not see the processors
            yield kept
    finally:
        for layer, processor in zip(layers, processors, strict=True):
            layer.set_processor(processor)
        for module in again:
            module.gradient_checkpointing = True


def keeps_less(module: Any) -> bool:
    """Does it compute its activations again in the backward pass?"""
    return getattr(module, "gradient_checkpointing", False) is True


def projections(model: TextToImage, which: str) -> dict[str, nn.Parameter]:
    """The key and value weights of cross-attention, (out, width), that `which` selects (see `TextToImage.trainable`).

    Raises:
        UserError: it selects something else, or nothing.
    """
    chosen = model.trainable(which)
    for name in chosen:
        if not name.endswith(READ_TEXT):
            raise UserError(f"algo.train={which}: {name} is no key or value weight of cross-attention; try algo.train=xattn_kv")
    return chosen


def text_readers(model: TextToImage, which: str) -> list[str]:
    """The names that `which` selects, of parameters whose layers see the text alone: a text encoder's, keys and values.

    Raises:
        UserError: it selects something else, or nothing.
    """
    chosen = list(model.selected(which))
    for name in chosen:
        if not name.startswith("text_encoder") and not name.endswith(READ_TEXT):
            raise UserError(f"algo.train={which}: {name} does not read the text alone; try algo.train=xattn_kv or text_encoder")
    return chosen


def token_ids(model: TextToImage, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt, padded or cut to the (first) encoder's length."""
    return model.spelled(prompts)[0][1]


def ends(model: TextToImage, ids: Sequence[Sequence[int]]) -> list[int]:
    """Where each prompt's end token is; what follows is padding."""
    return [list(row).index(model.tokenizer.eos_token_id) for row in ids]


def spoken(model: TextToImage, prompts: Sequence[str], phrases: Sequence[str], with_ends: bool) -> Tensor:
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


def spoken_of(model: TextToImage, prompts: Sequence[str], concept: Concept, with_ends: bool) -> dict[str, Tensor]:
    """Which tokens of each forget prompt are the concept's, by prompt (see `spoken`).

    Raises:
        UserError: a prompt has none.
    """
    found = dict(zip(prompts, spoken(model, prompts, concept.phrases(), with_ends), strict=True))
    for prompt, tokens in found.items():
        if not tokens.any():
            raise UserError(concept.missed(prompt))
    return found


def aligned(old: Sequence[int], new: Sequence[int], old_end: int, new_end: int) -> list[tuple[int, int, bool]]:
    """For each token of one prompt, the token of another that stands in its place, and whether it is the same token.

    Exchanged words are matched from their last token back; a word left out is matched with what follows it; the
    padding is matched in order.

    Args:
        old: token ids of the one, with its padding.
        new: token ids of the other, as many.
        old_end: where the end token of the one is.
        new_end: where the end token of the other is.

    Examples:
        >>> aligned([0, 5, 8, 6, 1, 1], [0, 5, 9, 1, 1, 1], 4, 3)  # "a van gogh" (5 8 6) for "a picture" (5 9)
        [(0, 0, True), (1, 1, True), (2, 2, False), (3, 2, False), (4, 3, True), (5, 4, True)]
    """
    pairs = []
    words = SequenceMatcher(None, old[: old_end + 1], new[: new_end + 1], autojunk=False)
    for kind, i1, i2, j1, j2 in words.get_opcodes():
        pairs += [(i, max(j1, j2 - (i2 - i)), kind == "equal") for i in range(i1, i2)]
    padding = range(old_end + 1, len(old))
    return pairs + [(i, min(i - old_end + new_end, len(new) - 1), True) for i in padding]


def in_place(model: TextToImage, old: Sequence[str], new: Sequence[str]) -> Tensor:
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
    for (end, ids), (_, others) in zip(model.spelled(old), model.spelled(new), strict=True):
        rows = [_places(a, b, a.index(end), b.index(end)) for a, b in zip(ids, others, strict=True)]
        parts.append(torch.tensor(rows) + first)
        first += len(ids[0])
    return torch.cat(parts, dim=1).to(model.device)


def _places(old: Sequence[int], new: Sequence[int], old_end: int, new_end: int) -> list[int]:
    places = [there for _, there, _ in aligned(old, new, old_end, new_end)]
    nowhere = [there for there in range(new_end) if there not in places]
    room = slice(old_end + 1, old_end + 1 + len(nowhere))
    places[room] = nowhere[: len(places[room])]
    return places
