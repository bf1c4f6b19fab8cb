"""The training examples: the user's folders, or images that the original model generates."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from unlearnbench.algos.examples import Examples
from unlearnbench.config.errors import UserError
from unlearnbench.console import progress_bar
from unlearnbench.data.concept import Concept
from unlearnbench.data.image_reader import open_image
from unlearnbench.data.prompts import Prompt, image_seed
from unlearnbench.data.training_source import read_captioned
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.sampling import ImageGenerator, Sampling, SamplingBatch, encode_images
from unlearnbench.storage.cache import Cache

TRAINING_SEED = 1_000_003


def training_examples(
    spec: RunSpec, generator: ImageGenerator, cache: Cache, fingerprint: str, concept: Concept | None = None
) -> tuple[Examples, Examples]:
    """The forget and retain examples: the user's folders, or images that the original model generates for training prompts.

    Args:
        spec: the run's settings.
        generator: generates images by the original model.
        cache: stores the latents of these images.
        fingerprint: the fingerprint of the original model.
        concept: the concept to forget; by default all that the run forgets.

    Raises:
        UserError: one side has no examples, or they cannot be read.
    """
    concept = concept or spec.concept
    originals = _Originals(generator, spec.sample, cache, fingerprint)
    forget = _forget_examples(spec, originals, concept)
    texts, latents = _prompts_and_latents(spec, originals, "retain", concept)
    retain = Examples(texts, texts, latents)
    return forget.to(generator.model.device), retain.to(generator.model.device)


class _Originals(NamedTuple):
    """Generates training images by the original model, and stores their latents in a cache."""

    generator: ImageGenerator
    settings: Sampling
    cache: Cache
    fingerprint: str

    def latents(self, name: str, texts: list[str], seeded_by: list[str] | None = None) -> Tensor:
        """The latents (n, c, h, w) of an image for each prompt; a repeated prompt has another seed each time.

        Args:
            name: the name of the progress bar.
            texts: the prompts.
            seeded_by: the prompts that the seeds are of, by default the same.
        """
        seeds, repeats = [], Counter[str]()
        for text in seeded_by or texts:
            seeds.append(image_seed(TRAINING_SEED, Prompt(text), repeats[text]))
            repeats[text] += 1
        settings, size = self.settings, self.generator.model.size
        key = [self.fingerprint, texts, seeds, settings.steps, settings.guidance, size]
        return self.cache.get("training", key, lambda: {"latents": self._generate(name, texts, seeds)})["latents"]

    def _generate(self, name: str, texts: list[str], seeds: list[int]) -> Tensor:
        model, size = self.generator.model, self.settings.batch
        latents = torch.empty(len(texts), *model.latent_shape())
        parts = [(texts[i : i + size], seeds[i : i + size]) for i in range(0, len(texts), size)]
        batches = [SamplingBatch(*part, self.settings.steps, self.settings.guidance) for part in parts]
        with progress_bar(name, len(texts)) as progress, self.generator.job():
            stream = self.generator.batches(batches)
            for batch, part in zip(batches, latents.split(size), strict=True):
                progress.size = len(part)
                part.copy_(encode_images(model, next(stream), batch.prompts))
                progress.advance(len(part))
        return latents


def _forget_examples(spec: RunSpec, originals: _Originals, concept: Concept) -> Examples:
    texts, latents = _prompts_and_latents(spec, originals, "forget", concept)
    anchors = [concept.substitute(text) for text in texts]
    name = bar_name(spec, "anchor", concept)
    seeded_by = texts if spec.algo.pairs_anchor_images else anchors
    anchor_latents = originals.latents(name, anchors, seeded_by) if spec.algo.needs_anchor_images else torch.empty(0)
    weights = _equal_weights(spec, concept) if spec.training.forget_folder is None else None
    return Examples(texts, anchors, latents, weights, anchor_latents)


def _prompts_and_latents(spec: RunSpec, originals: _Originals, side: str, concept: Concept) -> tuple[list[str], Tensor]:
    """The prompts of one side, forget or retain, and their latents, which are empty if the method needs no images."""
    model = originals.generator.model
    texts, files = training_prompts(spec, side, concept)
    if files:
        pixels = (torch.from_numpy(open_image(file, model.size))[None] for file in files)
        return texts, torch.cat([encode_images(model, image, [str(file)]) for image, file in zip(pixels, files, strict=True)])
    texts = texts * spec.training.per_prompt
    return texts, originals.latents(bar_name(spec, side, concept), texts) if spec.algo.needs_images else torch.empty(0)


def bar_name(spec: RunSpec, side: str, concept: Concept) -> str:
    """The name of the progress bar of one set of training images.

    Args:
        spec: the run's settings.
        side: forget, anchor or retain.
        concept: the concept to forget; named if the run forgets several, one after another, which share the retain set.
    """
    return f"sample {side} set" + (f" of {concept.name}" if side != "retain" and concept is not spec.concept else "")


def _equal_weights(spec: RunSpec, concept: Concept) -> Tensor | None:
    """Weights by which several concepts are drawn equally often; None where they have as many prompts each."""
    prompts = forget_training_prompts(concept)
    counts = Counter(prompt.split for prompt in prompts)
    if len(set(counts.values())) <= 1:
        return None
    return torch.tensor([1 / counts[prompt.split] for _ in range(spec.training.per_prompt) for prompt in prompts])


def training_prompts(spec: RunSpec, side: str, concept: Concept) -> tuple[list[str], list[Path]]:
    """The captions and images of the user's folder; without a folder the training prompts, and no images.

    Args:
        spec: the run's settings.
        side: forget or retain.
        concept: the concept to forget; if the run forgets several, only captions that name this one count.

    Raises:
        UserError: there are none although the algorithm needs some, or they cannot be read.
    """
    forget = side == "forget"
    folder = spec.training.forget_folder if forget else spec.training.retain_folder
    if folder is None:
        prompts = (
            forget_training_prompts(concept) if forget else [p for p in spec.retain.load(spec.concept) if p.use in ("", "train")]
        )
        if not prompts and spec.algo.needs_examples:
            where = f"concept.prompts={concept.prompts}" if forget else f"retain.prompts={spec.retain.prompts}"
            raise UserError(f"{where}: no {side} prompt to train on; add rows with use=train (or an empty use)")
        return [p.text for p in prompts], []
    captioned = list(zip(*read_captioned(folder), strict=True))
    if forget and concept is not spec.concept:
        captioned = [(text, file) for text, file in captioned if concept.is_named_in(text)]
    if not captioned:
        raise UserError(f"{folder}: no image of {concept.name}; no caption contains {', '.join(concept.words)}")
    return [text for text, _ in captioned], [file for _, file in captioned]


def forget_training_prompts(concept: Concept) -> list[Prompt]:
    """The forget prompts for training."""
    return [p for p in concept.load() if p.base == "forget" and p.use in ("", "train")]
