"""What unlearning trains on: the user's folders, or images that the original paints."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from unlearnbench.algos.examples import Examples
from unlearnbench.config.errors import UserError
from unlearnbench.console import progress_bar
from unlearnbench.data.concept import Concept
from unlearnbench.data.images import open_image
from unlearnbench.data.prompts import Prompt, image_seed
from unlearnbench.data.training_source import read_captioned
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.sampling import ImageGenerator, Sampling, SamplingBatch
from unlearnbench.storage.cache import Cache

TRAINING_SEED = 1_000_003


def training_examples(
    spec: RunSpec, images_of: ImageGenerator, cache: Cache, fingerprint: str, concept: Concept | None = None
) -> tuple[Examples, Examples]:
    """The forget and retain examples: the user's folders, or images that the original samples from training prompts.

    Args:
        spec: the run's settings.
        images_of: generates images by the original.
        cache: where its images are kept.
        fingerprint: of the original.
        concept: what is forgotten, if not all that the run forgets.

    Raises:
        UserError: one side has none, or they cannot be read.
    """
    concept, model = concept or spec.concept, images_of.model
    sides = []

    def paint(texts: list[str]) -> torch.Tensor:
        said: Counter[str] = Counter()
        seeds = []
        for text in texts:
            seeds.append(image_seed(TRAINING_SEED, Prompt(text), said[text]))
            said[text] += 1
        return _sampled_latents(images_of, texts, seeds, spec.sample, cache, fingerprint)

    for side in ("forget", "retain"):
        texts, files = training_prompts(spec, side, concept)
        if files:
            latents = torch.cat([model.encode_images(torch.from_numpy(open_image(f, model.size))[None]) for f in files])
        else:
            texts *= spec.training.per_prompt
            latents = paint(texts) if spec.algo.needs_images else torch.empty(0)
        anchors = [concept.substitute(t) for t in texts] if side == "forget" else texts
        others = paint(anchors) if side == "forget" and spec.algo.needs_anchor_images else torch.empty(0)
        sides.append(Examples(texts, anchors, latents, anchor_latents=others).to(model.device))
    asked = forget_training_prompts(concept)
    counts = Counter(p.split for p in asked)
    if spec.training.forget_folder is None and len(set(counts.values())) > 1:
        sides[0].weights = torch.tensor([1 / counts[p.split] for _ in range(spec.training.per_prompt) for p in asked])
    return sides[0], sides[1]


def _sampled_latents(
    images_of: ImageGenerator, texts: list[str], seeds: list[int], settings: Sampling, cache: Cache, fingerprint: str
) -> torch.Tensor:
    model = images_of.model

    def make() -> dict[str, torch.Tensor]:
        latents, size = torch.empty(len(texts), *model.latent_shape()), settings.batch
        cut = [(texts[i : i + size], seeds[i : i + size]) for i in range(0, len(texts), size)]
        batches = [SamplingBatch(*part, settings.steps, settings.guidance) for part in cut]
        with progress_bar("sample training set", len(texts)) as shown:
            for images, filled in zip(images_of.batches(batches), latents.split(size), strict=True):
                filled.copy_(model.encode_images(images))
                shown.advance(len(images))
        return {"latents": latents}

    return cache.get("training", [fingerprint, texts, seeds, settings.steps, settings.guidance, model.size], make)["latents"]


def training_prompts(spec: RunSpec, side: str, concept: Concept) -> tuple[list[str], list[Path]]:
    """What one side trains on: the captions of the user's folder and their images, or else prompts and no file.

    Args:
        spec: the run's settings.
        side: forget or retain.
        concept: what is forgotten: all that the run forgets, or one of it, whose captions say its words.

    Raises:
        UserError: there are none, though the algorithm needs some, or they cannot be read.
    """
    forget = side == "forget"
    folder = spec.training.forget_folder if forget else spec.training.retain_folder
    if folder is None:
        prompts = (
            forget_training_prompts(concept) if forget else [p for p in spec.retain.load(spec.concept) if p.use in ("", "train")]
        )
        if not prompts and spec.algo.needs_examples:
            where = f"concept.prompts={concept.prompts}" if forget else f"retain.prompts={spec.retain.prompts}"
            raise UserError(f"{where}: no {side} prompt to train on; give rows with use=train (or an empty use)")
        return [p.text for p in prompts], []
    both = list(zip(*read_captioned(folder), strict=True))
    if forget and concept is not spec.concept:
        both = [(text, file) for text, file in both if concept.is_named_in(text)]
    if not both:
        raise UserError(f"{folder}: {concept.name} has no image there; no caption says {', '.join(concept.words)}")
    return [text for text, _ in both], [file for _, file in both]


def forget_training_prompts(concept: Concept) -> list[Prompt]:
    """The forget prompts that train."""
    return [p for p in concept.load() if p.base == "forget" and p.use in ("", "train")]
