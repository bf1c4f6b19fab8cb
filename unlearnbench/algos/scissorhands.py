"""Scissorhands: reinitialise the weights that the concept depends on, then restore the rest."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.examples import Batch
from unlearnbench.algos.losses import denoising_loss, gradients_of, relabelling_loss
from unlearnbench.algos.saliency import NO_LORA, largest_scores
from unlearnbench.algos.training import Training
from unlearnbench.config.errors import UserError
from unlearnbench.config.ranges import at_least, share_above_zero
from unlearnbench.models.base import TextToImage
from unlearnbench.models.frozen import Frozen
from unlearnbench.models.parameters import name_pattern


@dataclass
class Scissorhands(Unlearner):
    """Reinitialise the weights with the largest connection sensitivity to the concept, then fine-tune.

    The sensitivity of a weight is |w| sum over batches |d L_diff(forget) / dw| at theta_0. Of the largest `share` of all
    weights that train, those that match `cut` are reinitialised: Kaiming-uniform, biases zero. Then
    L = L_diff(retain) + lam |eps(x_t, c_f) - sg eps(x_t, c_a)|^2 on the concept's images (Wu & Harandi 2024, arXiv
    2401.06187; the authors' code for nudity). For objects their code has -lam L_diff(forget) as second term.

    Ours differs: the paper's gradient projection is left out, which their code uses for classifiers but not for Stable
    Diffusion. They cut in two of the decoder's self-attention layers; ours cuts in all of the UNet's, since other models
    name their layers differently.

    Attributes:
        share: the share of weights whose sensitivity counts as large.
        scans: batches in the sum of the sensitivity.
        cut: which weights may be reinitialised: like `train`, a name or a regular expression over parameter names.
        lam: weight of the forget term of the fine-tuning.
    """

    share: float = 0.005
    scans: int = 10
    cut: str = "self_attn"
    lam: float = 0.1
    needs_anchors: ClassVar[bool] = True
    passes_with_gradient: ClassVar[int] = 2
    no_lora_reason: ClassVar[str] = NO_LORA

    def __post_init__(self) -> None:
        super().__post_init__()
        share_above_zero(self, "share")
        at_least(self, 1, "scans")
        try:
            re.compile(self.cut)
        except re.error as error:
            raise ValueError(f"cut: {self.cut} is not a regular expression ({error})") from error

    def begin(self, training: Training) -> None:
        """Reinitialise the most sensitive weights.

        Raises:
            UserError: `cut` matches no parameter that trains.
        """
        generator, parameters = training.generator, training.parameters
        cut = name_pattern(training.model, self.cut, "algo.cut")
        if not any(cut.search(name) for name in parameters):
            raise UserError(f"algo.cut={self.cut}: matches no parameter that trains; .* matches all")
        mask = largest_scores(self.sensitivity(training), self.share)
        for name, parameter in parameters.items():
            if cut.search(name):
                parameter.data = torch.where(mask[name], kaiming_uniform_like(parameter, generator), parameter.data)

    def sensitivity(self, training: Training) -> dict[str, Tensor]:
        """|w| sum |d L_diff(forget) / dw| over `scans` random batches, by parameter."""
        model, forget, generator, parameters = training.model, training.forget, training.generator, training.parameters
        slopes = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        for _ in range(self.scans):
            loss = denoising_loss(model, forget.draw(self.batch, generator), generator)
            for name, value in gradients_of(loss, parameters, model).items():
                slopes[name] += value.abs()
        return {name: slopes[name] * parameter.detach().abs() for name, parameter in parameters.items()}

    def loss(self, model: TextToImage, frozen: Frozen, forget: Batch, retain: Batch, generator: torch.Generator) -> Tensor:
        """L_diff(retain) + lam |eps(x_t, c_f) - sg eps(x_t, c_a)|^2."""
        return denoising_loss(model, retain, generator) + self.lam * relabelling_loss(model, forget, forget.anchors, generator)


def kaiming_uniform_like(parameter: Tensor, generator: torch.Generator) -> Tensor:
    """Kaiming-uniform values of the parameter's shape, or zeros for a vector."""
    values = torch.zeros(parameter.shape)
    if values.ndim > 1:
        nn.init.kaiming_uniform_(values, nonlinearity="relu", generator=generator)
    return values.to(parameter.device)
