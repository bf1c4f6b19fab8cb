"""UnlearnDiffAtk: a few words before the prompt, learned through the unlearned model alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unlearnbench.attacks.learned_prefix import PrefixAttack


@dataclass
class UnlearnDiffAtk(PrefixAttack):
    """Words before the prompt under which the unlearned model best denoises an image of the concept.

    min over the words d of E_t,eps |eps - eps_u(x_t, d + prompt)|^2, where x_t is the noised image that the original
    generates for the prompt. The model is its own classifier; no other network takes part (Zhang et al. 2023, arXiv
    2310.11868; form and settings follow the authors' code, OPTML-Group/Diffusion-MU-Attack). Each word is a distribution
    over the vocabulary, uniform at the start. A step draws a word from it, computes the gradient at that word's one-hot
    vector, clips it elementwise to [-1, 1], moves the distribution by Adam (weight decay in the gradient) and projects it
    back onto the simplex. The prompt has the most likely words.

    Ours differs: t is uniform at each step, instead of 50 ascending timesteps with 40 steps each. The projection is exact;
    theirs uses bisection. The loss at fixed timesteps and noises selects the best prompt; theirs runs the detector after
    each timestep and stops at its first success, which is easier for the attack (`first_success`). For a
    model that predicts velocity the target is the velocity.

    Attributes:
        tokens: words before the prompt (3 for objects and styles there, 5 for nudity).
        first_success: also count, in a column of its own, the prompts for which the detector finds the concept in the image of
            any prompt that a check scored, with the first seed: the authors' way to count, in which the detector takes part.
    """

    first_success: bool = False

    def judges_candidates(self) -> bool:
        """See `Attack.judges_candidates`."""
        return self.first_success

    def initial_parameters(self, vocabulary: Tensor, counts: list[int], generators: list[torch.Generator]) -> Tensor:
        """Uniform distributions, (n, slots, words)."""
        words = len(vocabulary)
        return torch.full((len(counts), max(counts), words), 1 / words, device=vocabulary.device).requires_grad_()

    def slot_embeddings(self, parameters: Tensor, vocabulary: Tensor, generators: list[torch.Generator]) -> Tensor:
        """The embeddings of words drawn from the distributions."""
        distributions = parameters.detach().cpu()
        words = [torch.multinomial(row, 1, generator=g)[:, 0] for row, g in zip(distributions, generators, strict=True)]
        return vocabulary[torch.stack(words).to(vocabulary.device)]

    def parameter_gradient(self, gradient: Tensor, vocabulary: Tensor) -> Tensor:
        """The gradient of the one-hot vector, clipped to [-1, 1]."""
        return (gradient @ vocabulary.T).clamp(-1, 1)

    def project(self, parameters: Tensor) -> Tensor:
        """The nearest distributions."""
        return project_to_simplex(parameters)

    def slot_words(self, parameters: Tensor, vocabulary: Tensor) -> Tensor | None:
        """The most likely words."""
        return parameters.argmax(-1)


def project_to_simplex(points: Tensor) -> Tensor:
    """The nearest points that are at least 0 and sum to 1 over the last dimension (Duchi et al. 2008, figure 1).

    Examples:
        >>> project_to_simplex(torch.tensor([0.6, 0.6, -1.0]))
        tensor([0.5000, 0.5000, 0.0000])
    """
    descending = points.sort(-1, descending=True).values
    excess = (descending.cumsum(-1) - 1) / torch.arange(1, points.shape[-1] + 1, device=points.device)
    last = (descending > excess).sum(-1, keepdim=True) - 1
    return (points - excess.gather(-1, last)).clamp(min=0)
