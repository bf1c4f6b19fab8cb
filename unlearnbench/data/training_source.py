"""The source of training images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unlearnbench.config.errors import UserError
from unlearnbench.config.paths import at_home, read_text
from unlearnbench.config.ranges import at_least
from unlearnbench.data.image_reader import image_files
from unlearnbench.data.phrases import normal_text
from unlearnbench.data.remarks import few, remark
from unlearnbench.data.table_reader import TABLE_SUFFIXES, Columns, read_table

CAPTION_COLUMNS = Columns(
    ("file", "caption"), aliases={"file": ("file_name",), "caption": ("text",)}, ignored=frozenset(), text=("file", "caption")
)


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
    """Images of a folder with their captions: a table captions.csv (file, caption), or x.txt beside x.png.

    The table may have any format of `read_table`. Images with neither are looked up in Hugging Face's metadata.csv, .jsonl or
    .parquet (file_name, text).

    Raises:
        UserError: no such folder, no image, an image without a caption or with an empty one, or unreadable captions.
    """
    root = Path(folder)
    files = image_files(root)
    names = {normal_text(file.name) for file in files}
    beside = {path.stem: path for path in sorted(root.iterdir()) if path.suffix.lower() == ".txt"}
    table = _caption_table(root, "captions", names)
    if bare := {name for file in files if (name := normal_text(file.name)) not in table and file.stem not in beside}:
        table |= {name: text for name, text in _caption_table(root, "metadata", names).items() if name in bare}
    captions, empty = [], []
    for file in files:
        if (name := normal_text(file.name)) in table:
            captions.append(table[name])
        elif file.stem in beside:
            captions.append(normal_text(read_text(beside[file.stem])).strip())
        else:
            raise UserError(f"{file}: no caption; write it to {file.stem}.txt or to captions.csv (file,caption)")
        if not captions[-1]:
            empty.append(file.name)
    if empty:
        reason = f"{len(empty)} of {len(files)} images have an empty caption; write it, or remove {few(empty)}"
        raise UserError(f"{root}: {reason}")
    return captions, files


def _caption_table(root: Path, stem: str, names: set[str]) -> dict[str, str]:
    """The captions of the table with this name by the image's name; empty if there is no such table."""
    tables = [path for path in sorted(root.iterdir()) if path.suffix.lower() in TABLE_SUFFIXES and path.stem.lower() == stem]
    if len(tables) > 1:
        raise UserError(f"{root}: several tables of captions, {', '.join(path.name for path in tables)}; keep one")
    captions: dict[str, str] = {}
    others = []
    for table in tables:
        for where, row in read_table(table, CAPTION_COLUMNS):
            name = row["file"].removeprefix("./")
            if name not in names:
                others.append(name)
            elif captions.setdefault(name, row["caption"]) != row["caption"]:
                raise UserError(f"{where}: another caption of {name}; keep one")
        if others:
            remark(table, f"{len(others)} of its files are no images of the folder: {few(others)}")
    return captions
