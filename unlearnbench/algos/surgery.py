"""Gradient surgery: remove the harmful component of the forget gradient: our method."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from unlearnbench.algos.losses import denoising_loss, gradients_of
from unlearnbench.algos.substitute import Substitute
from unlearnbench.algos.training import Step, Training


@dataclass
class SurgeryState:
    """The moving average of g_r by parameter."""

    average: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Surgery(Substitute):
    """`substitute` without the component of the forget gradient that would increase the denoising loss on retain images.

    g = P(g_f) + keep g_keep, where P(g_f) = g_f - min(0, <g_f, g_r>) / |g_r|^2 g_r. g_f and g_keep are the gradients of
    the two terms of `Substitute`. g_r is that of L_diff on retain images, averaged over steps; g_keep is zero at the start
    and cannot take its place. All parameters form one vector. Ours; the projection is that of PCGrad (Yu et al. 2020,
    arXiv 2001.06782), on one side only.

    Attributes:
        memory: the weight of the earlier average of g_r in a step; 0 uses the step's own gradient.
    """

    memory: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.memory < 1:
            raise ValueError(f"memory: {self.memory} is not between 0 and 1")

    @property
    def passes_with_gradient(self) -> int:
        """See `Unlearner.passes_with_gradient`."""
        return (1 + (self.keep_anchor > 0)) * (2 if self.guided else 1)

    def begin(self, training: Training) -> SurgeryState:
        """Start an empty average of g_r."""
        super().begin(training)
        return SurgeryState()

    def backward(self, training: Training, step: Step) -> Tensor:
        """Three backward passes: g_f, g_r and g_keep."""
        model, frozen, parameters, (forget, retain, generator) = training.model, training.original, training.parameters, step
        forget_loss = self.forget_loss(model, frozen, forget, generator)
        forget_gradients = gradients_of(forget_loss, parameters, model)
        gradients = gradients_of(denoising_loss(model, retain, generator), parameters, model)
        average = training.state.average
        training.state.average = {name: average.get(name, g).lerp(g, 1 - self.memory) for name, g in gradients.items()}
        retain_loss = self.keep * self.retain_loss(model, frozen, retain, generator)
        retain_gradients = gradients_of(retain_loss, parameters, model)
        for name, gradient in project_conflict(forget_gradients, training.state.average).items():
            parameters[name].grad = gradient + retain_gradients[name]
        return (forget_loss + retain_loss).detach()


def project_conflict(gradients: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients without their component against the reference, if they have one; each argument is one vector.

    Examples:
        >>> project_conflict({"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([-1.0, 1.0])})
        {'w': tensor([0.5000, 0.5000])}
    """
    dot = torch.stack([(gradient * reference[name]).sum() for name, gradient in gradients.items()]).sum()
    square = torch.stack([value.square().sum() for value in reference.values()]).sum()
    share = dot.clamp(max=0) / square.clamp(min=1e-30)
    return {name: gradient - share * reference[name] for name, gradient in gradients.items()}
