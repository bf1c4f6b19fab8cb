"""CMMD: a kernel distance of CLIP features; it needs fewer images than FID and assumes no normal distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unlearnbench.metrics.base import MetricInputs
from unlearnbench.metrics.fid import DistanceToReal, real_features, sum_over_pairs
from unlearnbench.results.run import Value

SIGMA, SCALE = 10.0, 1000.0


def cmmd(left: Tensor, right: Tensor) -> float:
    """1000 MMD^2 of features (n, d) and (m, d) of unit length, kernel exp(-|x - y|^2 / (2 10^2)).

    Jayasumana et al. 2024, arXiv 2401.09603, with the means over all pairs, an image with itself included, as in the
    authors' code: biased, and therefore never below 0.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square() / (-2 * SIGMA**2))

    def mean(a: Tensor, b: Tensor) -> Tensor:
        return sum_over_pairs(kernel, a, b) / (len(a) * len(b))

    a, b = left.double(), right.double()
    return SCALE * float(mean(a, a) + mean(b, b) - 2 * mean(a, b))


@dataclass
class CMMD(DistanceToReal):
    """The kernel distance of the models' retain images to real images of the retain set, in CLIP's space.

    Attributes:
        backbone: auto-clip (embedded worlds: their own small CLIP; photographs: openai/clip-vit-large-patch14), or clip:<path>;
            the paper's is clip:openai/clip-vit-large-patch14-336.
    """

    backbone: str = "auto-clip"
    unit: ClassVar[str] = "x 1000"
    least_retain_images: ClassVar[int] = 1

    def measure(self, inputs: MetricInputs) -> list[Value]:
        """cmmd, original and unlearned."""
        sides = self.retain_features(inputs)
        real = real_features(inputs, self.backbone)
        return [self.distance("cmmd", inputs, *(cmmd(features, real) for features in sides), note="sigma 10")]
