"""Classifier guidance: a classifier of noisy latents leads the model to the concept."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearnbench.attacks.base import AttackTarget, Attempt
from unlearnbench.attacks.probe import Probe, ProbedBatch
from unlearnbench.config.ranges import above_zero, at_least
from unlearnbench.models.base import Predictor, TextToImage
from unlearnbench.models.noising import coefficients, split_prediction
from unlearnbench.storage.fitting_batches import FittingBatches

LEAST_SIGNAL = 0.1  # of a in x_t = a x_0 + s e, below which the clean latents say too little to be led


@dataclass
class ClassifierGuidance(Probe):
    """Sample with the empty prompt, led by the gradient of a classifier of noisy latents toward the concept.

    e' = e - strength s grad log p(concept | x_t) (Dhariwal, Nichol 2021, arXiv 2105.05233), as in "When Are Concepts Erased From
    Diffusion Models?" (NeurIPS 2025, arXiv 2505.17013), whose classifier has these layers, with dropout, and trains on
    photographs. Ours trains on the original's latents of the concept's training prompts and of the same prompts with the anchor,
    or of the empty prompt where the anchor replaces nothing; it never sees the unlearned model.

    Attributes:
        strengths: factors on the gradient; each is a row of the table.
        images: latents of each side that the classifier trains on.
        steps: its optimizer steps.
        lr: its learning rate, of Adam.
        width: of its first layer.
        prompt: what is sampled: empty, or own (the concept's prompt).
    """

    strengths: list[float] = field(default_factory=lambda: [1.0, 4.0])
    images: int = 96
    steps: int = 400
    lr: float = 1e-3
    width: int = 256
    prompt: str = "empty"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "images", "steps", "width")
        above_zero(self, "lr")
        if not self.strengths:
            raise ValueError("strengths: give at least one number")
        if self.prompt not in ("empty", "own"):
            raise ValueError(f"prompt: {self.prompt!r}; known: empty, own")
        self._classifiers: dict[str, NoisyLatentClassifier] = {}

    def kinds(self) -> list[str]:
        """See `Probe.kinds`."""
        return [f"{strength:g}" for strength in self.strengths]

    def find(self, target: AttackTarget) -> list[Attempt]:
        """See `Attack.find`; trains the classifier of the target's concept."""
        self._classifiers |= dict.fromkeys(target.prompts, self.train_classifier(target))
        return super().find(target)

    def train_classifier(self, target: AttackTarget) -> NoisyLatentClassifier:
        """The classifier of one concept."""
        texts = target.training or target.prompts
        prompts = [texts[i % len(texts)] for i in range(self.images)]
        others = [target.concept.substitute(prompt) for prompt in prompts]
        if others == prompts:
            others = [""] * self.images
        with target.original() as original:
            sides = [sample_in_parts(original, side, self.seed + first) for side, first in ((prompts, 0), (others, self.images))]
        return fit_classifier(target.model, sides[0], sides[1], self.width, self.steps, self.lr, self.seed)

    def predictor(self, batch: ProbedBatch, steps: int, scale: float) -> Predictor:
        """See `Probe.predictor`."""
        own = self.prompt == "own"
        predict = batch.predictor(batch.prompts, steps, scale) if own else batch.empty_predictor(steps, scale)
        model, strength, classifier = batch.model, float(batch.kind), self._classifiers[batch.prompts[0]]

        def guided(step: int, latents: Tensor, timestep: Tensor) -> Tensor:
            prediction, times = predict(step, latents, timestep), timestep.expand(len(latents))
            a, s = coefficients(model, latents, times)
            if a.min() < LEAST_SIGNAL:
                return prediction
            clean, residual = split_prediction(model, latents, prediction, times)
            push = strength * s * classifier.gradient(latents, a, s)
            return model.target(clean + s / a * push, residual - push, times)

        return guided


class NoisyLatentClassifier(nn.Module):
    """The logit of the concept from noisy latents and the coefficients a and s of their noise."""

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.of_latents = nn.Linear(torch.Size(shape).numel(), width)
        self.of_noise = nn.Linear(2, width)
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(width, max(1, width // 2)), nn.SiLU(), nn.Linear(max(1, width // 2), 1))

    def forward(self, latents: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """The logits (n,)."""
        level = torch.stack([a.flatten(1)[:, 0], s.flatten(1)[:, 0]], dim=1)
        return self.head(self.of_latents(latents.flatten(1)) + self.of_noise(level))[:, 0]

    def gradient(self, latents: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """The gradient of log p(concept | x_t) by the latents, (n, c, h, w)."""
        with torch.enable_grad():
            inputs = latents.detach().float().requires_grad_()
            log_share = F.logsigmoid(self(inputs, a, s)).sum()
            return torch.autograd.grad(log_share, inputs)[0]


def fit_classifier(
    model: TextToImage, concept: Tensor, others: Tensor, width: int, steps: int, lr: float, seed: int
) -> NoisyLatentClassifier:
    """A classifier of noised latents of the concept (n, c, h, w) against others, both drawn alike, all timesteps alike."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier = NoisyLatentClassifier(concept.shape[1:], width).to(concept.device)
    optimizer, generator = torch.optim.Adam(classifier.parameters(), lr), torch.Generator().manual_seed(seed)
    latents = torch.cat([concept, others])
    labels = torch.cat([torch.ones(len(concept)), torch.zeros(len(others))]).to(latents)
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(len(latents), (64,), generator=generator)
            times = model.draw_timesteps(len(rows), generator)
            noise = torch.randn((len(rows), *latents.shape[1:]), generator=generator).to(latents)
            a, s = coefficients(model, latents[rows], times)
            logits = classifier(model.add_noise(latents[rows], noise, times), a, s)
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(logits, labels[rows]).backward()
            optimizer.step()
    return classifier.requires_grad_(False)


def sample_in_parts(model: TextToImage, prompts: list[str], seed: int, size: int = 32) -> Tensor:
    """Latents of prompts, sampled by the model's own settings; image i has the seed `seed` + i.

    At most `size` are sampled together, fewer if they do not fit into memory.
    """

    def latents(part: slice) -> Tensor:
        generators = [torch.Generator().manual_seed(seed + i) for i in range(part.start, part.stop)]
        return model.sample_latents(prompts[part], generators, model.steps, model.guidance)

    return torch.cat([*FittingBatches("images", size).run(len(prompts), latents)])
