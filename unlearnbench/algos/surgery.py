"""Gradient surgery: forget only where it does not hurt: ours."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from unlearnbench.algos.losses import denoising_loss, gradients_of
from unlearnbench.algos.substitute import Substitute
from unlearnbench.algos.training import Step, Training


@dataclass
class SurgeryState:
    """The average of g_r by parameter."""

    average: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Surgery(Substitute):
    """`substitute` whose forget gradient loses what would raise the denoising loss on retain images.

    g = P(g_f) + keep g_keep, where P(g_f) = g_f - min(0, <g_f, g_r>) / |g_r|^2 g_r, g_f and g_keep are the gradients of
    the two terms of `Substitute`, and g_r that of L_diff on retain images, averaged over steps (g_keep, zero at the start,
    could guard nothing). All parameters count as one vector. Ours; the projection is that of PCGrad
    (Yu et al. 2020, arXiv 2001.06782), on one side only.

    Attributes:
        memory: the share of the average of g_r that a step keeps; 0 uses the step's own.
    """

    memory: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.memory < 1:
            raise ValueError(f"memory: {self.memory} is not between 0 and 1")

    def begin(self, training: Training) -> SurgeryState:
        """Begins the average of g_r."""
        super().begin(training)
        return SurgeryState()

    def backward(self, training: Training, step: Step) -> Tensor:
        """Three backward passes: forget, retain, keep."""
        model, frozen, parameters, (forget, retain, generator) = training.model, training.original, training.parameters, step
        forgetting = self.forgetting(model, frozen, forget, generator)
        wanted = gradients_of(forgetting, parameters)
        found = gradients_of(denoising_loss(model, retain, generator), parameters)
        average = training.state.average
        training.state.average = {name: average.get(name, g).lerp(g, 1 - self.memory) for name, g in found.items()}
        kept = self.keep * self.keeping(model, frozen, retain, generator)
        held = gradients_of(kept, parameters)
        for name, projected in without(wanted, training.state.average).items():
            parameters[name].grad = projected + held[name]
        return (forgetting + kept).detach()


def without(wanted: dict[str, Tensor], guarded: dict[str, Tensor]) -> dict[str, Tensor]:
    """`wanted` less its component against `guarded`, if it has one.

    Examples:
        >>> without({"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([-1.0, 1.0])})
        {'w': tensor([0.5000, 0.5000])}
    """
    along = torch.stack([(w * guarded[name]).sum() for name, w in wanted.items()]).sum()
    length = torch.stack([g.square().sum() for g in guarded.values()]).sum()
    share = along.clamp(max=0) / length.clamp(min=1e-30)
    return {name: w - share * guarded[name] for name, w in wanted.items()}
