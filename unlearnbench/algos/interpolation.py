"""After training, back along the straight line toward the original, as far as the forgetting lasts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def interpolate_back(
    parameters: dict[str, nn.Parameter],
    original: dict[str, Tensor],
    forgetting: Callable[[], float],
    allowed: float,
    halvings: int = 6,
) -> float:
    """Move the parameters to theta_0 + a (theta - theta_0), with the least a at which L_f <= L_f(1) + allowed (L_f(0) - L_f(1)).

    The segment is halved, which finds the least a where the loss falls steadily along it.

    Args:
        parameters: theta, changed in place.
        original: theta_0.
        forgetting: L_f of the parameters as they stand; it must draw the same examples at every call.
        allowed: the share of the fall of L_f that may be lost, 0 to 1.
        halvings: how often the segment is halved.

    Returns:
        a, between 0 and 1.
    """
    reached = {name: parameter.data for name, parameter in parameters.items()}

    def loss_at(share: float) -> float:
        for name, parameter in parameters.items():
            parameter.data = original[name].to(reached[name].dtype).lerp(reached[name], share)
        return forgetting()

    with torch.no_grad():
        start, end = loss_at(0.0), loss_at(1.0)
        short, enough = 0.0, 1.0
        for _ in range(halvings):
            middle = (short + enough) / 2
            if loss_at(middle) <= end + allowed * (start - end):
                enough = middle
            else:
                short = middle
        loss_at(enough)
    return enough
