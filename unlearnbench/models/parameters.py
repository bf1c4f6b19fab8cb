"""The trained parameters of a model: selected by name, made trainable, optimised."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unlearnbench.config.errors import UserError, suggest
from unlearnbench.models.base import TextToImage

LOSS_SCALE = 2.0**12  # at which a gradient of 1e-10 is a number of fp16, and most stay far below its largest, 65504


def name_pattern(model: TextToImage, which: str, setting: str = "algo.train") -> re.Pattern[str]:
    """The pattern of `which`: a name among the model's `patterns`, or a regular expression over parameter names.

    Raises:
        UserError: `which` is neither.
    """
    try:
        return re.compile(model.patterns.get(which, which))
    except re.error as error:
        raise UserError(f"{setting}={which}: not a regular expression ({error}); {suggest(which, model.patterns)}") from error


def matching_names(model: TextToImage, which: str, names: Iterable[str]) -> list[str]:
    """The names that `which` selects (see `name_pattern`).

    Raises:
        UserError: `which` selects no parameter.
    """
    pattern = name_pattern(model, which)
    matches = [name for name in names if pattern.search(name)]
    if not matches and which != "none":
        raise UserError(f"algo.train={which}: selects no parameter; {suggest(which, model.patterns)}")
    return matches


def select_parameters(model: TextToImage, which: str) -> dict[str, nn.Parameter]:
    """The parameters that `which` selects, by name.

    Raises:
        UserError: `which` selects no parameter.
    """
    parameters = dict(model.named_parameters())
    return {name: parameters[name] for name in matching_names(model, which, parameters)}


def make_trainable(model: TextToImage, which: str) -> dict[str, nn.Parameter]:
    """Make the parameters that `which` selects trainable, in fp32, and no others; returns them by name.

    Raises:
        UserError: `which` selects no parameter.
    """
    selected = select_parameters(model, which)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in selected)
    for parameter in selected.values():
        parameter.data = parameter.data.float()
    return selected


def trainable_parameters(model: TextToImage) -> dict[str, nn.Parameter]:
    """The parameters that require gradients, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@contextmanager
def replaced_values(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block each parameter has the value of its name."""
    current = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = values[name]
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = current[name]


def gradients(loss: Tensor, inputs: Sequence[Tensor], model: TextToImage | None) -> list[Tensor | None]:
    """The loss's gradient with respect to each input; None where it does not affect the loss. Leaves `grad` unchanged.

    Where fp16 is computed by autocast (see `scales_loss`) the loss is scaled, so that small gradients within the network are not
    rounded to 0, and the scale is divided out again (Micikevicius et al. 2018, arXiv 1710.03740). Each loss begins with the same
    scale, which is divided by 16 until every gradient is finite: no step is left out, and none depends on earlier ones.
    """
    if not scales_loss(model):
        return list(torch.autograd.grad(loss, inputs, allow_unused=True))
    scale = LOSS_SCALE
    while True:
        scaled = torch.autograd.grad(loss * scale, inputs, retain_graph=scale > 1, allow_unused=True)
        if scale <= 1 or all(value is None or value.isfinite().all() for value in scaled):
            return [None if value is None else (value.float() / scale).to(value.dtype) for value in scaled]
        scale /= 16


def backpropagate(loss: Tensor, parameters: Sequence[Tensor], model: TextToImage) -> None:
    """Add the loss's gradient to the `grad` of each parameter, with the scaled loss of `gradients` where the model needs it."""
    if not scales_loss(model):
        loss.backward()
        return
    for parameter, value in zip(parameters, gradients(loss, parameters, model), strict=True):
        if value is not None:
            parameter.grad = value if parameter.grad is None else parameter.grad + value


def scales_loss(model: TextToImage | None) -> bool:
    """Whether the model, if it is known, computes gradients in fp16 on an accelerator."""
    return model is not None and model.dtype == "fp16" and model.device.type != "cpu"


def make_optimizer(model: TextToImage, parameters: Sequence[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Adam for these parameters, with 8-bit moments if the model's `adam8bit` is set; fused on CUDA, which saves copies."""
    if model.adam8bit:
        from bitsandbytes.optim import Adam8bit

        return Adam8bit(parameters, lr)
    return torch.optim.Adam(parameters, lr, fused=model.device.type == "cuda" or None)
