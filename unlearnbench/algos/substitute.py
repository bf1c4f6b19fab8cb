"""Substitute the concept by its anchor, and hold everything else where it was: ours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unlearnbench.algos.base import Batch, Unlearner, distillation, noised
from unlearnbench.models.base import Frozen, TextToImage


@dataclass
class Substitute(Unlearner):
    """The original teaches both sides: for a forget prompt what it paints for the anchor, for a retain prompt itself.

    L = |eps(x_t, c_f) - eps_0(x_t, c_a)|^2 + keep |eps(x_t', c_r) - eps_0(x_t', c_r)|^2, means over pixels, where x_t is
    the noised image of the concept or, in a share `from_anchor` of the batch, of a retain image. At the start the
    second term and its gradient are zero: only forgetting moves the model. Ours; the first term is the model-based
    concept ablation of Kumari et al. 2023 (arXiv 2303.13516) with the original as a frozen teacher.

    Attributes:
        keep: the weight of the retain term.
        from_anchor: the share of forget prompts whose x_t comes from retain images.
    """

    keep: float = 1.0
    from_anchor: float = 0.5

    def loss(self, model: TextToImage, frozen: Frozen, forget: Batch, retain: Batch, generator: torch.Generator) -> Tensor:
        """Substitution on the concept plus distillation on the rest."""
        other = torch.rand(len(forget.prompts), generator=generator) < self.from_anchor
        latents = torch.where(other.to(model.device)[:, None, None, None], retain.latents, forget.latents)
        x = noised(model, latents, generator)
        taught = frozen.predict(x.noisy, x.times, forget.anchors)
        forgetting = F.mse_loss(model.predict(x.noisy, x.times, model.encode(forget.prompts)), taught)
        return forgetting + self.keep * distillation(model, frozen, retain, generator)
