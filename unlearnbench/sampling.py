"""Images of a model for prompts and fixed seeds: independent of batch size (to rounding), order and resume."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from unlearnbench.config.ranges import at_least
from unlearnbench.console import console, progress_bar
from unlearnbench.data.images import ImageRecord, Images
from unlearnbench.data.prompts import Prompt, image_seed
from unlearnbench.models.base import SamplingGuidance, TextToImage
from unlearnbench.storage.atomic import remove_leftovers, write_bytes
from unlearnbench.storage.cache import Cache


@dataclass
class Sampling:
    """How images are sampled.

    Attributes:
        seed: the seed of all measured images (the unlearning's own seed is apart from it).
        per_prompt: images for each prompt, each with a seed of its own.
        prompts: at most so many prompts of each split; null takes all.
        steps: sampling steps.
        guidance: the classifier-free guidance scale.
        batch: prompts a batch; 32 was the fastest on two cores.
    """

    seed: int = 0
    per_prompt: int = 2
    prompts: int | None = None
    steps: int = 20
    guidance: float = 4.0
    batch: int = 32

    def __post_init__(self) -> None:
        at_least(self, 1, "per_prompt", "steps", "batch")
        if self.prompts is not None:
            at_least(self, 1, "prompts")

    def limit(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The first `prompts` of every split."""
        seen: dict[str, int] = {}
        kept = []
        for prompt in prompts:
            seen[prompt.split] = seen.get(prompt.split, 0) + 1
            if self.prompts is None or seen[prompt.split] <= self.prompts:
                kept.append(prompt)
        return kept


class SamplingBatch(NamedTuple):
    """Images that are generated together: a prompt and a seed each, sampling steps, and the guidance scale."""

    prompts: list[str]
    seeds: list[int]
    steps: int
    scale: float


class ImageGenerator:
    """Generates images by one model, several batches at a time where processes share the work.

    Attributes:
        model: a loaded model.
        guidance: how it is sampled, if not plainly.
        parallel: the number of batches that `batches` is best asked for at once.
    """

    parallel: int = 1

    def __init__(self, model: TextToImage, guidance: SamplingGuidance | None = None) -> None:
        self.model, self.guidance = model, guidance
        self._largest: int | None = None  # the largest batch that the memory took, once it has refused one

    def batches(self, batches: Sequence[SamplingBatch]) -> Iterator[Tensor]:
        """The images of every batch, in order."""
        yield from map(self.batch, batches)

    @torch.no_grad()
    def batch(self, batch: SamplingBatch) -> Tensor:
        """The images of one batch, uint8 (n, h, w, 3): noise of image i from its own generator, seeded with seeds[i].

        A batch that the GPU's memory does not take is halved, and so are those that follow; images do not depend on it.
        """
        images: list[Tensor] = []
        while (done := sum(map(len, images))) < len(batch.prompts):
            part = slice(done, done + (self._largest or len(batch.prompts)))
            try:
                images.append(self._generate(batch._replace(prompts=batch.prompts[part], seeds=batch.seeds[part])))
            except RuntimeError as error:
                tried = len(batch.prompts[part])
                if tried == 1 or not out_of_memory(error):
                    raise
                self._largest = tried // 2
                console.print(f"out of memory: {tried} images at once are too many; trying {self._largest}", style="yellow")
            if self._largest and torch.cuda.is_available():
                torch.cuda.empty_cache()
        return torch.cat(images)

    def _generate(self, batch: SamplingBatch) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in batch.seeds]
        latents = self.model.sample_latents(batch.prompts, generators, batch.steps, batch.scale, self.guidance)
        return self.model.decode(latents)


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


def out_of_memory(error: BaseException) -> bool:
    """Does the error say that memory is too small? Near the limit CUDA's libraries say so in words of their own."""
    from accelerate.utils.memory import should_reduce_batch_size

    if not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error) or "ALLOC_FAILED" in str(error)


def _write(path: Path, pixels: Tensor) -> str:
    data = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(data, "png", compress_level=4)
    write_bytes(path, data.getvalue())
    return hashlib.sha256(data.getvalue()).hexdigest()


def _hashed(shots: list[ImageRecord], jobs: list[Future[str]]) -> list[ImageRecord]:
    return [replace(shot, sha256=job.result()) for shot, job in zip(shots, jobs, strict=True)]


def _file(number: int) -> str:
    return f"{number:05d}.png"


def _intact(folder: Path, asked: dict[str, tuple[str, int]]) -> Images:
    """The whole images of these files, prompts and seeds that are there, and an index of them alone."""
    found = Images(folder)
    kept = [shot for shot in found if asked.get(shot.file) == (shot.prompt, shot.seed) and found.intact(shot)]
    whole = {shot.file for shot in kept}
    for shot in found:
        if shot.file in asked and shot.file not in whole:
            told = f"{folder / shot.file} is damaged or of another prompt, and is made again"
            console.print(told, style="yellow", markup=False, highlight=False, soft_wrap=True)
    remove_leftovers(folder)
    images = Images(folder, kept)
    images.write()
    return images


def _lacking(wanted: Sequence[tuple[Prompt, int]], done: set[str], settings: Sampling) -> dict[int, SamplingBatch]:
    """The batches of which an image is not done, each by the number of its first image."""
    batches = {}
    for start in range(0, len(wanted), settings.batch):
        part = wanted[start : start + settings.batch]
        if any(_file(start + i) not in done for i in range(len(part))):
            batches[start] = SamplingBatch(
                [p.text for p, _ in part], [seed for _, seed in part], settings.steps, settings.guidance
            )
    return batches


def sample(
    name: str,
    images_of: ImageGenerator,
    prompts: Sequence[Prompt],
    settings: Sampling,
    folder: Path,
    cache: Cache | None = None,
    fingerprint: str = "",
) -> Images:
    """Sample every (prompt, seed) into a folder; what is there already, whole, is not made again.

    Batches are cut at the same places whatever is missing, so that a resumed folder is equal byte for byte.

    Args:
        name: what the progress bar says.
        images_of: generates them.
        prompts: in the order of the index.
        settings: seeds, counts, steps.
        folder: gets 00000.png, ... and index.jsonl.
        cache: where batches of the original are kept for other runs.
        fingerprint: the model's, part of the cache's key.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(p, image_seed(settings.seed, p, r)) for r in range(settings.per_prompt) for p in settings.limit(prompts)]
    images = _intact(folder, {_file(i): (prompt.text, seed) for i, (prompt, seed) in enumerate(wanted)})
    done = {shot.file for shot in images}
    batches = _lacking(wanted, done, settings)
    ahead: dict[int, Tensor] = {}

    def key(batch: SamplingBatch) -> list[Any]:
        return [fingerprint, *batch, images_of.model.size]

    def make(start: int) -> dict[str, Tensor]:
        if start not in ahead:
            others = (s for s in batches if s > start and not (cache and cache.has("images", key(batches[s]))))
            now = [start, *islice(others, images_of.parallel - 1)]
            ahead.update(zip(now, images_of.batches([batches[s] for s in now]), strict=True))
        return {"images": ahead.pop(start)}

    pending: list[tuple[list[ImageRecord], list[Future[str]]]] = []
    with progress_bar(name, len(wanted), len(done)) as shown, ThreadPoolExecutor(1) as writer:
        for start, batch in batches.items():
            chunk = wanted[start : start + settings.batch]
            names = [_file(start + i) for i in range(len(chunk))]
            pixels = (cache.get("images", key(batch), partial(make, start)) if cache else make(start))["images"]
            new = [i for i, name in enumerate(names) if name not in done]
            jobs = [writer.submit(_write, folder / names[i], pixels[i]) for i in new]
            shots = [ImageRecord(names[i], chunk[i][0].text, chunk[i][0].split, chunk[i][0].label, chunk[i][1], "") for i in new]
            pending.append((shots, jobs))
            while pending and (pending[0][1][-1].done() or len(pending) > 2):
                images.add(_hashed(*pending.pop(0)))
            shown.advance(len(new))
        for shots, jobs in pending:
            images.add(_hashed(shots, jobs))
    images = Images(folder, sorted(images, key=lambda shot: shot.file))
    images.write()
    return images
