"""Relearning: how many steps of training on a few images bring the concept back?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unlearnbench.attacks.base import AttackTarget, Attempt
from unlearnbench.attacks.classifier_guidance import sample_in_parts
from unlearnbench.attacks.probe import Probe, ProbedBatch
from unlearnbench.config.ranges import above_zero, at_least
from unlearnbench.models.adapters.lora import install_lora, merge_lora
from unlearnbench.models.base import Predictor, TextToImage
from unlearnbench.models.noising import add_random_noise
from unlearnbench.models.parameters import backpropagate, select_parameters

ON_CONCEPT, ON_OTHERS = "images of the concept", "other images"


@dataclass
class Relearning(Probe):
    """Train a LoRA of the unlearned denoiser for some steps, and sample the concept's prompts.

    It trains by the usual denoising loss on a few images that the original generates for the concept's training prompts, or on
    others: those of the same prompts with the anchor. What comes back on the others was never gone; what comes back on the
    concept's images sooner than in a model retrained without it was not removed ("Erased or Dormant?", arXiv 2505.16174). The
    original's side is the original as it is. Each row trains anew from the unlearned weights.

    Attributes:
        counts: optimizer steps; each is a row of the table for each kind of images.
        images: how many images of each kind; fewer training prompts are used in turn, each time with another seed.
        rank: of the LoRA, on all attention layers.
        lr: Adam's learning rate.
        batch: images in a step.
    """

    counts: list[int] = field(default_factory=lambda: [10, 30, 100])
    images: int = 8
    rank: int = 4
    lr: float = 1e-3
    batch: int = 4

    shares_batch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "images", "rank", "batch")
        above_zero(self, "lr")
        if not self.counts or min(self.counts) < 1:
            raise ValueError(f"counts: {list(self.counts)}; give numbers of at least 1")
        self._weights: dict[tuple[str, str], dict[str, Tensor]] = {}

    def kinds(self) -> list[str]:
        """See `Probe.kinds`."""
        return [f"{count} steps on {images}" for images in (ON_CONCEPT, ON_OTHERS) for count in self.counts]

    def training_prompts(self) -> int:
        """See `Attack.training_prompts`."""
        return self.images

    def find(self, target: AttackTarget) -> list[Attempt]:
        """See `Attack.find`; trains the weights of every row."""
        known = target.training or target.prompts
        texts = [known[i % len(known)] for i in range(self.images)]
        for images in (ON_CONCEPT, ON_OTHERS):
            prompts = [text if images == ON_CONCEPT else target.concept.substitute(text) for text in texts]
            with target.original() as original:
                latents = sample_in_parts(original, prompts, self.seed)
            for count in self.counts:
                weights = self.train(target.model, prompts, latents, count)
                self._weights |= {(prompt, f"{count} steps on {images}"): weights for prompt in target.prompts}
        return super().find(target)

    def train(self, model: TextToImage, prompts: list[str], latents: Tensor, count: int) -> dict[str, Tensor]:
        """The weights after `count` steps, by name; the model stays as it is."""
        generator = torch.Generator().manual_seed(self.seed)
        before = {name: parameter.data for name, parameter in model.named_parameters()}
        trained = list(install_lora(model, select_parameters(model, "lora"), self.rank, generator).values())
        optimizer = torch.optim.Adam(trained, self.lr)
        for _ in range(count):
            rows = torch.randint(len(prompts), (self.batch,), generator=generator).tolist()
            noised = add_random_noise(model, latents[rows], generator)
            cond = model.encode_prompts([prompts[row] for row in rows])
            prediction = model.predict(noised.noisy_latents, noised.timesteps, cond)
            optimizer.zero_grad()
            loss = F.mse_loss(prediction, model.target(latents[rows], noised.noise, noised.timesteps))
            backpropagate(loss, trained, model)
            optimizer.step()
        names, parameters = merge_lora(model), dict(model.named_parameters())
        weights = {name: parameters[name].data for name in names}
        for name in names:
            parameters[name].data = before[name]
        return weights

    def predictor(self, batch: ProbedBatch, steps: int, scale: float) -> Predictor:
        """See `Probe.predictor`."""
        predict = batch.predictor(batch.prompts, steps, scale)

        def relearned(step: int, latents: Tensor, timestep: Tensor) -> Tensor:
            with self.relearned(batch):
                return predict(step, latents, timestep)

        return relearned

    @contextmanager
    def relearned(self, batch: ProbedBatch) -> Iterator[None]:
        """Within the block the unlearned model has the relearned weights; the original stays the original."""
        parameters = dict(batch.model.named_parameters())
        weights = {} if batch.is_original else self._weights[batch.prompts[0], batch.kind]
        before = {name: parameters[name].data for name in weights}
        try:
            for name, value in weights.items():
                parameters[name].data = value
            yield
        finally:
            for name, value in before.items():
                parameters[name].data = value
