"""Images of a model for prompts and fixed seeds: they do not depend on batch size (up to rounding), order or resuming."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor

from unlearnbench.config.errors import RunError, UserError
from unlearnbench.config.ranges import at_least
from unlearnbench.console import part_of_step, progress_bar
from unlearnbench.data.images import ImageRecord, Images
from unlearnbench.data.prompts import LARGEST_SEED, Prompt, image_seed
from unlearnbench.models.base import Conditioning, NonFiniteImage, Predictor, SamplingGuidance, TextToImage, check_finite_images
from unlearnbench.storage.atomic import remove_leftovers, remove_path, write_text
from unlearnbench.storage.cache import Cache, digest
from unlearnbench.storage.image_store import ImageStore, StoredImage

GUIDANCE_COLUMNS = ("evaluation_guidance", "sd_guidance_scale", "guidance_scale", "guidance")
DECODING_STEPS = 2  # a progress bar counts decoding as so many sampling steps
logger = logging.getLogger(__name__)


@dataclass
class Sampling:
    """The settings of sampling.

    Attributes:
        seed: the seed of all measured images; unlearning has its own seed.
        per_prompt: images for each prompt, each with its own seed.
        prompts: the largest number of prompts of each split; null takes all.
        steps: sampling steps.
        guidance: the classifier-free guidance scale.
        batch: images in a batch; 32 was fastest on two cores.
        seeds: the seeds of the images of each prompt that has none of its own; their number is then that of images for each
            prompt, instead of `per_prompt`. Empty takes a hash of seed, prompt and number.
        row_guidance: a row of a prompt file with a guidance scale of its own (one of `GUIDANCE_COLUMNS`) is sampled with that.
    """

    seed: int = 0
    per_prompt: int = 2
    prompts: int | None = None
    steps: int = 20
    guidance: float = 4.0
    batch: int = 32
    row_guidance: bool = False
    seeds: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.per_prompt = len(self.seeds) or self.per_prompt
        if len(set(self.seeds)) < len(self.seeds) or any(not 0 <= seed <= LARGEST_SEED for seed in self.seeds):
            raise ValueError(f"seeds: {self.seeds}: give different whole numbers from 0 to {LARGEST_SEED}")
        at_least(self, 1, "per_prompt", "steps", "batch")
        if self.prompts is not None:
            at_least(self, 1, "prompts")

    def image_seed(self, prompt: Prompt, repeat: int) -> int:
        """The seed of a prompt's image of this number."""
        return self.seeds[repeat] if self.seeds and prompt.seed is None else image_seed(self.seed, prompt, repeat)

    def scale(self, prompt: Prompt) -> float:
        """The guidance scale of a prompt's images.

        Raises:
            UserError: the prompt's own scale is asked for, and is no number of at least 0.
        """
        own = dict(prompt.columns)
        cell = next((own[name] for name in GUIDANCE_COLUMNS if name in own), None) if self.row_guidance else None
        if cell is None:
            return self.guidance
        try:
            value = float(cell)
        except ValueError:
            value = -1.0
        if not 0 <= value < math.inf:
            raise UserError(f"the guidance {cell!r} of the prompt {prompt.text!r} is no number of at least 0")
        return value

    def limit(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The first `prompts` of every split."""
        counts: Counter[str] = Counter()
        limited = []
        for prompt in prompts:
            counts[prompt.split] += 1
            if self.prompts is None or counts[prompt.split] <= self.prompts:
                limited.append(prompt)
        return limited


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
        guidance: how the model is sampled; None for plain sampling.
        parallel: the number of batches that `batches` generates at the same time.
    """

    parallel: int = 1

    def __init__(self, model: TextToImage, guidance: SamplingGuidance | None = None) -> None:
        self.model, self.guidance = model, guidance
        self._largest: int | None = None  # the largest batch, once a larger one was out of memory

    def batches(self, batches: Sequence[SamplingBatch]) -> Iterator[Tensor]:
        """The images of every batch, in order."""
        yield from map(self.batch, batches)

    @torch.no_grad()
    def batch(self, batch: SamplingBatch) -> Tensor:
        """The images of one batch, uint8 (n, h, w, 3); the noise of image i comes from its own generator with seeds[i].

        If a batch does not fit into the GPU's memory, it and the following ones are halved; images do not depend on it.

        Raises:
            NonFiniteSample: an image is not finite.
        """
        images: list[Tensor] = []
        while (start := sum(map(len, images))) < len(batch.prompts):
            part = slice(start, start + (self._largest or len(batch.prompts)))
            try:
                with part_of_step(start / len(batch.prompts), min(part.stop / len(batch.prompts), 1.0)):
                    images.append(self._generate(batch._replace(prompts=batch.prompts[part], seeds=batch.seeds[part])))
            except RuntimeError as error:
                tried = len(batch.prompts[part])
                if tried == 1 or not out_of_memory(error):
                    raise
                self._largest = tried // 2
                logger.warning("out of memory with %d images in a batch; trying %d", tried, self._largest)
            if self._largest and torch.cuda.is_available():
                torch.cuda.empty_cache()
        return torch.cat(images)

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
        return self.model.sample_latents(batch.prompts, generators, batch.steps, batch.scale, guidance)

    def _earliest_failure(self, batch: SamplingBatch, failure: NonFiniteImage) -> NonFiniteImage:
        """The failure with its step: if latents are not finite, the batch is sampled again, and every step is checked."""
        if failure.part == "latents":
            try:
                self._latents(batch, CheckedSampling(self.guidance))
            except NonFiniteImage as earliest:
                return earliest
        return failure


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


def _reason(model: TextToImage, part: str) -> str:
    """What is not finite, and the repair."""
    if model.dtype == "fp32":
        repair = "check the weights of model.path; after unlearning try a smaller algo.lr"
    else:
        repair = f"set {'model.dtype=bf16 or ' * (model.dtype == 'fp16')}model.dtype=fp32"
    return f"its {part} are NaN or infinite in {model.dtype}; {repair}"


def encode_images(model: TextToImage, images: Tensor, names: Sequence[str]) -> Tensor:
    """The latents (n, c, h, w) of images, uint8 (n, h, w, 3); `names` says in an error which image it is.

    Raises:
        RunError: the latents of an image are NaN or infinite.
    """
    try:
        return model.encode_images(images)
    except NonFiniteImage as error:
        raise RunError(f"the image of {names[error.index]!r} cannot be encoded: {_reason(model, error.part)}") from error


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


def out_of_memory(error: BaseException) -> bool:
    """Whether the error means that memory is too small; near the limit CUDA's libraries raise errors of their own."""
    from accelerate.utils.memory import should_reduce_batch_size

    if not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error) or "ALLOC_FAILED" in str(error)


def sample(
    name: str,
    generator: ImageGenerator,
    prompts: Sequence[Prompt],
    settings: Sampling,
    folder: Path,
    cache: Cache | None = None,
    fingerprint: str = "",
) -> Images:
    """Generate an image for each prompt and seed into a folder; intact images that are already there are not repeated.

    The limits of batches do not depend on which images are missing, so a resumed folder is equal byte for byte. What the
    cache holds is not generated: batches are smaller then, and an image may differ by rounding from one without a cache.

    Args:
        name: the text of the progress bar.
        generator: generates the images.
        prompts: in the order of the index.
        settings: seeds, counts and steps.
        folder: gets 00000.png, ... and index.jsonl.
        cache: shares the images with other runs, each under a key of its own.
        fingerprint: the model's fingerprint, part of the key.

    Raises:
        RunError: an image is not finite; neither it nor the others of its batch are written or enter the cache.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = generator.model.size
    pairs = [(p, settings.image_seed(p, repeat)) for repeat in range(settings.per_prompt) for p in settings.limit(prompts)]
    requests = [
        _Request(f"{number:05d}.png", prompt, seed, [fingerprint, prompt.text, seed, settings.steps, scale, size], scale)
        for number, (prompt, seed) in enumerate(pairs)
        for scale in [settings.scale(prompt)]
    ]
    images = _intact_images(folder, requests)
    existing = {record.file for record in images}
    store = ImageStore(cache) if cache else None
    plan = _Plan(folder, requests, store)
    groups = [
        same[start : start + settings.batch]
        for scale in dict.fromkeys(request.scale for request in requests)
        for same in [[request for request in requests if request.scale == scale]]
        for start in range(0, len(same), settings.batch)
    ]
    groups = [group for group in groups if any(request.file not in existing for request in group)]
    with _named_failure(requests), progress_bar(name, len(requests), len(existing)) as progress, _ImageWriter(images) as writer:
        source = _Source(generator, settings, plan, groups, existing, store)
        for number, group in enumerate(groups):
            progress.size = sum(request.file not in existing for request in group)
            with ExitStack() as stack:
                lock = store.lock([request.key for request in group]) if store else None
                stack.callback(lock.release if lock else int)
                new = source.images(number)
                stack.pop_all()
                writer.add(new, store, lock)
            generated = sum(isinstance(image, Tensor) for _, image in new)
            progress.advance(generated)
            progress.skip(len(new) - generated)
    plan.remove()
    images = Images(folder, sorted(images, key=lambda record: record.file))
    images.write()
    return images


class _Request(NamedTuple):
    """An image to generate, its key in the cache, and its guidance scale."""

    file: str
    prompt: Prompt
    seed: int
    key: list[Any]
    scale: float


class _Plan:
    """The files that are to be generated, for the cache did not hold them when the folder was begun.

    It lies in the folder until the last image is written: a resumed folder then has the same batches, although the cache
    holds more by now, and so the same bytes.
    """

    def __init__(self, folder: Path, requests: Sequence[_Request], store: ImageStore | None) -> None:
        self._path = folder / ".missing.json"
        self.files = [request.file for request in requests]
        if store is None:
            return
        of = digest([request.key for request in requests])
        with suppress(OSError, ValueError, KeyError, TypeError):
            plan = json.loads(self._path.read_text(encoding="utf-8"))
            if plan["of"] == of:
                self.files = plan["files"]
                return
        self.files = [request.file for request in requests if not store.has(request.key)]
        if self.files:
            write_text(self._path, json.dumps({"of": of, "files": self.files}))

    def remove(self) -> None:
        """Remove the file of the plan."""
        remove_path(self._path)


@contextmanager
def _named_failure(requests: Sequence[_Request]) -> Iterator[None]:
    """Begin the message about an image that is not finite with the image's file."""
    try:
        yield
    except NonFiniteSample as error:
        file = next(r.file for r in requests if (r.prompt.text, r.seed) == (error.prompt, error.seed))
        raise RunError(f"{file}: {error}") from error


def _intact_images(folder: Path, requests: Sequence[_Request]) -> Images:
    """The requested images that the folder already holds undamaged; its index is rewritten to list only these."""
    requested = {request.file: (request.prompt.text, request.seed) for request in requests}
    existing = Images(folder)
    intact = [r for r in existing if requested.get(r.file) == (r.prompt, r.seed) and existing.intact(r)]
    files = {record.file for record in intact}
    for record in existing:
        if record.file in requested and record.file not in files:
            logger.warning("%s is damaged or belongs to another prompt; generating it again", folder / record.file)
    remove_leftovers(folder)
    images = Images(folder, intact)
    images.write()
    return images


class _Source:
    """The images of groups of requests: from the cache, or generated, several groups at once where processes share the work."""

    def __init__(
        self,
        generator: ImageGenerator,
        settings: Sampling,
        plan: _Plan,
        groups: Sequence[Sequence[_Request]],
        existing: Collection[str],
        store: ImageStore | None,
    ) -> None:
        self._generator, self._settings, self._groups, self._store = generator, settings, groups, store
        self._planned, self._existing = set(plan.files), existing
        self._generated: dict[int, dict[str, Tensor]] = {}

    def images(self, number: int) -> list[tuple[_Request, StoredImage | Tensor]]:
        """The images of a group that its folder lacks, in order."""
        needed = [request for request in self._groups[number] if request.file not in self._existing]
        images: dict[str, StoredImage | Tensor] = {}
        if self._store:
            images = {r.file: image for r in needed if (image := self._store.get(r.key))}
            self._store.cache.hits += len(images)
            self._store.cache.misses += len(needed) - len(images)
        if len(images) < len(needed):
            images = {**self._pixels(number, {request.file for request in needed} - images.keys()), **images}
        self._generated.pop(number, None)
        return [(request, images[request.file]) for request in needed]

    def _pixels(self, number: int, files: set[str]) -> Mapping[str, Tensor]:
        """The pixels of these files of a group, with those of the others in the same batch."""
        if not files <= self._generated.get(number, {}).keys():
            later = (n for n in range(number + 1, len(self._groups)) if n not in self._generated and self._lacking(n))
            numbers = [number, *islice(later, self._generator.parallel - 1)]
            batches = [self._batch(n, files if n == number else self._lacking(n)) for n in numbers]
            pixels = self._generator.batches([self._sampling_batch(batch) for batch in batches])
            for n, batch, images in zip(numbers, batches, pixels, strict=True):
                self._generated[n] = {request.file: image for request, image in zip(batch, images, strict=True)}
        return self._generated[number]

    def _lacking(self, number: int) -> set[str]:
        """The files of a later group that neither its folder nor the cache holds."""
        requests = (request for request in self._groups[number] if request.file not in self._existing)
        return {request.file for request in requests if not (self._store and self._store.has(request.key))}

    def _batch(self, number: int, files: Collection[str]) -> list[_Request]:
        """The requests of a group that are generated together: those of the plan, and these files."""
        return [request for request in self._groups[number] if request.file in self._planned or request.file in files]

    def _sampling_batch(self, batch: Sequence[_Request]) -> SamplingBatch:
        texts, seeds = [request.prompt.text for request in batch], [request.seed for request in batch]
        return SamplingBatch(texts, seeds, self._settings.steps, batch[0].scale)


class _ImageWriter:
    """Writes images in a thread while the next batch is generated; an image enters the index after its file is written."""

    def __init__(self, images: Images) -> None:
        self._images, self._thread = images, ThreadPoolExecutor(1)
        self._pending: list[list[tuple[_Request, Future[str]]]] = []

    def __enter__(self) -> _ImageWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._thread.shutdown()
        if error is None:
            self._index(keep=0)

    def add(
        self,
        group: Sequence[tuple[_Request, StoredImage | Tensor]],
        store: ImageStore | None = None,
        lock: FileLock | None = None,
    ) -> None:
        """Start to write these images, and wait if more than two groups are pending.

        Args:
            group: the images.
            store: gets the images that are not in it.
            lock: released after the last one.
        """
        folder = self._images.folder
        jobs = [
            (request, self._thread.submit(_write, folder / request.file, image, store, request.key)) for request, image in group
        ]
        self._pending.append(jobs)
        if lock:
            self._thread.submit(lock.release)
        self._index(keep=2)

    def _index(self, keep: int) -> None:
        """Add groups to the index, in order: those that are written, and all but the last `keep`."""
        while self._pending and (self._pending[0][-1][1].done() or len(self._pending) > keep):
            group = self._pending.pop(0)
            self._images.add([_record(request, job.result()) for request, job in group])


def _record(request: _Request, sha256: str) -> ImageRecord:
    prompt = request.prompt
    return ImageRecord(request.file, prompt.text, prompt.split, prompt.label, request.seed, sha256, dict(prompt.columns))


def _write(path: Path, image: StoredImage | Tensor, store: ImageStore | None, key: Any) -> str:
    """Write a PNG file, and its pixels to the store first if they are new; returns the file's sha256."""
    if isinstance(image, Tensor):
        png = io.BytesIO()
        Image.fromarray(image.numpy()).save(png, "png", compress_level=4)
        data = png.getvalue()
        image = store.put(key, data) if store else StoredImage(data, hashlib.sha256(data).hexdigest())
    image.write(path)
    return image.sha256
