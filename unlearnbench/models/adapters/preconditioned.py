"""Weight deltas preconditioned by the covariance of the retained inputs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from unlearnbench.models.adapters.layers import adaptable_layers, freeze, named_layers
from unlearnbench.models.parameters import trainable_parameters
from unlearnbench.storage.fitting_batches import FittingBatches
from unlearnbench.storage.tensors import float64_device

if TYPE_CHECKING:
    from unlearnbench.models.base import TextToImage


BATCH = 64  # prompts
PROMPT_EMBEDS = "prompt_embeds"  # the key of their moment, among names of layers


class PreconditionedDelta(nn.Module):
    """W -> W + up preconditioner, of shapes (rows, columns) and (columns, columns).

    `up` starts at zero, so that W starts unchanged. `preconditioner` is the identity until `precondition` sets it, and is
    not trained.
    """

    preconditioner: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("preconditioner", torch.eye(weight.shape[1], device=weight.device))
        self.up = nn.Parameter(torch.zeros_like(weight, dtype=torch.float32))

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight."""
        return weight + (self.up @ self.preconditioner).to(weight)


def install_deltas(model: TextToImage, weights: Collection[str]) -> dict[str, nn.Parameter]:
    """Install a `PreconditionedDelta` on each linear layer whose weight is named.

    Returns the parameters of the deltas by name, which are then the only trainable ones.
    """
    freeze(model)
    for _, layer in adaptable_layers(model, weights):
        parametrize.register_parametrization(layer, "weight", PreconditionedDelta(layer.weight))
    return trainable_parameters(model)


def _adapted_layers(model: TextToImage) -> list[tuple[str, Any]]:
    return [(name, layer) for name, layer in named_layers(model) if parametrize.is_parametrized(layer, "weight")]


@torch.no_grad()
def merge_deltas(model: TextToImage) -> list[str]:
    """Replace each weight that has a delta by their sum, computed and stored in fp32, and remove the deltas.

    Returns the names of the weights.
    """
    adapted = _adapted_layers(model)
    for _, layer in adapted:
        parts = layer.parametrizations["weight"]
        merged = parts[0](parts.original.float())
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        layer.weight.data = torch.empty_like(layer.weight, dtype=torch.float32).copy_(merged)
    return [f"{name}.weight" for name, _ in adapted]


@torch.no_grad()
def precondition(model: TextToImage, prompts: Sequence[str], ridge: float) -> None:
    """Set the preconditioner of every `PreconditionedDelta`, so that steps are small in directions of these prompts' inputs.

    preconditioner = (C + ridge I)^-1/2, where C is the second moment of the layer's inputs over all tokens, scaled to the
    mean eigenvalue 1. A gradient step on `up` then changes W by gradient (C + ridge I)^-1, which is the input factor of
    K-FAC (Martens, Grosse 2015, arXiv 1503.05671).

    Args:
        model: with the adapters installed on layers of a text encoder, or on key and value layers of cross-attention, whose
            inputs are the prompt embeddings.
        prompts: the retained prompts.
        ridge: above 0; the smaller, the larger the steps in directions that no input has.
    """
    adapted = dict(_adapted_layers(model))
    batches = FittingBatches("prompts", BATCH)
    moments = batches.run_anew(len(prompts), lambda parts: _moments(model, adapted, [prompts[part] for part in parts]))
    if adapted.keys() - moments.keys():
        of_prompts = _root(moments[PROMPT_EMBEDS].to(float64_device(model.device)), ridge)
    for name, layer in adapted.items():
        root = _root(moments[name].to(float64_device(model.device)), ridge) if name in moments else of_prompts
        layer.parametrizations["weight"][0].preconditioner.copy_(root)


def _moments(model: TextToImage, layers: dict[str, Any], batches: Sequence[Sequence[str]]) -> dict[str, Tensor]:
    """The second moments of the layers' inputs over all prompts, and that of the prompt embeddings."""
    moments: dict[str, Tensor] = {}
    hooks = [layer.register_forward_pre_hook(partial(_add_input, moments, name)) for name, layer in layers.items()]
    try:
        for prompts in batches:
            _add(moments, PROMPT_EMBEDS, model.encode_prompts(prompts)["prompt_embeds"])
    finally:
        for hook in hooks:
            hook.remove()
    return moments


def _add_input(moments: dict[str, Tensor], name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    _add(moments, name, inputs[0])


def _add(moments: dict[str, Tensor], name: str, inputs: Tensor) -> None:
    rows = inputs.flatten(0, -2).to(float64_device(inputs.device)).double()
    moments[name] = moments.get(name, 0) + (rows.T @ rows).cpu()


def _root(moment: Tensor, ridge: float) -> Tensor:
    """(C + ridge I)^-1/2, with C the moment scaled to the mean eigenvalue 1."""
    values, vectors = torch.linalg.eigh(moment * len(moment) / moment.trace())
    return (vectors * (values.clamp(min=0) + ridge).rsqrt()) @ vectors.T
