"""Selective amnesia: learn the anchor under the concept's name, as continual learning that forgets nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.examples import Batch, Examples
from unlearnbench.algos.losses import denoising_loss, gradients_of
from unlearnbench.config.ranges import at_least
from unlearnbench.console import progress_bar
from unlearnbench.data.concept import Concept
from unlearnbench.models.base import TextToImage
from unlearnbench.models.frozen import Frozen


@dataclass
class SelectiveAmnesia(Unlearner):
    """Train the concept's prompts on surrogate images, with replay and elastic weight consolidation for the rest.

    L = L_diff(x_a, c_f) + L_diff(retain) + lam sum_i F_i (theta_i - theta_0,i)^2, where x_a are images that the original
    paints for the anchor (the surrogate), retain images are its own too (generative replay), and F is the diagonal of the
    Fisher information at theta_0, F_i = E_x (sum_t d/d theta_i L_diff(x, t))^2 over all training times t (Heng & Soh
    2023, arXiv 2305.10120). The authors sum over all 1000 times for 5,000 images; here the sum is estimated from
    `fisher_draws` times `batch` random times, so that F is larger by their noise. Adam without AdamW's weight decay.
    The defaults are the authors' for celebrities; for nudity they train what is outside cross-attention
    (`algo.train=not_xattn`), 2.5 times as many epochs.

    Attributes:
        lam: the weight of the consolidation.
        fisher_images: retain images of which F is the mean; all of them if there are fewer.
        fisher_draws: batches of random times for each.
    """

    lam: float = 50.0
    fisher_images: int = 500
    fisher_draws: int = 4
    needs_anchors: ClassVar[bool] = True
    needs_anchor_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "fisher_images", "fisher_draws")

    def begin(
        self, model: TextToImage, frozen: Frozen, forget: Examples, retain: Examples, concept: Concept, generator: torch.Generator
    ) -> None:
        """Takes the anchor's images as surrogate, and finds F."""
        forget.latents = forget.anchor_latents
        self.trained = model.training()
        self.fisher = {name: torch.zeros_like(parameter) for name, parameter in self.trained.items()}
        chosen = torch.randperm(len(retain.prompts), generator=generator)[: self.fisher_images].tolist()
        with progress_bar("fisher information", len(chosen)) as shown:
            for i in chosen:
                for name, value in self.score(model, retain, i, generator).items():
                    self.fisher[name] += value.square() / len(chosen)
                shown.advance()

    def state(self) -> dict[str, Tensor]:
        """The surrogate and F stay as they are."""
        return {}

    def score(self, model: TextToImage, examples: Examples, i: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The gradient, by parameter, of one example's denoising loss summed over all training times, from random ones."""
        copies = Batch([examples.prompts[i]] * self.batch, [], examples.latents[i].expand(self.batch, -1, -1, -1))
        weight = model.scheduler.config.num_train_timesteps / self.fisher_draws
        total = {name: torch.zeros_like(parameter) for name, parameter in self.trained.items()}
        for _ in range(self.fisher_draws):
            for name, value in gradients_of(weight * denoising_loss(model, copies, generator), self.trained).items():
                total[name] += value
        return total

    def loss(self, model: TextToImage, frozen: Frozen, forget: Batch, retain: Batch, generator: torch.Generator) -> Tensor:
        """Surrogate, replay and consolidation."""
        moved = [
            (self.fisher[name] * (parameter - frozen.parameters[name]).square()).sum() for name, parameter in self.trained.items()
        ]
        learned = denoising_loss(model, forget, generator) + denoising_loss(model, retain, generator)
        return learned + self.lam * torch.stack(moved).sum()
