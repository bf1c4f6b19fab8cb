"""SDD: safe self-distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.negative_guidance import partially_denoise
from unlearnbench.algos.training import Step, Training
from unlearnbench.config.ranges import at_least, share
from unlearnbench.models.parameters import replaced_values


@dataclass
class SDDState:
    """The moving average of the trained parameters, by name."""

    average: dict[str, Tensor]


@dataclass
class SDD(Unlearner):
    """Teach the concept's prompts the model's own unconditional prediction, and keep the moving average of the weights.

    L = |eps(x_t, c_f) - sg eps(x_t, "")|^2, where x_t is a sample of the moving average, stopped at a random step, and sg stops
    the gradient (Kim et al. 2023, arXiv 2307.05977). The result is the moving average. The method needs no images.

    The defaults are those of the authors' code (1,500 steps of one prompt), with guidance 3 for x_t as in its README. Ours
    differs: c_f are the forget prompts, there the bare concept; t is that of the sampling step, there random between two steps;
    Adam has no weight decay (there 1e-4).

    Attributes:
        decay: of the moving average at each step.
        sample_steps: steps of the complete sampling, of which x_t is an intermediate state.
        sample_guidance: guidance scale of that sampling.
    """

    decay: float = 0.999
    sample_steps: int = 50
    sample_guidance: float = 3.0
    needs_images: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        share(self, "decay")
        at_least(self, 1, "sample_steps")

    def requires(self) -> frozenset[str]:
        """See `Unlearner.requires`."""
        return frozenset({"cfg"})

    def begin(self, training: Training) -> SDDState:
        """The average starts at the original."""
        return SDDState({name: value.detach().clone() for name, value in training.parameters.items()})

    def step_loss(self, training: Training, step: Step) -> Tensor:
        """The mean squared distance of the predictions for the concept and for the empty prompt."""
        model, prompts = training.model, step.forget.prompts
        with replaced_values(training.parameters, training.state.average):
            x, t = partially_denoise(model, prompts, self.sample_steps, self.sample_guidance, step.generator)
        with torch.no_grad():
            target = model.predict(x, t, model.encode_prompts([""] * len(prompts)))
        return F.mse_loss(model.predict(x, t, model.encode_prompts(prompts)), target)

    def after_step(self, training: Training) -> None:
        """Move the average toward the parameters."""
        with torch.no_grad():
            for name, value in training.parameters.items():
                training.state.average[name].lerp_(value, 1 - self.decay)

    def finish(self, training: Training) -> None:
        """The parameters become the average."""
        for name, value in training.parameters.items():
            value.data.copy_(training.state.average[name])
