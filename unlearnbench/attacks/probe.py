"""Probes: does the model still generate the concept when something other than the prompt leads it there?"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unlearnbench.attacks.base import Attack, AttackTarget, Attempt
from unlearnbench.models.base import Conditioning, Predictor, SamplingGuidance, TextToImage
from unlearnbench.models.frozen import Frozen
from unlearnbench.models.noising import denoising_prediction


@dataclass
class ProbedBatch:
    """One batch under a probe.

    Attributes:
        model: the model under the probe, which may be the original itself.
        guidance: how the model is sampled, or None.
        original: the original model, as which the same modules may run for some steps.
        prompts: n prompts of the concept.
        seeds: the n images' seeds.
        sources: latents of the original's images of these prompts and seeds (n, c, h, w); empty if the probe needs none.
        kind: the variant of the probe, such as a strength.
        is_original: whether the model is the original, the probe's control.
    """

    model: TextToImage
    guidance: SamplingGuidance | None
    original: Frozen
    prompts: list[str]
    seeds: list[int]
    sources: Tensor
    kind: str
    is_original: bool = False

    def predictor(self, prompts: Sequence[str], steps: int, scale: float) -> Predictor:
        """The prediction of the model as it is sampled, for other prompts."""
        cond, uncond = self.model.encode_prompts(prompts), self.model.encode_prompts([""])
        if self.guidance is None:
            return self.model.predictor(cond, uncond, scale)
        return self.guidance.start(self.model, self.guidance.conditioned(self.model, prompts, cond), uncond, steps, scale)

    def empty_predictor(self, steps: int, scale: float) -> Predictor:
        """The prediction for the empty prompt; classifier-free guidance would change nothing and is off."""
        unguided = 1.0 if "cfg" in self.model.capabilities and self.guidance is None else scale
        return self.predictor([""] * len(self.prompts), steps, unguided)

    def original_predictor(self, prompts: Sequence[str], scale: float) -> Predictor:
        """The prediction of the original."""
        with self.original() as original:
            predict = original.predictor(original.encode_prompts(prompts), original.encode_prompts([""]), scale)
        return self.by_original(predict)

    def by_original(self, predict: Predictor) -> Predictor:
        """A prediction during which the modules have the original's parameters."""

        def predict_by_original(step: int, latents: Tensor, timestep: Tensor) -> Tensor:
            with self.original():
                return predict(step, latents, timestep)

        return predict_by_original

    def noise(self) -> Iterator[Tensor]:
        """Noise (n, c, h, w) without end, each image's from a generator with its seed; the first is the one it starts from."""
        generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        while True:
            drawn = [torch.randn(self.model.latent_shape(), generator=generator) for generator in generators]
            yield torch.stack(drawn).to(self.model.device)

    def source_predictor(self) -> Predictor:
        """The prediction that leads to the sources (see `denoising_prediction`)."""
        model, sources = self.model, self.sources
        return lambda step, latents, timestep: denoising_prediction(model, latents, sources, timestep.expand(len(latents)))


@dataclass
class ProbeSampling(SamplingGuidance):
    """Samples as a probe does; the conditioning that `start` is given is not used."""

    probe: Probe
    batch: ProbedBatch

    def start(self, model: TextToImage, cond: Conditioning, uncond: Conditioning, steps: int, scale: float) -> Predictor:
        """See `SamplingGuidance.start`."""
        return self.probe.predictor(self.batch, steps, scale)


@dataclass
class Probe(Attack):
    """A probe of the model with the prompt left out or replaced; the same probe of the original is the control.

    What the original shows under a probe and a model retrained without the concept does not is what an erased concept should
    lack. A subclass defines `predictor`, and the kinds of its rows.
    """

    sides: ClassVar[tuple[str, str, str]] = ("original, probed", "prompted", "probed")

    def kinds(self) -> list[str]:
        """The variants of the probe; each is a row of the table."""
        return [""]

    def find(self, target: AttackTarget) -> list[Attempt]:
        """Every prompt in every variant; nothing is searched."""
        return [Attempt(prompt, prompt, kind) for kind in self.kinds() for prompt in target.prompts]

    def leaves_sources(self, kind: str) -> bool:
        """Whether the images of a variant are the sources, encoded and decoded; nothing is then sampled."""
        return False

    @abstractmethod
    def predictor(self, batch: ProbedBatch, steps: int, scale: float) -> Predictor:
        """The predictions of the sampling steps (see `SamplingGuidance.start`)."""


@dataclass
class SourceProbe(Probe):
    """A probe that starts from images of the concept: the original's of the prompts, or those of a folder in turn.

    Attributes:
        images: a folder of images of the concept; null takes the original's images.
    """

    images: str | None = None


def switch(first: Predictor, then: Predictor, step: int) -> Predictor:
    """One prediction before a step, another from it on."""
    return lambda now, latents, timestep: (first if now < step else then)(now, latents, timestep)
