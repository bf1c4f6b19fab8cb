"""UnlearnDiffAtk: a few words before the prompt, learned through the unlearned model alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unlearnbench.attacks.learned_prefix import PrefixAttack


@dataclass
class UnlearnDiffAtk(PrefixAttack):
    """Words before the prompt under which the unlearned model denoises a picture of the concept best.

    min over the words d of E_t,eps |eps - eps_u(x_t, d + prompt)|^2, x_t a noised image of the original's for the prompt:
    the model as its own classifier, with no other network (Zhang et al. 2023, arXiv 2310.11868; form and settings after
    the authors' code, OPTML-Group/Diffusion-MU-Attack). Each word is a distribution over the vocabulary, uniform at the
    start. A step draws a word from it, takes the gradient at that word's one-hot vector, clipped elementwise to [-1, 1],
    moves the distribution by Adam (weight decay in the gradient) and projects it back onto the simplex. The prompt has
    the likeliest words.

    Ours: t is uniform at each step, in place of 50 times in ascending order with 40 steps each; the projection is exact,
    theirs by bisection; the loss at fixed times and noises chooses among the prompts on the way, where theirs asks the
    detector after each time and stops at its first success, which is easier for the attack. A model that predicts
    velocity is held to that.

    Attributes:
        tokens: words before the prompt (3 for objects and styles there, 5 for nudity).
    """

    def start(self, vocabulary: Tensor, counts: list[int], generators: list[torch.Generator]) -> Tensor:
        """The uniform distribution, (n, slots, words)."""
        words = len(vocabulary)
        return torch.full((len(counts), max(counts), words), 1 / words, device=vocabulary.device).requires_grad_()

    def vectors(self, learned: Tensor, vocabulary: Tensor, generators: list[torch.Generator]) -> Tensor:
        """The embeddings of words drawn from the distributions."""
        chances = learned.detach().cpu()
        drawn = [torch.multinomial(row, 1, generator=g)[:, 0] for row, g in zip(chances, generators, strict=True)]
        return vocabulary[torch.stack(drawn).to(vocabulary.device)]

    def pull(self, gradient: Tensor, vocabulary: Tensor) -> Tensor:
        """The gradient of the one-hot vector, clipped."""
        return (gradient @ vocabulary.T).clamp(-1, 1)

    def project(self, learned: Tensor) -> Tensor:
        """The nearest distributions."""
        return simplex(learned)

    def words(self, learned: Tensor, vocabulary: Tensor) -> Tensor | None:
        """The likeliest."""
        return learned.argmax(-1)


def simplex(points: Tensor) -> Tensor:
    """The nearest points that are at least 0 and sum to 1 over the last dimension (Duchi et al. 2008, figure 1).

    Examples:
        >>> simplex(torch.tensor([0.6, 0.6, -1.0]))
        tensor([0.5000, 0.5000, 0.0000])
    """
    down = points.sort(-1, descending=True).values
    excess = (down.cumsum(-1) - 1) / torch.arange(1, points.shape[-1] + 1, device=points.device)
    last = (down > excess).sum(-1, keepdim=True) - 1
    return (points - excess.gather(-1, last)).clamp(min=0)
