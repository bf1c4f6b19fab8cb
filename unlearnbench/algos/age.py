"""AGE: erase a concept into the mixture of near words that an adversary chooses, and preserve that mixture."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unlearnbench.algos.eap import EAP
from unlearnbench.config.ranges import at_least
from unlearnbench.models.base import Conditioning, TextToImage


@dataclass
class AGE(EAP):
    """EAP with the adversary's mixture of near words in place of the empty prompt, as what the concept becomes.

    L = |x(c) - (x_0(m) - eta (x_0(c) - x_0(m)))|^2 + |x(m) - x_0(m)|^2, in the notation of `EAP`. The mixture m has the `top`
    words of a draw of the Gumbel softmax, their shares summing to one (Bui et al. 2025, arXiv 2501.18950, "Fantastic Targets
    for Concept Erasure in Diffusion Models and Where To Find Them").

    Loss, mixture and numbers were verified against the authors' code (train_age.py), in which the gradient of the words' logits
    is, as here, that of the second term alone: the first is computed without one. Ours differs as `EAP` says.

    Attributes:
        top: the number of words in a mixture.
    """

    top: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "top")

    def destination(self, original: TextToImage, mixture: Conditioning, count: int) -> Conditioning:
        """See `EAP.destination`: the mixture."""
        return mixture

    def sharpened(self, shares: Tensor) -> Tensor:
        """See `EAP.sharpened`: only the largest shares remain."""
        least = shares.topk(min(self.top, shares.shape[1])).values[:, -1:]
        largest = shares * (shares >= least)
        return largest / largest.sum(1, keepdim=True)
