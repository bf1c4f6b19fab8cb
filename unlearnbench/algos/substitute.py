"""Substitute the concept by its anchor, and preserve everything else: our method."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unlearnbench.algos.examples import Batch
from unlearnbench.algos.interpolation import interpolate_back
from unlearnbench.algos.low_rank import LowRank
from unlearnbench.algos.negative_guidance import partially_denoise
from unlearnbench.algos.preconditioned import Preconditioned
from unlearnbench.algos.training import Training
from unlearnbench.config.ranges import above_zero, one_of, share
from unlearnbench.models.base import TextToImage
from unlearnbench.models.frozen import Frozen
from unlearnbench.models.noising import add_random_noise

STATES = ("noised", "original", "own")
INTERPOLATION_BATCHES = 8


@dataclass
class Substitute(LowRank, Preconditioned):
    """Distil the original: its prediction for the anchor into forget prompts, its own prediction into retain prompts.

    L = |eps(x_t, c_f) - eps_0(x_t, c_a)|^2 + keep |eps(x_t', c_r) - eps_0(x_t', c_r)|^2, means over pixels, where x_t is
    the noised image of the concept or, in a share `from_anchor` of the batch, of its anchor. At the start the second term
    and its gradient are zero, and only the forget term moves the model. Ours; the first term is the model-based concept
    ablation of Kumari et al. 2023 (arXiv 2303.13516) with the original as a frozen teacher.

    Attributes:
        keep: weight of the retain term.
        from_anchor: the share of forget prompts whose x_t shows the anchor.
        states: what x_t is: noised (images with noise), or original or own (a sample of the original, or of the model in
            training, stopped at a random step of the model's own sampling).
        guided: compare guided predictions, with the model's own scale g and divided by it: eps(c) - (1 - 1/g) eps("").
            This also preserves what the model generates for the empty prompt.
        near: the sampling weight of near retain prompts, relative to the others.
        keep_anchor: weight of |eps(x_t, c_a) - eps_0(x_t, c_a)|^2, which preserves the anchors, the nearest prompts of all.
        step_back: interpolation toward the original after the last step: the largest share of the decrease of the forget
            loss that it may lose; 0 for no interpolation.
        decay: let the learning rate fall to zero along a cosine.
    """

    keep: float = 1.0
    from_anchor: float = 0.5
    states: str = "noised"
    guided: bool = False
    near: float = 1.0
    keep_anchor: float = 0.0
    step_back: float = 0.0
    decay: bool = False
    needs_anchors: ClassVar[bool] = True
    needs_anchor_images: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "states", *STATES)
        above_zero(self, "near")
        share(self, "from_anchor", "step_back")
        if self.whiten > 0 and self.rank > 0:
            raise ValueError("rank, whiten: at most one of them may be above 0")

    @property
    def passes_with_gradient(self) -> int:
        """See `Unlearner.passes_with_gradient`."""
        return (2 + (self.keep_anchor > 0)) * (2 if self.guided else 1)

    def requires(self) -> frozenset[str]:
        """See `Unlearner.requires`."""
        return super().requires() | ({"cfg"} if self.guided else set())

    def begin(self, training: Training) -> Any:
        """Set the sampling weights of near retain prompts, and compute the preconditioners."""
        near = {prompt.text for prompt in training.concept.load() if prompt.base == "near"} if self.near != 1 else set()
        weights = torch.tensor([self.near if text in near else 1.0 for text in training.retain.prompts]) if near else None
        training.retain = replace(training.retain, weights=weights)
        return super().begin(training)

    def rate(self, progress: float) -> float:
        """1, or with `decay` the cosine from 1 to 0."""
        return 0.5 * (1 + math.cos(math.pi * progress)) if self.decay else 1.0

    def loss(self, model: TextToImage, frozen: Frozen, forget: Batch, retain: Batch, generator: torch.Generator) -> Tensor:
        """The forget loss plus the weighted retain loss."""
        forget_loss = self.forget_loss(model, frozen, forget, generator)
        return forget_loss + self.keep * self.retain_loss(model, frozen, retain, generator)

    def forget_loss(self, model: TextToImage, frozen: Frozen, forget: Batch, generator: torch.Generator) -> Tensor:
        """The distance to the teacher on forget prompts, plus the weighted distance to the original on their anchors."""
        shows_anchor = torch.rand(len(forget.prompts), generator=generator) < self.from_anchor
        rows = zip(forget.prompts, forget.anchors, shows_anchor.tolist(), strict=True)
        prompts = [anchor if shown else prompt for prompt, anchor, shown in rows]
        latents = forget.latents
        if self.states == "noised":
            latents = torch.where(shows_anchor.to(model.device)[:, None, None, None], forget.anchor_latents, forget.latents)
        noisy_latents, timesteps = self.noisy_inputs(model, frozen, Batch(prompts, prompts, latents), generator)
        target = self.teacher_prediction(frozen, noisy_latents, timesteps, forget)
        loss = self.distance(model, frozen, noisy_latents, timesteps, forget.prompts, target)
        if self.keep_anchor > 0:
            target = frozen.predict(noisy_latents, timesteps, forget.anchors)
            loss = loss + self.keep_anchor * self.distance(model, frozen, noisy_latents, timesteps, forget.anchors, target)
        return loss

    def teacher_prediction(self, frozen: Frozen, noisy_latents: Tensor, timesteps: Tensor, forget: Batch) -> Tensor:
        """The target for forget prompts: the original's prediction for their anchors."""
        return frozen.predict(noisy_latents, timesteps, forget.anchors)

    def retain_loss(self, model: TextToImage, frozen: Frozen, retain: Batch, generator: torch.Generator) -> Tensor:
        """The distance to the original on retain prompts; zero at the start, and its gradient too."""
        noisy_latents, timesteps = self.noisy_inputs(model, frozen, retain, generator)
        target = frozen.predict(noisy_latents, timesteps, retain.prompts)
        return self.distance(model, frozen, noisy_latents, timesteps, retain.prompts, target)

    def noisy_inputs(self, model: TextToImage, frozen: Frozen, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """x_t and t for a batch, of the kind that `states` selects."""
        if self.states == "noised":
            noised = add_random_noise(model, batch.latents, generator)
            return noised.noisy_latents, noised.timesteps
        if self.states == "own":
            return partially_denoise(model, batch.prompts, model.steps, model.guidance, generator)
        with frozen() as original:
            return partially_denoise(original, batch.prompts, model.steps, model.guidance, generator)

    def distance(
        self, model: TextToImage, frozen: Frozen, noisy_latents: Tensor, timesteps: Tensor, prompts: list[str], target: Tensor
    ) -> Tensor:
        """The mean of (prediction - target)^2; with `guided`, of both after guidance, divided by the scale."""
        prediction = model.predict(noisy_latents, timesteps, model.encode_prompts(prompts))
        if self.guided and model.guidance > 1:
            empty, share = [""] * len(prompts), 1 - 1 / model.guidance
            prediction = prediction - share * model.predict(noisy_latents, timesteps, model.encode_prompts(empty))
            target = target - share * frozen.predict(noisy_latents, timesteps, empty)
        return F.mse_loss(prediction, target)

    def finish(self, training: Training) -> None:
        """Interpolate toward the original; the forget loss of the same batches judges every point."""
        if self.step_back == 0:
            return
        seed = int(torch.randint(2**31, (), generator=training.generator))

        def forget_loss() -> float:
            generator = torch.Generator().manual_seed(seed)
            batches = [training.forget.draw(self.batch, generator) for _ in range(INTERPOLATION_BATCHES)]
            losses = (self.forget_loss(training.model, training.original, batch, generator).item() for batch in batches)
            return sum(losses) / INTERPOLATION_BATCHES

        interpolate_back(training.parameters, training.original.parameters, forget_loss, self.step_back)
