"""Substitute the concept by its anchor, and hold everything else where it was: ours."""

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
from unlearnbench.algos.negative_guidance import partly_denoised
from unlearnbench.algos.preconditioned import Preconditioned
from unlearnbench.algos.training import Training
from unlearnbench.config.ranges import above_zero, one_of, share
from unlearnbench.models.base import TextToImage
from unlearnbench.models.frozen import Frozen
from unlearnbench.models.noising import add_random_noise

STATES = ("noised", "original", "own")
BACK_BATCHES = 8


@dataclass
class Substitute(LowRank, Preconditioned):
    """The original teaches both sides: for a forget prompt what it paints for the anchor, for a retain prompt itself.

    L = |eps(x_t, c_f) - eps_0(x_t, c_a)|^2 + keep |eps(x_t', c_r) - eps_0(x_t', c_r)|^2, means over pixels, where x_t is
    the noised image of the concept or, in a share `from_anchor` of the batch, of its anchor. At the start the
    second term and its gradient are zero: only forgetting moves the model. Ours; the first term is the model-based
    concept ablation of Kumari et al. 2023 (arXiv 2303.13516) with the original as a frozen teacher.

    Attributes:
        keep: the weight of the retain term.
        from_anchor: the share of forget prompts whose x_t shows the anchor.
        states: what x_t is: noised (images with noise), original or own (a sample of the original, or of the model in
            training, stopped at a random step; with the model's own steps and guidance).
        guided: compare predictions as sampling uses them, guided by the model's own scale g and divided by it,
            eps(c) - (1 - 1/g) eps(""), so that what "" paints is held too.
        near: how many times likelier a near retain prompt is drawn than another.
        keep_anchor: the weight of |eps(x_t, c_a) - eps_0(x_t, c_a)|^2: the anchors, nearest of all, stay what they were.
        step_back: after the last step the weights go straight back toward the original's, as far as at most this share
            of the fall of the forget loss is lost.
        decay: whether the learning rate falls to zero along a cosine, so that the weights come to rest.
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
            raise ValueError("rank, whiten: at most one of the two above 0")

    def requires(self) -> frozenset[str]:
        """See `Unlearner.requires`."""
        return super().requires() | ({"cfg"} if self.guided else set())

    def begin(self, training: Training) -> Any:
        """Weights the near retain prompts, and measures what is read of all of them for `whiten`."""
        near = {prompt.text for prompt in training.concept.load() if prompt.split == "near"} if self.near != 1 else set()
        weights = torch.tensor([self.near if text in near else 1.0 for text in training.retain.prompts]) if near else None
        training.retain = replace(training.retain, weights=weights)
        return super().begin(training)

    def rate(self, progress: float) -> float:
        """1, or 1 falling to 0."""
        return 0.5 * (1 + math.cos(math.pi * progress)) if self.decay else 1.0

    def loss(self, model: TextToImage, frozen: Frozen, forget: Batch, retain: Batch, generator: torch.Generator) -> Tensor:
        """Substitution on the concept plus distillation on the rest."""
        forgetting = self.forgetting(model, frozen, forget, generator)
        return forgetting + self.keep * self.keeping(model, frozen, retain, generator)

    def forgetting(self, model: TextToImage, frozen: Frozen, forget: Batch, generator: torch.Generator) -> Tensor:
        """The distance, on forget prompts, to what the original teaches (and on their anchors to what it was)."""
        other = torch.rand(len(forget.prompts), generator=generator) < self.from_anchor
        prompts = [a if o else p for p, a, o in zip(forget.prompts, forget.anchors, other.tolist(), strict=True)]
        latents = forget.latents
        if self.states == "noised":
            latents = torch.where(other.to(model.device)[:, None, None, None], forget.anchor_latents, forget.latents)
        x, times = self.seen(model, frozen, Batch(prompts, prompts, latents), generator)
        forgetting = self.distance(model, frozen, x, times, forget.prompts, self.taught(frozen, x, times, forget))
        if self.keep_anchor > 0:
            held = frozen.predict(x, times, forget.anchors)
            forgetting = forgetting + self.keep_anchor * self.distance(model, frozen, x, times, forget.anchors, held)
        return forgetting

    def taught(self, frozen: Frozen, x: Tensor, times: Tensor, forget: Batch) -> Tensor:
        """What the original teaches for forget prompts: its prediction for their anchors."""
        return frozen.predict(x, times, forget.anchors)

    def keeping(self, model: TextToImage, frozen: Frozen, retain: Batch, generator: torch.Generator) -> Tensor:
        """The distance to the original on retain prompts: zero, gradient too, at the start."""
        x, times = self.seen(model, frozen, retain, generator)
        return self.distance(model, frozen, x, times, retain.prompts, frozen.predict(x, times, retain.prompts))

    def seen(self, model: TextToImage, frozen: Frozen, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """x_t and t for a batch, as `states` says."""
        if self.states == "noised":
            x = add_random_noise(model, batch.latents, generator)
            return x.noisy_latents, x.timesteps
        if self.states == "own":
            return partly_denoised(model, batch.prompts, model.steps, model.guidance, generator)
        with frozen() as original:
            return partly_denoised(original, batch.prompts, model.steps, model.guidance, generator)

    def distance(
        self, model: TextToImage, frozen: Frozen, x: Tensor, times: Tensor, prompts: list[str], taught: Tensor
    ) -> Tensor:
        """The mean of (prediction - taught)^2, both guided if so set."""
        told = model.predict(x, times, model.encode_prompts(prompts))
        if self.guided and model.guidance > 1:
            empty, share = [""] * len(prompts), 1 - 1 / model.guidance
            told = told - share * model.predict(x, times, model.encode_prompts(empty))
            taught = taught - share * frozen.predict(x, times, empty)
        return F.mse_loss(told, taught)

    def finish(self, training: Training) -> None:
        """Steps back toward the original, judged by the forget loss on some batches, the same at every point."""
        if self.step_back == 0:
            return
        seed = int(torch.randint(2**31, (), generator=training.generator))

        def forgetting() -> float:
            same = torch.Generator().manual_seed(seed)
            drawn = [training.forget.draw(self.batch, same) for _ in range(BACK_BATCHES)]
            return sum(self.forgetting(training.model, training.original, batch, same).item() for batch in drawn) / BACK_BATCHES

        interpolate_back(training.parameters, training.original.parameters, forgetting, self.step_back)
