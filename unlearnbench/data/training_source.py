"""The source of training images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unlearnbench.config.errors import UserError
from unlearnbench.config.paths import at_home
from unlearnbench.config.ranges import at_least
from unlearnbench.data.images import image_files
from unlearnbench.data.prompts import read_csv, read_text


@dataclass
class TrainingSource:
    """The source of training images: sampled by the original model from the training prompts, or a folder.

    Attributes:
        per_prompt: images sampled for each training prompt, with seeds that are never measured.
        forget_folder: a folder of images of the concept, each with a caption in a .txt beside it or in captions.csv.
        retain_folder: the same for images to retain.
        processes: how many processes share each batch; their gradients are averaged.
    """

    per_prompt: int = 1
    forget_folder: str | None = None
    retain_folder: str | None = None
    processes: int = 1

    def __post_init__(self) -> None:
        at_least(self, 1, "per_prompt", "processes")
        self.forget_folder, self.retain_folder = (f and at_home(f) for f in (self.forget_folder, self.retain_folder))


def read_captioned(folder: str) -> tuple[list[str], list[Path]]:
    """Images of a folder with their captions: `captions.csv` (file, caption), or x.txt beside x.png.

    Raises:
        UserError: no such folder, no image, an image without a caption, or unreadable captions.
    """
    root = Path(folder)
    files = image_files(root)
    by_file: dict[str, str] = {}
    table = root / "captions.csv"
    if table.is_file():
        by_file = {row["file"]: row["caption"] for _, row in read_csv(table, "file", "caption")}
    captions = []
    for file in files:
        beside = file.with_suffix(".txt")
        if file.name not in by_file and not beside.is_file():
            raise UserError(f"{file}: no caption; write it to {beside.name} or to captions.csv (file,caption)")
        captions.append(by_file[file.name] if file.name in by_file else read_text(beside).strip())
    return captions, files
