"""Selective amnesia: learn the anchor under the concept's name, with continual learning for the rest."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.examples import Batch
from unlearnbench.algos.losses import denoising_loss, gradients_of
from unlearnbench.algos.state import NOT_SAVED
from unlearnbench.algos.training import Step, Training
from unlearnbench.config.ranges import at_least
from unlearnbench.console import progress_bar


@dataclass
class SelectiveAmnesiaState:
    """The diagonal of the Fisher information, by parameter."""

    fisher: dict[str, Tensor] = field(metadata=NOT_SAVED)


@dataclass
class SelectiveAmnesia(Unlearner):
    """Train the concept's prompts on surrogate images, with replay and elastic weight consolidation for the rest.

    L = L_diff(x_a, c_f) + L_diff(retain) + lam sum_i F_i (theta_i - theta_0,i)^2. x_a are images that the original
    generates for the anchor (the surrogate); it generates the retain images too (generative replay). F is the diagonal of
    the Fisher information at theta_0, F_i = E_x (sum_t d/d theta_i L_diff(x, t))^2 over all training timesteps t (Heng & Soh
    2023, arXiv 2305.10120).

    Ours differs: the authors sum over all 1000 timesteps for 5,000 images; ours estimates the sum from `fisher_draws` times
    `batch` random timesteps, whose noise enlarges F. Adam without AdamW's weight decay. The defaults are the authors' for
    celebrities. For nudity they train the parameters outside cross-attention (`algo.train=not_xattn`) for 2.5 times the
    epochs.

    Attributes:
        lam: weight of the consolidation.
        fisher_images: the largest number of retain images in the mean F.
        fisher_draws: batches of random timesteps for each image.
    """

    lam: float = 50.0
    fisher_images: int = 500
    fisher_draws: int = 4
    needs_anchors: ClassVar[bool] = True
    needs_anchor_images: ClassVar[bool] = True
    passes_with_gradient: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "fisher_images", "fisher_draws")

    def begin(self, training: Training) -> SelectiveAmnesiaState:
        """Pair the forget prompts with the anchor's images, and estimate F."""
        training.forget = replace(training.forget, latents=training.forget.anchor_latents)
        fisher = {name: torch.zeros_like(parameter) for name, parameter in training.parameters.items()}
        rows = torch.randperm(len(training.retain.prompts), generator=training.generator)[: self.fisher_images].tolist()
        with progress_bar("fisher information", len(rows)) as bar:
            for i in rows:
                for name, value in self.score(training, i).items():
                    fisher[name] += value.square() / len(rows)
                bar.advance()
        return SelectiveAmnesiaState(fisher)

    def score(self, training: Training, i: int) -> dict[str, Tensor]:
        """The gradient of retain example i's denoising loss, summed over all timesteps, estimated from random ones."""
        model, examples, parameters = training.model, training.retain, training.parameters
        copies = Batch([examples.prompts[i]] * self.batch, [], examples.latents[i].expand(self.batch, -1, -1, -1))
        weight = model.noise_scheduler.config.num_train_timesteps / self.fisher_draws
        total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        for _ in range(self.fisher_draws):
            loss = weight * denoising_loss(model, copies, training.generator)
            for name, value in gradients_of(loss, parameters, model).items():
                total[name] += value
        return total

    def step_loss(self, training: Training, step: Step) -> Tensor:
        """The surrogate loss, the replay loss and the consolidation."""
        model, fisher, original = training.model, training.state.fisher, training.original.parameters
        penalties = [(fisher[name] * (value - original[name]).square()).sum() for name, value in training.parameters.items()]
        forget, retain, generator = step
        loss = denoising_loss(model, forget, generator) + denoising_loss(model, retain, generator)
        return loss + self.lam * torch.stack(penalties).sum()
