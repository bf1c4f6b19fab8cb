"""Push the concept away with ESD's target, and preserve everything else: our method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from unlearnbench.algos.examples import Batch
from unlearnbench.algos.negative_guidance import negative_guidance_target
from unlearnbench.algos.substitute import Substitute
from unlearnbench.config.ranges import one_of
from unlearnbench.models.frozen import Frozen


@dataclass
class PushAway(Substitute):
    """`substitute` with ESD's target in place of the anchor's prediction, for concepts without an anchor.

    L = |eps(x_t, c_f) - (eps_0(x_t, c_from) - eta (eps_0(x_t, c_f) - eps_0(x_t, "")))|^2
    + keep |eps(x_t', c_r) - eps_0(x_t', c_r)|^2. Ours; the first term is that of ESD (Gandikota et al. 2023,
    arXiv 2303.07345, equation 7), the second term and the settings are those of `Substitute`.

    Attributes:
        eta: strength of the negative guidance.
        source: c_from, "empty" or "concept".
    """

    eta: float = 1.0
    source: str = "empty"
    from_anchor: float = 0.0
    needs_anchors: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "source", "concept", "empty")

    def requires(self) -> frozenset[str]:
        """See `Unlearner.requires`."""
        return super().requires() | {"cfg"}

    def teacher_prediction(self, frozen: Frozen, noisy_latents: Tensor, timesteps: Tensor, forget: Batch) -> Tensor:
        """The negatively guided prediction of the original."""
        return negative_guidance_target(frozen, noisy_latents, timesteps, forget.prompts, self.eta, self.source)
