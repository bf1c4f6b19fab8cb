"""Folders of images with an index."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from unlearnbench.config.errors import UserError
from unlearnbench.console import note
from unlearnbench.data.image_reader import image_size, open_image
from unlearnbench.data.prompts import measured_split
from unlearnbench.storage.atomic import write_text

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ImageRecord:
    """One image of a folder.

    Attributes:
        file: its name in the folder.
        prompt: the prompt it was generated from.
        split: the prompt's split.
        label: the prompt's label.
        seed: the seed it was generated with.
        sha256: the hash of the file.
        columns: the other cells of the prompt's row in its file, by the names of their columns.
    """

    file: str
    prompt: str
    split: str
    label: str
    seed: int
    sha256: str
    columns: dict[str, str] = field(default_factory=dict, hash=False)


class Picture(NamedTuple):
    """An image file that networks look at.

    Attributes:
        id: a hash of its bytes, or of all that its pixels depend on.
        group: what belongs together, such as the images of one prompt, which are read one after another.
        path: the file.
        size: the side of the square that it is cropped and resized to; None for its own size.
    """

    id: str
    group: str
    path: Path
    size: int | None = None

    def open(self) -> np.ndarray:
        """The pixels, uint8 (h, w, 3).

        Raises:
            UserError: it cannot be read.
        """
        return open_image(self.path, self.size)


class Images(Sequence[ImageRecord]):
    """A folder of images and its index.jsonl, one line an image; a line is written after its image.

    Images read from a folder are sorted by file name, in whatever order they were generated.
    """

    def __init__(self, folder: Path, records: Sequence[ImageRecord] | None = None) -> None:
        self.folder = folder
        self._records = list(records) if records is not None else sorted(self._read(), key=lambda record: record.file)

    def _read(self) -> Iterator[ImageRecord]:
        index = self.folder / "index.jsonl"
        if index.is_file():
            for number, line in enumerate(index.read_text(encoding="utf-8").split("\n"), 1):
                with suppress(ValueError):  # a line that a killed process left unfinished
                    yield _record(json.loads(line), f"{index}, line {number}")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        return self._records[index]

    def where(self, *splits: str) -> Images:
        """The images of the given splits, in order; "forget" includes "forget: church"."""
        records = [r for r in self._records if r.split in splits or r.split.partition(":")[0] in splits]
        return Images(self.folder, records)

    def distinct(self) -> Images:
        """The images without copies of the same prompt and seed on splits that are measured together, in order."""
        by_key: dict[tuple[str, str, int], ImageRecord] = {}
        for record in self._records:
            by_key.setdefault((measured_split(record.split), record.prompt, record.seed), record)
        return Images(self.folder, list(by_key.values()))

    def pixels(self) -> torch.Tensor:
        """uint8, (n, h, w, 3)."""
        import torch

        if not self._records:
            raise UserError(f"{self.folder}: no image in it")
        return torch.from_numpy(np.stack([open_image(self.folder / record.file) for record in self._records]))

    def batches(self, size: int = 64) -> Iterator[torch.Tensor]:
        """The pixels in batches, so that memory holds only one batch at a time; images of one batch have the same size."""
        start = 0
        while start < max(len(self), 1):
            part = self._records[start : start + size]
            sizes = [image_size(self.folder / record.file) for record in part]
            alike = list(takewhile(sizes[0].__eq__, sizes)) if sizes else []
            yield Images(self.folder, part[: len(alike)]).pixels()
            start += max(len(alike), 1)
            note(f"{min(start, len(self))} of {len(self)} images")

    def key(self) -> str:
        """A hash of the images' bytes, in order."""
        return hashlib.sha256("".join(record.sha256 for record in self._records).encode()).hexdigest()

    def pictures(self) -> list[Picture]:
        """The files, for networks; images of one prompt are a group."""
        return [Picture(record.sha256, record.prompt, self.folder / record.file) for record in self._records]

    def intact(self, record: ImageRecord) -> bool:
        """Whether the file exists and has the hash of its record."""
        path = self.folder / record.file
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == record.sha256

    def add(self, records: Sequence[ImageRecord]) -> None:
        """Append records to the index; their files must exist."""
        with (self.folder / "index.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(_line(record) for record in records)
        self._records.extend(records)

    def write(self) -> None:
        """Write a new index that lists only these images."""
        write_text(self.folder / "index.jsonl", "".join(_line(record) for record in self._records))


def _record(entries: Any, where: str) -> ImageRecord:
    """A line of the index.

    Raises:
        UserError: it is no record of an image.
    """
    try:
        return ImageRecord(**entries)
    except TypeError as error:
        raise UserError(f"{where}: no record of an image; remove the line, or repeat the run") from error


def _line(record: ImageRecord) -> str:
    entries = asdict(record)
    return json.dumps({k: v for k, v in entries.items() if k != "columns" or v}, ensure_ascii=False) + "\n"
