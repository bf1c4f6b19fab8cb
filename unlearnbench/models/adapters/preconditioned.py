"""Weight deltas preconditioned by the covariance of the inputs that are to be retained."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from unlearnbench.models.adapters.lora import named_layers

if TYPE_CHECKING:
    from unlearnbench.models.base import TextToImage


AT_ONCE = 64
TOLD = "prompt_embeds"  # what the denoiser is told, among names of layers


class PreconditionedDelta(nn.Module):
    """W -> W + up white, of shapes (rows, columns) and (columns, columns); up starts at zero, so that nothing changes.

    `white` is the identity until `whiten` sets it, and does not train.
    """

    white: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("white", torch.eye(weight.shape[1], device=weight.device))
        self.up = nn.Parameter(torch.zeros_like(weight, dtype=torch.float32))

    def forward(self, weight: Tensor) -> Tensor:
        """The sum."""
        return weight + (self.up @ self.white).to(weight)


@torch.no_grad()
def precondition(model: TextToImage, prompts: Sequence[str], ridge: float) -> None:
    """Make a step of every `Whitened` adapter small where these prompts' inputs to its layer are large.

    white = (C + ridge I)^-1/2 with C the inputs' second moment over all tokens, scaled to the mean eigenvalue 1. A gradient
    step on `up` then moves W by gradient (C + ridge I)^-1: the input side of K-FAC (Martens, Grosse 2015, arXiv 1503.05671).

    Args:
        model: with the adapters installed, on layers of a text encoder or on keys and values of cross-attention, which read
            the states that the encoder ends with.
        prompts: what is to be held.
        ridge: above 0; the smaller, the more is left to directions that no input takes.
    """
    adapted = {name: layer for name, layer in named_layers(model) if parametrize.is_parametrized(layer, "weight")}
    moments: dict[str, Tensor] = {}
    hooks = [layer.register_forward_pre_hook(partial(_read, moments, name)) for name, layer in adapted.items()]
    try:
        for first in range(0, len(prompts), AT_ONCE):
            _add(moments, TOLD, model.encode_prompts(prompts[first : first + AT_ONCE])["prompt_embeds"])
    finally:
        for hook in hooks:
            hook.remove()
    if adapted.keys() - moments.keys():
        told = _root(moments[TOLD].to(model.device), ridge)
    for name, layer in adapted.items():
        white = _root(moments[name].to(model.device), ridge) if name in moments else told
        layer.parametrizations["weight"][0].white.copy_(white)


def _read(moments: dict[str, Tensor], name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    _add(moments, name, inputs[0])


def _add(moments: dict[str, Tensor], name: str, inputs: Tensor) -> None:
    rows = inputs.flatten(0, -2).double()
    moments[name] = moments.get(name, 0) + (rows.T @ rows).cpu()


def _root(moment: Tensor, ridge: float) -> Tensor:
    values, vectors = torch.linalg.eigh(moment * len(moment) / moment.trace())
    return (vectors * (values.clamp(min=0) + ridge).rsqrt()) @ vectors.T
