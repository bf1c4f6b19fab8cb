"""EraseDiff: keep the rest, under the constraint that the concept goes."""

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
    """Minimise L_r under the constraint that L_f is as low as K steps on it alone would make it.

    The outer loss is L_r + lambda (L_f - L_f^K), with L_r = L_diff(retain), L_f = |eps(x_t, c_f) - sg eps(x_t, c')|^2 on the
    concept's images, and L_f^K its value after K inner steps, a constant in the outer gradient (Wu et al. 2024, arXiv
    2401.05779; the first-order method is BOME's, Liu et al. 2022, arXiv 2209.08709). lambda is fixed, as in the authors'
    scripts for Stable Diffusion, or max(0, eta - cos(g_r, g_f)) of the two gradients, as their code for DDPMs offers (BOME
    has <g_r, g_f> / |g_f|^2 for the cosine).

    Ours differs: a constant moves nothing, so the inner steps are left out (in the authors' code they act only through
    the moments of an optimizer that both loops share), and with a fixed lambda what remains is, up to scale,
    `random_label` with alpha 1 / lambda; c' is the anchor's prompt, theirs "a photo of a pokemon" or the next class;
    `not_xattn` trains the time embedding and the last layer too.

    Attributes:
        rule: how lambda is found, "fixed" or "adaptive".
        lam: lambda where it is fixed.
        eta: where it is adaptive, lambda at gradients that are orthogonal.
    """

    rule: str = "fixed"
    lam: float = 1.0
    eta: float = 0.1
    needs_anchors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "rule", "adaptive", "fixed")

    def loss(self, model: TextToImage, frozen: Frozen, forget: Batch, retain: Batch, generator: torch.Generator) -> Tensor:
        """L_r + lam L_f."""
        return denoising_loss(model, retain, generator) + self.lam * relabelling_loss(model, forget, forget.anchors, generator)

    def backward(self, training: Training, step: Step) -> Tensor:
        """One backward pass where lambda is fixed, one for each loss where it depends on the gradients."""
        if self.rule == "fixed":
            return super().backward(training, step)
        model, parameters, (forget, retain, generator) = training.model, training.parameters, step
        kept = denoising_loss(model, retain, generator)
        up = gradients_of(kept, parameters)
        forgetting = relabelling_loss(model, forget, forget.anchors, generator)
        down = gradients_of(forgetting, parameters)
        lam = multiplier(up, down, self.eta)
        for name, parameter in parameters.items():
            parameter.grad = up[name] + lam * down[name]
        return (kept + lam * forgetting).detach()


def multiplier(kept: dict[str, Tensor], forgetting: dict[str, Tensor], eta: float) -> Tensor:
    """max(0, eta - cos) of two gradients, each as one vector.

    Examples:
        >>> multiplier({"a": torch.tensor([0.0, -2.0])}, {"a": torch.tensor([0.0, 3.0])}, 0.1)
        tensor(1.1000)
    """
    along = torch.stack([(kept[name] * value).sum() for name, value in forgetting.items()]).sum()
    lengths = [torch.stack([value.square().sum() for value in side.values()]).sum().sqrt() for side in (kept, forgetting)]
    return (eta - along / (lengths[0] * lengths[1]).clamp(min=1e-30)).clamp(min=0)
