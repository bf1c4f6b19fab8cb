"""Interpolation toward the original after training, as far as the forget loss permits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def interpolate_back(
    parameters: dict[str, nn.Parameter],
    original: dict[str, Tensor],
    forget_loss: Callable[[], float],
    allowed: float,
    halvings: int = 6,
) -> float:
    """Move the parameters to theta_0 + a (theta - theta_0), with the least a at which L_f <= L_f(1) + allowed (L_f(0) - L_f(1)).

    Bisection finds the least a if the loss decreases monotonically along the segment.

    Args:
        parameters: theta, changed in place.
        original: theta_0.
        forget_loss: computes L_f of the current parameters, on the same examples at every call.
        allowed: the share of the decrease of L_f that may be lost, 0 to 1.
        halvings: the number of bisection steps.

    Returns:
        a, between 0 and 1.
    """
    trained = {name: parameter.data for name, parameter in parameters.items()}

    def loss_at(weight: float) -> float:
        for name, parameter in parameters.items():
            parameter.data = original[name].to(trained[name].dtype).lerp(trained[name], weight)
        return forget_loss()

    with torch.no_grad():
        start, end = loss_at(0.0), loss_at(1.0)
        low, high = 0.0, 1.0
        for _ in range(halvings):
            middle = (low + high) / 2
            if loss_at(middle) <= end + allowed * (start - end):
                high = middle
            else:
                low = middle
        loss_at(high)
    return high
