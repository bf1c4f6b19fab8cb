"""Images in batches, each from its own noise; what is not finite stops them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from unlearnbench.config.errors import RunError
from unlearnbench.console import part_of_step
from unlearnbench.models.base import (
    Conditioning,
    ImageShape,
    NonFiniteImage,
    Predictor,
    SamplingGuidance,
    TextToImage,
    check_finite_images,
)
from unlearnbench.storage.fitting_batches import FittingBatches, out_of_memory

CPU = torch.device("cpu")
DECODING_STEPS = 2  # a progress bar counts decoding as so many sampling steps


class SamplingBatch(NamedTuple):
    """Images that are generated together.

    Attributes:
        prompts: of the images.
        seeds: one for each prompt.
        steps: sampling steps.
        scale: the guidance scale.
        shape: height and width in pixels; None for the model's size.
    """

    prompts: list[str]
    seeds: list[int]
    steps: int
    scale: float
    shape: ImageShape | None = None


class EncodedPrompts(NamedTuple):
    """The conditioning of a batch's prompts and of the empty prompt, on the CPU."""

    cond: Conditioning
    uncond: Conditioning


class ImageGenerator:
    """Generates images by one model, several batches at a time where processes share the work.

    Attributes:
        model: a loaded model.
        guidance: how the model is sampled; None for plain sampling.
        parallel: the number of batches that `batches` generates at the same time.
        encoded_ahead: the most images whose prompts are encoded before the text encoders leave the GPU.
    """

    parallel: int = 1
    encoded_ahead: int = 256  # the embeddings of one prompt take up to 4.2 MB (Flux in half precision)

    def __init__(self, model: TextToImage, guidance: SamplingGuidance | None = None) -> None:
        self.model, self.guidance = model, guidance
        self._fitting = FittingBatches("images")
        self._encoded: dict[tuple[str, ...], EncodedPrompts] = {}

    @contextmanager
    def job(self) -> Iterator[None]:
        """A block in which the model does not change, so that its text encoders may leave the GPU after encoding."""
        with self.model.text_encoders_on_demand():
            try:
                yield
            finally:
                self._encoded = {}

    def batches(self, batches: Sequence[SamplingBatch], later: Iterable[SamplingBatch] = ()) -> Iterator[Tensor]:
        """The images of every batch, in order.

        Args:
            batches: to be generated.
            later: those of later calls, whose prompts are encoded now if the text encoders leave the GPU.
        """
        for number, batch in enumerate(batches):
            if self.model.encodes_on_demand:
                self._encode_ahead(chain(batches[number:], later))
            yield self.batch(batch)

    def _parts(self, batch: SamplingBatch) -> list[SamplingBatch]:
        """The batch in parts that fit into memory, as far as that is known."""
        return [_part(batch, part) for part in self._fitting.parts(len(batch.prompts))]

    @torch.no_grad()
    def _encode_ahead(self, batches: Iterator[SamplingBatch]) -> None:
        """Encode the prompts of the next batches, unless those of the first are encoded."""
        first = next(batches)
        if all(tuple(part.prompts) in self._encoded for part in self._parts(first)):
            return
        self._encoded, uncond, images = {}, None, 0
        try:
            for batch in chain([first], batches):
                if (images := images + len(batch.prompts)) > self.encoded_ahead:
                    return
                uncond = uncond or _moved(self.model.encode_prompts([""]), CPU)
                for part in self._parts(batch):
                    cond = self.model.guided_conditioning(part.prompts, self.guidance)
                    self._encoded[tuple(part.prompts)] = EncodedPrompts(_moved(cond, CPU), uncond)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise  # else `batch` encodes what fits

    @torch.no_grad()
    def batch(self, batch: SamplingBatch) -> Tensor:
        """The images of one batch, uint8 (n, h, w, 3); the noise of image i comes from its own generator with seeds[i].

        If a batch does not fit into the GPU's memory, it and the following ones are halved; images do not depend on it.

        Raises:
            NonFiniteSample: an image is not finite.
        """
        count = len(batch.prompts)

        def images(part: slice) -> Tensor:
            with part_of_step(part.start / count, part.stop / count):
                return self._generate(_part(batch, part))

        return torch.cat([*self._fitting.run(count, images)])

    def _generate(self, batch: SamplingBatch) -> Tensor:
        try:
            denoised = batch.steps / (batch.steps + DECODING_STEPS)
            with part_of_step(0.0, denoised):
                latents = self._latents(batch, self.guidance)
            with part_of_step(denoised, 1.0):
                return self.model.decode(latents)
        except NonFiniteImage as error:
            failure = self._earliest_failure(batch, error)
            reason = _reason(self.model, failure.part)
            raise NonFiniteSample(batch.prompts[failure.index], batch.seeds[failure.index], reason) from error

    def _latents(self, batch: SamplingBatch, guidance: SamplingGuidance | None) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in batch.seeds]
        encoded = self._encoded.get(tuple(batch.prompts)) if guidance is self.guidance else None
        if encoded is not None:
            cond, uncond = (_moved(embeddings, self.model.device) for embeddings in encoded)
            return self.model.denoise(cond, uncond, generators, batch.steps, batch.scale, guidance, shape=batch.shape)
        return self.model.sample_latents(batch.prompts, generators, batch.steps, batch.scale, guidance, shape=batch.shape)

    def _earliest_failure(self, batch: SamplingBatch, failure: NonFiniteImage) -> NonFiniteImage:
        """The failure with its step: if latents are not finite, the batch is sampled again, and every step is checked."""
        if failure.part == "latents":
            try:
                self._latents(batch, CheckedSampling(self.guidance))
            except NonFiniteImage as earliest:
                return earliest
        return failure


def _part(batch: SamplingBatch, part: slice) -> SamplingBatch:
    """Some images of a batch."""
    return batch._replace(prompts=batch.prompts[part], seeds=batch.seeds[part])


class NonFiniteSample(RunError):
    """A model that generates an image of NaN or infinite numbers, which would be black.

    Attributes:
        prompt: the prompt of the first such image.
        seed: its seed.
        reason: what is not finite, and the repair.
    """

    def __init__(self, prompt: str, seed: int, reason: str) -> None:
        super().__init__(prompt, seed, reason)
        self.prompt, self.seed, self.reason = prompt, seed, reason

    def __str__(self) -> str:
        return f"the image of {self.prompt!r} with seed {self.seed} is not finite: {self.reason}"


def _moved(conditioning: Conditioning, device: torch.device) -> Conditioning:
    return {name: value.to(device) for name, value in conditioning.items()}


def _reason(model: TextToImage, part: str) -> str:
    """What is not finite, and the repair."""
    if model.dtype == "fp32":
        repair = "check the weights of model.path; after unlearning try a smaller algo.lr"
    else:
        repair = f"set {'model.dtype=bf16 or ' * (model.dtype == 'fp16')}model.dtype=fp32"
    return f"its {part} are NaN or infinite in {model.dtype}; {repair}"


def encode_images(model: TextToImage, images: Tensor, names: Sequence[str]) -> Tensor:
    """The latents (n, c, h, w) of images, uint8 (n, h, w, 3); `names` says in an error which image it is.

    Images that do not fit into memory together are encoded in smaller batches.

    Raises:
        RunError: the latents of an image are NaN or infinite.
    """

    def latents(part: slice) -> Tensor:
        try:
            return model.encode_images(images[part])
        except NonFiniteImage as error:
            name = names[part.start + error.index]
            raise RunError(f"the image of {name!r} cannot be encoded: {_reason(model, error.part)}") from error

    return torch.cat([*FittingBatches("images").run(len(images), latents)])


class CheckedSampling(SamplingGuidance):
    """Sampling as another guidance does it, or plain sampling, with a check of the numbers at every step."""

    def __init__(self, guidance: SamplingGuidance | None) -> None:
        self._guidance = guidance

    def conditioned(self, model: TextToImage, prompts: Sequence[str], cond: Conditioning) -> Conditioning:
        """See `SamplingGuidance.conditioned`."""
        cond = cond if self._guidance is None else self._guidance.conditioned(model, prompts, cond)
        for name, embeddings in cond.items():
            check_finite_images(embeddings, f"text embeddings ({name})")
        return cond

    def start(self, model: TextToImage, cond: Conditioning, uncond: Conditioning, steps: int, scale: float) -> Predictor:
        """See `SamplingGuidance.start`."""
        guidance = self._guidance
        plain = model.predictor(cond, uncond, scale) if guidance is None else guidance.start(model, cond, uncond, steps, scale)

        def predict(step: int, latents: Tensor, timestep: Tensor) -> Tensor:
            check_finite_images(latents, f"latents after step {step} of {steps}")
            prediction = plain(step, latents, timestep)
            check_finite_images(prediction, f"predictions of step {step + 1} of {steps}")
            return prediction

        return predict


def generate(
    model: TextToImage,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    scale: float,
    guidance: SamplingGuidance | None = None,
) -> Tensor:
    """Images of prompts, uint8 (n, h, w, 3), each with its own seed."""
    return ImageGenerator(model, guidance).batch(SamplingBatch(list(prompts), list(seeds), steps, scale))
