"""Cross-attention: its maps, and its key and value weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unlearnbench.config.errors import UserError
from unlearnbench.models.base import TextToImage
from unlearnbench.models.parameters import make_trainable, select_parameters

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
    again: list[Any] = [
        module for part in model.modules().values() for module in part.modules() if recomputes_activations(module)
    ]
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


def recomputes_activations(module: Any) -> bool:
    """Does it compute its activations again in the backward pass?"""
    return getattr(module, "gradient_checkpointing", False) is True


def key_value_weights(model: TextToImage, which: str) -> dict[str, nn.Parameter]:
    """The key and value weights of cross-attention, (out, width), that `which` selects (see `TextToImage.trainable`).

    Raises:
        UserError: it selects something else, or nothing.
    """
    chosen = make_trainable(model, which)
    for name in chosen:
        if not name.endswith(READ_TEXT):
            raise UserError(f"algo.train={which}: {name} is no key or value weight of cross-attention; try algo.train=xattn_kv")
    return chosen


def text_only_weights(model: TextToImage, which: str) -> list[str]:
    """The names that `which` selects, of parameters whose layers see the text alone: a text encoder's, keys and values.

    Raises:
        UserError: it selects something else, or nothing.
    """
    chosen = list(select_parameters(model, which))
    for name in chosen:
        if not name.startswith("text_encoder") and not name.endswith(READ_TEXT):
            raise UserError(f"algo.train={which}: {name} does not read the text alone; try algo.train=xattn_kv or text_encoder")
    return chosen
