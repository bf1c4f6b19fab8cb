"""One pass over images: each is decoded once, by threads that read ahead, and given to every network that asks about it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unlearnbench.config.errors import UserError
from unlearnbench.console import note
from unlearnbench.data.image_reader import image_size, refuse_broken
from unlearnbench.data.images import Images, Picture
from unlearnbench.metrics.readers import BATCH, Question, Reader
from unlearnbench.storage.answers import Answers
from unlearnbench.storage.cache import Cache, digest
from unlearnbench.storage.fitting_batches import FittingBatches

BLOCK, BLOCK_BYTES = 256, 2**27  # the most images in a block, and their bytes: two blocks are in memory at a time
THREADS = min(8, os.cpu_count() or 1)

Item = tuple[Picture, ...]  # an image, or a pair


class ImagePass:
    """The answers of readers about images: from the cache, or from one pass over the images that have none."""

    def __init__(self, cache: Cache, device: torch.device) -> None:
        self._cache, self._device = cache, device
        self._answers: dict[str, Answers] = {}
        self._fitting = FittingBatches("images", BATCH)

    def rows(self, reader: Reader, *sides: Images | Sequence[Picture]) -> Tensor:
        """The answers of a reader, (n, ...), one for each image or pair; what is not known yet is read now."""
        question = Question(reader, sides)
        self.ask([question])
        return self._of(reader).rows([_item_id(item) for item in question.items()])

    def ask(self, questions: Iterable[Question]) -> None:
        """Read all images about which a question has no answer, each once.

        Raises:
            UserError: images cannot be read; the others are, before.
        """
        readers: dict[str, Reader] = {}
        items: dict[str, dict[str, Item]] = {}
        for question in questions:
            name = self._name(question.reader)
            readers[name] = question.reader
            items.setdefault(name, {}).update({_item_id(item): item for item in question.items()})
        unanswered = {
            name: [of_reader[key] for key in self._of(readers[name]).unanswered(of_reader)] for name, of_reader in items.items()
        }
        blocks = list(_blocks(unanswered))
        total, count = len({p for of_reader in unanswered.values() for item in of_reader for p in item}), 0
        broken: dict[Path, str] = {}
        with ThreadPoolExecutor(THREADS) as threads:
            for block, pixels in _read_ahead(threads, blocks):
                broken |= {picture.path: "" for picture, image in pixels.items() if image is None}
                read = {picture: image for picture, image in pixels.items() if image is not None}
                for name, of_reader in block.items():
                    self._read(readers[name], [item for item in of_reader if read.keys() >= {*item}], read)
                count += len(pixels)
                note(f"{min(count, total)} of {total} images")
                pixels.clear()
                read.clear()
        if broken:
            folder = next(iter(broken)).parent
            files = {picture.path for of_reader in items.values() for item in of_reader.values() for picture in item}
            refuse_broken(folder, broken, sum(path.parent == folder for path in files))

    def _name(self, reader: Reader) -> str:
        return digest(reader.kind, self._key(reader))

    def _key(self, reader: Reader) -> list[object]:
        return [*reader.key(), *(["fp16"] if _is_half(self._device) else [])]

    def _of(self, reader: Reader) -> Answers:
        name = self._name(reader)
        if name not in self._answers:
            self._answers[name] = Answers(self._cache, reader.kind, self._key(reader))
        return self._answers[name]

    @torch.no_grad()
    def _read(self, reader: Reader, items: Sequence[Item], pixels: Mapping[Picture, np.ndarray]) -> None:
        """Give the images of a block to a reader, in batches of one size, and store its answers."""
        batches = list(_batches(items, pixels))

        def answers(batch: Sequence[Item], part: slice) -> Tensor:
            sides = range(len(batch[0]))
            images = [torch.from_numpy(np.stack([pixels[item[side]] for item in batch[part]])) for side in sides]
            with half_precision(self._device):
                rows = reader.read(images, self._device)
            return rows.float().cpu() if rows.dtype in (torch.float16, torch.bfloat16) else rows.cpu()

        rows = [row for batch in batches for row in self._fitting.run(len(batch), partial(answers, batch))]
        if rows:
            self._of(reader).put([_item_id(item) for batch in batches for item in batch], torch.cat(rows))


def half_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context in which networks compute in half precision on a GPU; elsewhere as they are."""
    return torch.autocast(device.type, torch.float16) if _is_half(device) else nullcontext()


def _is_half(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_available()


def _item_id(item: Item) -> str:
    return " ".join(picture.id for picture in item)


def _blocks(unanswered: Mapping[str, Sequence[Item]]) -> Iterator[dict[str, list[Item]]]:
    """Items of all readers in blocks; the items of a group, such as a prompt, are in one block if it is large enough."""
    groups: dict[str, list[tuple[str, Item]]] = {}
    for name, items in unanswered.items():
        for item in items:
            groups.setdefault(item[0].group, []).append((name, item))
    block: dict[str, list[Item]] = {}
    pictures: set[Picture] = set()
    most = BLOCK
    for group in groups.values():
        whole = {picture for _, item in group for picture in item}
        for name, item in group:
            part = whole if item is group[0][1] else item
            if pictures and len(pictures.union(part)) > most:
                yield block
                block, pictures = {}, set()
            most = most if pictures else _block_size(item[0])
            pictures.update(item)
            block.setdefault(name, []).append(item)
    if block:
        yield block


def _block_size(picture: Picture) -> int:
    """The most images in a block of images of this size."""
    side = picture.size
    width, height = (side, side) if side else image_size(picture.path)
    return max(1, min(BLOCK, BLOCK_BYTES // (3 * width * height)))


def _batches(items: Sequence[Item], pixels: Mapping[Picture, np.ndarray]) -> Iterator[list[Item]]:
    """Items whose images have the same size, `BATCH` at a time."""
    by_shape: dict[object, list[Item]] = {}
    for item in items:
        by_shape.setdefault(tuple(pixels[picture].shape for picture in item), []).append(item)
    for of_shape in by_shape.values():
        yield from (of_shape[start : start + BATCH] for start in range(0, len(of_shape), BATCH))


def _read_ahead(
    threads: ThreadPoolExecutor, blocks: Sequence[dict[str, list[Item]]]
) -> Iterator[tuple[dict[str, list[Item]], dict[Picture, np.ndarray | None]]]:
    """Each block with the pixels of its images, None for one that cannot be read; the next block is read in the meantime."""

    def start(block: dict[str, list[Item]]) -> dict[Picture, Future[np.ndarray | None]]:
        pictures = dict.fromkeys(picture for items in block.values() for item in items for picture in item)
        return {picture: threads.submit(_open, picture) for picture in pictures}

    ahead = start(blocks[0]) if blocks else {}
    for number, block in enumerate(blocks):
        jobs, ahead = ahead, start(blocks[number + 1]) if number + 1 < len(blocks) else {}
        yield block, {picture: job.result() for picture, job in jobs.items()}


def _open(picture: Picture) -> np.ndarray | None:
    try:
        return picture.open()
    except UserError:
        return None
