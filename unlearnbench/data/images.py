"""Folders of images with an index, and how a single image is opened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from unlearnbench.config.errors import UserError
from unlearnbench.storage.atomic import write_text

if TYPE_CHECKING:
    import torch


def image_files(folder: Path) -> list[Path]:
    """The images of a folder, by name.

    Raises:
        UserError: no such folder, no image, or some of them are broken; the text counts and names them.
    """
    files = sorted(p for p in folder.glob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    if not files:
        raise UserError(f"{folder}: " + ("no .png, .jpg or .webp image there" if folder.is_dir() else "no such folder"))
    refuse_broken(folder, [file for file in files if not _opens(file)], len(files))
    return files


def _opens(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.verify()
    except (OSError, SyntaxError):
        return False
    return True


def refuse_broken(folder: Path, broken: Sequence[Path], count: int) -> None:
    """Tell how many images of a folder are broken, and which.

    Raises:
        UserError: some are.
    """
    if broken:
        names = ", ".join(path.name for path in broken[:5]) + (", ..." if len(broken) > 5 else "")
        raise UserError(f"{folder}: {len(broken)} of {count} images cannot be read; mend or remove {names}")


def open_image(path: Path, size: int | None = None) -> np.ndarray:
    """An image as uint8 (h, w, 3), cropped to its centre square and resized if a size is given."""
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except OSError as error:
        raise UserError(f"{path}: not a readable image ({error})") from error
    if size is not None:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    return np.array(image)


@dataclass(frozen=True)
class ImageRecord:
    """One image of a folder: its file, and the prompt and seed that made it."""

    file: str
    prompt: str
    split: str
    label: str
    seed: int
    sha256: str


class Images(Sequence[ImageRecord]):
    """A folder of images and its index.jsonl, one line an image; a line is written after its image.

    Read from a folder they are in the order of their files, whatever the order in which they were made.
    """

    def __init__(self, folder: Path, shots: Sequence[ImageRecord] | None = None) -> None:
        self.folder = folder
        self._shots = list(shots) if shots is not None else sorted(self._read(), key=lambda shot: shot.file)

    def _read(self) -> Iterator[ImageRecord]:
        index = self.folder / "index.jsonl"
        if index.is_file():
            for line in index.read_text(encoding="utf-8").split("\n"):
                with suppress(ValueError):  # of a line that a killed process did not finish
                    yield ImageRecord(**json.loads(line))

    def __len__(self) -> int:
        return len(self._shots)

    def __getitem__(self, index: Any) -> Any:
        return self._shots[index]

    def where(self, *splits: str) -> Images:
        """Those of the given splits, in order; "forget" has those of "forget: church", too."""
        chosen = [shot for shot in self._shots if shot.split in splits or shot.split.partition(":")[0] in splits]
        return Images(self.folder, chosen)

    def pixels(self) -> torch.Tensor:
        """uint8, (n, h, w, 3)."""
        import torch

        if not self._shots:
            raise UserError(f"{self.folder}: holds no image")
        return torch.from_numpy(np.stack([open_image(self.folder / shot.file) for shot in self._shots]))

    def batches(self, size: int = 64) -> Iterator[torch.Tensor]:
        """The same in parts, so that no more than one need be held at once."""
        for start in range(0, max(len(self), 1), size):
            yield Images(self.folder, self._shots[start : start + size]).pixels()

    def key(self) -> str:
        """A hash of the images' bytes, in order."""
        return hashlib.sha256("".join(shot.sha256 for shot in self._shots).encode()).hexdigest()

    def intact(self, shot: ImageRecord) -> bool:
        """Whether the file is there and is the one that was written."""
        path = self.folder / shot.file
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == shot.sha256

    def add(self, shots: Sequence[ImageRecord]) -> None:
        """Append to the index; the images must be there."""
        with (self.folder / "index.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(_line(shot) for shot in shots)
        self._shots.extend(shots)

    def write(self) -> None:
        """Write the index anew, of these images alone."""
        write_text(self.folder / "index.jsonl", "".join(_line(shot) for shot in self._shots))


def _line(shot: ImageRecord) -> str:
    return json.dumps(asdict(shot), ensure_ascii=False) + "\n"
