"""Continual unlearning that stays near its start: L2 to the start, selective fine-tuning, and merging by TIES.

The three are enhancements of CUIG (Lee et al., ICLR 2026); the formulas were read from its code, github.com/justinhylee135/CUIG.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from unlearnbench.algos.saliency import largest_scores


@dataclass
class Constraint:
    """What the steps of a fine-tuning method obey while one concept after another is unlearned.

    Attributes:
        start: theta_0, the values of the run's original model, by name.
        l2: lambda of the penalty; 0 for none.
        selective: the share of the weights that train; 1 for all.
        masks: which weights train, by name; chosen at the start of each concept.
    """

    start: Mapping[str, Tensor]
    l2: float = 0.0
    selective: float = 1.0
    masks: dict[str, Tensor] = field(default_factory=dict)

    def select(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Choose the weights that train by their present gradients, which are of the concept's loss, and clear these.

        Importance is |theta * dL/dtheta|, over all parameters together, as SelFT has it.
        """
        scores = {name: (p * p.grad).abs() if p.grad is not None else torch.zeros_like(p) for name, p in parameters.items()}
        self.masks = largest_scores({name: score.detach() for name, score in scores.items()}, self.selective)
        for parameter in parameters.values():
            parameter.grad = None

    def shape_gradients(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Add the gradient of lambda / N * sum (theta - theta_0)^2, with N the number of weights; then stop unselected ones."""
        count = sum(parameter.numel() for parameter in parameters.values())
        for name, parameter in parameters.items():
            if parameter.grad is None:
                continue
            if self.l2 > 0:
                distance = parameter.detach() - self.start[name].to(parameter)
                parameter.grad.add_(distance, alpha=2 * self.l2 / count)
            if name in self.masks:
                parameter.grad.mul_(self.masks[name])


def ties(vectors: Sequence[Mapping[str, Tensor]], density: float) -> dict[str, Tensor]:
    """Merge task vectors theta_i - theta_0 (Yadav et al. 2023, arXiv 2306.01708).

    Trim: of each vector the largest `density` by magnitude remain. Elect: a weight's sign is that of the sum over vectors.
    Merge: its value is the mean over those vectors that are not zero there and have this sign. The paper trims over the whole
    vector, as here; CUIG's code trims every tensor on its own.

    Args:
        vectors: one for each concept, by names of parameters; a name that is absent counts as zero.
        density: the share that remains, above 0 to 1.

    Examples:
        >>> ties([{"w": torch.tensor([4.0, -1.0, 0.1])}, {"w": torch.tensor([2.0, 3.0, 0.0])}], 2 / 3)
        {'w': tensor([3., 3., 0.])}
    """
    trimmed = [_trimmed(vector, density) for vector in vectors]
    names = dict.fromkeys(name for vector in trimmed for name in vector)
    return {name: _merged([vector[name] for vector in trimmed if name in vector]) for name in names}


def _trimmed(vector: Mapping[str, Tensor], density: float) -> dict[str, Tensor]:
    masks = largest_scores({name: value.abs() for name, value in vector.items()}, density)
    return {name: value * masks[name] for name, value in vector.items()}


def _merged(values: Iterable[Tensor]) -> Tensor:
    stacked = torch.stack([*values])
    agreeing = (stacked * stacked.sum(0).sign()) > 0
    return (stacked * agreeing).sum(0) / agreeing.sum(0).clamp(min=1)
