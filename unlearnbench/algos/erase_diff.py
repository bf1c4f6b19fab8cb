"""EraseDiff: retain under the constraint that the concept is forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.examples import Batch
from unlearnbench.algos.losses import denoising_loss, gradients_of, relabelling_loss
from unlearnbench.algos.training import Step, Training
from unlearnbench.config.ranges import one_of
from unlearnbench.models.base import TextToImage
from unlearnbench.models.frozen import Frozen


@dataclass
class EraseDiff(Unlearner):
    """Minimise L_r under the constraint that L_f is as low as after K steps on L_f alone.

    The outer loss is L_r + lambda (L_f - L_f^K), with L_r = L_diff(retain) and L_f = |eps(x_t, c_f) - sg eps(x_t, c')|^2 on
    the concept's images. L_f^K is the value of L_f after K inner steps, a constant in the outer gradient (Wu et al. 2024,
    arXiv 2401.05779; the first-order method is BOME, Liu et al. 2022, arXiv 2209.08709). lambda is fixed, as in the
    authors' scripts for Stable Diffusion, or max(0, eta - cos(g_r, g_f)) of the two gradients, as in their code for DDPMs
    (BOME has <g_r, g_f> / |g_f|^2 instead of the cosine).

    Ours differs: a constant has no gradient, so we omit the inner steps. In the authors' code these act only through
    the moments of an optimizer that both loops share. With a fixed lambda the method is, up to scale, `random_label` with
    alpha 1 / lambda. Their code restores the weights K times in each epoch and keeps only the outer steps that follow the last,
    but counts all: of its 160 steps for nudity fewer have an effect. c' is the anchor's prompt; theirs is "a photo of a
    pokemon" or the next class. `not_xattn` also trains the time embedding and the last layer.

    Attributes:
        rule: the rule for lambda, "fixed" or "adaptive".
        lam: lambda under the fixed rule.
        eta: lambda at orthogonal gradients under the adaptive rule.
    """

    rule: str = "fixed"
    lam: float = 1.0
    eta: float = 0.1
    needs_anchors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "rule", "adaptive", "fixed")

    @property
    def passes_with_gradient(self) -> int:
        """See `Unlearner.passes_with_gradient`."""
        return 2 if self.rule == "fixed" else 1

    def loss(self, model: TextToImage, frozen: Frozen, forget: Batch, retain: Batch, generator: torch.Generator) -> Tensor:
        """L_r + lam L_f."""
        return denoising_loss(model, retain, generator) + self.lam * relabelling_loss(model, forget, forget.anchors, generator)

    def backward(self, training: Training, step: Step) -> Tensor:
        """One backward pass under the fixed rule; one for each loss under the adaptive rule."""
        if self.rule == "fixed":
            return super().backward(training, step)
        model, parameters, (forget, retain, generator) = training.model, training.parameters, step
        retain_loss = denoising_loss(model, retain, generator)
        retain_gradients = gradients_of(retain_loss, parameters, model)
        forget_loss = relabelling_loss(model, forget, forget.anchors, generator)
        forget_gradients = gradients_of(forget_loss, parameters, model)
        lam = adaptive_lambda(retain_gradients, forget_gradients, self.eta)
        for name, parameter in parameters.items():
            parameter.grad = retain_gradients[name] + lam * forget_gradients[name]
        return (retain_loss + lam * forget_loss).detach()


def adaptive_lambda(retain: dict[str, Tensor], forget: dict[str, Tensor], eta: float) -> Tensor:
    """max(0, eta - cos(g_r, g_f)), with each gradient as one vector over all parameters.

    Examples:
        >>> adaptive_lambda({"a": torch.tensor([0.0, -2.0])}, {"a": torch.tensor([0.0, 3.0])}, 0.1)
        tensor(1.1000)
    """
    dot = torch.stack([(retain[name] * value).sum() for name, value in forget.items()]).sum()
    norms = [torch.stack([value.square().sum() for value in side.values()]).sum().sqrt() for side in (retain, forget)]
    return (eta - dot / (norms[0] * norms[1]).clamp(min=1e-30)).clamp(min=0)
