"""Masks of the weights with the largest scores."""

from __future__ import annotations

import torch
from torch import Tensor

NO_LORA = "adapters begin at zero, where none is salient; choose weights of the model, such as algo.train=xattn"
LARGEST_INDEX = 2**31 - 1  # above it torch.kthvalue on a GPU has overflowed (2.6)


def largest_scores(scores: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Masks of the largest `share` of all scores, at least one; all scores equal to the smallest selected one count.

    Examples:
        >>> largest_scores({"a": torch.tensor([1.0, 4.0]), "b": torch.tensor([[3.0], [2.0]])}, 0.5)
        {'a': tensor([False,  True]), 'b': tensor([[ True],
                [False]])}
    """
    ranked = torch.cat([score.flatten() for score in scores.values()])
    if len(ranked) > LARGEST_INDEX:
        ranked = ranked.cpu()
    border = float(ranked.kthvalue(len(ranked) + 1 - max(1, round(share * len(ranked)))).values)
    return {name: score >= border for name, score in scores.items()}
