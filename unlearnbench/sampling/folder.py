"""The images of a run's prompts in a folder: from the cache, from the folder itself, or generated."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock
from PIL import Image
from torch import Tensor

from unlearnbench.config.errors import RunError
from unlearnbench.console import progress_bar
from unlearnbench.data.images import ImageRecord, Images
from unlearnbench.data.prompts import Prompt
from unlearnbench.models.base import ImageShape
from unlearnbench.sampling.generation import ImageGenerator, NonFiniteSample, SamplingBatch
from unlearnbench.sampling.settings import Sampling
from unlearnbench.storage.atomic import remove_leftovers, remove_path, write_text
from unlearnbench.storage.cache import Cache, digest
from unlearnbench.storage.image_store import ImageStore, StoredImage

logger = logging.getLogger(__name__)


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
    requests = _requests(prompts, settings, fingerprint, generator.model.size)
    images = _intact_images(folder, requests)
    existing = {record.file for record in images}
    store = ImageStore(cache) if cache else None
    plan = _Plan(folder, requests, store)
    groups = [group for group in _groups(requests, settings.batch) if any(request.file not in existing for request in group)]
    with (
        _named_failure(requests),
        progress_bar(name, len(requests), len(existing)) as progress,
        _ImageWriter(images) as writer,
        generator.job(),
    ):
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


def link_images(images: Images, folder: Path) -> Images:
    """Images in another folder with an index of its own: hard links where the file system has them, else copies."""
    for record in images:
        file = images.folder / record.file
        StoredImage(file.read_bytes(), record.sha256, file).write(folder / record.file)
    linked = Images(folder, list(images))
    linked.write()
    return linked


class _Request(NamedTuple):
    """An image to generate, its key in the cache, its guidance scale, and its height and width if they are not the model's."""

    file: str
    prompt: Prompt
    seed: int
    key: list[Any]
    scale: float
    shape: ImageShape | None


def _requests(prompts: Sequence[Prompt], settings: Sampling, fingerprint: str, size: int) -> list[_Request]:
    """An image for each prompt and seed, in order: the first of every prompt, then the second."""
    requests: list[_Request] = []
    for repeat in range(settings.per_prompt):
        for prompt in settings.limit(prompts):
            seed, scale, shape = settings.image_seed(prompt, repeat), settings.scale(prompt), settings.shape(prompt)
            shape = None if shape == (size, size) else shape
            key = [fingerprint, prompt.text, seed, settings.steps, scale, size if shape is None else [*shape]]
            requests.append(_Request(f"{len(requests):05d}.png", prompt, seed, key, scale, shape))
    return requests


def _groups(requests: Sequence[_Request], batch: int) -> list[list[_Request]]:
    """The requests of one guidance scale and shape, a batch at a time."""
    alike: dict[tuple[float, ImageShape | None], list[_Request]] = {}
    for request in requests:
        alike.setdefault((request.scale, request.shape), []).append(request)
    return [same[start : start + batch] for same in alike.values() for start in range(0, len(same), batch)]


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
        """The images of a group that are not in its folder, in order."""
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
            later = (n for n in range(number + 1, len(self._groups)) if n not in self._generated and self._absent(n))
            numbers = [number, *islice(later, self._generator.parallel - 1)]
            batches = [self._batch(n, files if n == number else self._absent(n)) for n in numbers]
            following = (self._sampling_batch(self._batch(n, self._absent(n))) for n in later)
            pixels = self._generator.batches([self._sampling_batch(batch) for batch in batches], following)
            for n, batch, images in zip(numbers, batches, pixels, strict=True):
                self._generated[n] = {request.file: image for request, image in zip(batch, images, strict=True)}
        return self._generated[number]

    def _absent(self, number: int) -> set[str]:
        """The files of a later group that are neither in its folder nor in the cache."""
        requests = (request for request in self._groups[number] if request.file not in self._existing)
        return {request.file for request in requests if not (self._store and self._store.has(request.key))}

    def _batch(self, number: int, files: Collection[str]) -> list[_Request]:
        """The requests of a group that are generated together: those of the plan, and these files."""
        return [request for request in self._groups[number] if request.file in self._planned or request.file in files]

    def _sampling_batch(self, batch: Sequence[_Request]) -> SamplingBatch:
        texts, seeds = [request.prompt.text for request in batch], [request.seed for request in batch]
        return SamplingBatch(texts, seeds, self._settings.steps, batch[0].scale, batch[0].shape)


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
        else:
            with suppress(OSError):  # such as a full disk, which `error` says
                self._index_written()

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

    def _index_written(self) -> None:
        """Add the images that are written to the index, and leave out those that could not be."""
        for group in self._pending:
            self._images.add([_record(request, job.result()) for request, job in group if job.exception() is None])


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
