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
from unlearnbench.models.base import TextToImage
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
    """What is painted at once."""

    prompts: list[str]
    seeds: list[int]
    steps: int
    guidance: float


@torch.no_grad()
def generate(model: TextToImage, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float) -> Tensor:
    """One batch of images, uint8 (n, h, w, 3): noise of image i from its own generator, seeded with seeds[i].

    A batch that the GPU's memory does not take is halved, and so are those that follow; images do not depend on it.
    """
    images: list[Tensor] = []
    while (done := sum(map(len, images))) < len(prompts):
        part = slice(done, done + (model.at_once or len(prompts)))
        try:
            images.append(_generate_batch(model, prompts[part], seeds[part], steps, guidance))
        except RuntimeError as error:
            tried = len(prompts[part])
            if tried == 1 or not out_of_memory(error):
                raise
            model.at_once = tried // 2
            console.print(f"out of memory: {tried} images at once are too many; trying {model.at_once}", style="yellow")
        if model.at_once and torch.cuda.is_available():
            torch.cuda.empty_cache()
    return torch.cat(images)


def out_of_memory(error: BaseException) -> bool:
    """Does the error say that memory is too small? Near the limit CUDA's libraries say so in words of their own."""
    from accelerate.utils.memory import should_reduce_batch_size

    if not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error) or "ALLOC_FAILED" in str(error)


def _generate_batch(model: TextToImage, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float) -> Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return model.decode(model.denoise(model.encode(prompts), model.encode([""]), generators, steps, guidance))


def generate_batches(model: TextToImage, batches: Sequence[SamplingBatch]) -> Iterator[Tensor]:
    """The images of every batch, in order; several at a time where processes share the work."""
    if model.team is not None:
        yield from model.team.paint(batches)
    else:
        for batch in batches:
            yield generate(model, *batch)


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
    model: TextToImage,
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
        model: a loaded model.
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
        return [fingerprint, *batch, model.size]

    def make(start: int) -> dict[str, Tensor]:
        if start not in ahead:
            now = [start]
            if model.team is not None:
                lacking = (s for s in batches if s > start and not (cache and cache.has("images", key(batches[s]))))
                now += islice(lacking, model.team.size - 1)
            ahead.update(zip(now, generate_batches(model, [batches[s] for s in now]), strict=True))
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
