"""The trained parameters of a model: selected by name, made trainable, optimised."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unlearnbench.config.errors import UserError, suggest
from unlearnbench.models.base import TextToImage


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


def make_optimizer(model: TextToImage, parameters: Sequence[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Adam for these parameters, with 8-bit moments if the model's `adam8bit` is set; fused on CUDA, which saves copies."""
    if model.adam8bit:
        from bitsandbytes.optim import Adam8bit

        return Adam8bit(parameters, lr)
    return torch.optim.Adam(parameters, lr, fused=model.device.type == "cuda" or None)
