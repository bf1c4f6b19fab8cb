"""Cross-attention: attention maps, and key and value weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unlearnbench.config.errors import UserError
from unlearnbench.models.base import TextToImage
from unlearnbench.models.parameters import make_trainable, select_parameters

KEY_VALUE = ("attn2.to_k.weight", "attn2.to_v.weight")


class _MapRecorder:
    """An attention processor that records the attention maps and computes the output by the processor that it replaces."""

    def __init__(self, inner: Any, maps: list[Tensor]) -> None:
        self.inner = inner
        self.maps = maps

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
        mask = attn.prepare_attention_mask(attention_mask, key.shape[1], len(hidden_states))
        probabilities = attn.get_attention_scores(query, key, mask)
        self.maps.append(probabilities.float().unflatten(0, (len(hidden_states), -1)))
        return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask)


@contextmanager
def attention_maps(model: TextToImage) -> Iterator[list[Tensor]]:
    """Within the block each prediction appends the attention map of each cross-attention layer to the list.

    A map has the shape (n, heads, pixels, tokens), sums to 1 over the tokens and carries gradients. Predictions do not
    change. Gradient checkpointing is off within the block: recomputed activations would append their maps again.

    Raises:
        UserError: the model has no cross-attention layer.
    """
    named = [item for part in model.modules().values() for item in part.named_modules()]
    layers: list[Any] = [layer for name, layer in named if name.endswith("attn2")]
    if not layers:
        raise UserError(f"model.path={model.path}: no cross-attention layer (attn2), and this algorithm works on those")
    processors = [layer.processor for layer in layers]
    maps: list[Tensor] = []
    checkpointed: list[Any] = [
        module for part in model.modules().values() for module in part.modules() if recomputes_activations(module)
    ]
    try:
        for module in checkpointed:
            module.gradient_checkpointing = False
        for layer, processor in zip(layers, processors, strict=True):
            layer.set_processor(_MapRecorder(processor, maps))
        with torch.compiler.set_stance("force_eager"):  # a compiled denoiser would not see the processors
            yield maps
    finally:
        for layer, processor in zip(layers, processors, strict=True):
            layer.set_processor(processor)
        for module in checkpointed:
            module.gradient_checkpointing = True


def recomputes_activations(module: Any) -> bool:
    """Whether the module recomputes its activations in the backward pass (gradient checkpointing)."""
    return getattr(module, "gradient_checkpointing", False) is True


def key_value_weights(model: TextToImage, which: str) -> dict[str, nn.Parameter]:
    """Make the key and value weights (out, width) of cross-attention that `which` selects trainable (see `make_trainable`).

    Raises:
        UserError: `which` selects other parameters, or none.
    """
    selected = make_trainable(model, which)
    for name in selected:
        if not name.endswith(KEY_VALUE):
            raise UserError(f"algo.train={which}: {name} is no key or value weight of cross-attention; try algo.train=xattn_kv")
    return selected


def text_only_weights(model: TextToImage, which: str) -> list[str]:
    """The names that `which` selects, all of parameters whose layers depend on the text alone.

    These are the text encoders' parameters, and the key and value weights of cross-attention.

    Raises:
        UserError: `which` selects other parameters, or none.
    """
    names = list(select_parameters(model, which))
    for name in names:
        if not name.startswith("text_encoder") and not name.endswith(KEY_VALUE):
            raise UserError(f"algo.train={which}: {name} does not depend on the text alone; try xattn_kv or text_encoder")
    return names
