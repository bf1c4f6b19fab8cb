"""Prompts and images: what is asked of a model, and the folders of what it answered."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from unlearnbench.config import UserError, find_file, suggest
from unlearnbench.files import write_text

if TYPE_CHECKING:
    import torch

RETAIN_SPLITS = ("near", "far", "generic")
SPLITS = ("forget", "paraphrase", *RETAIN_SPLITS)
USES = ("train", "measure")


@dataclass(frozen=True)
class Prompt:
    """One prompt. `split` says which table it counts in, `use` whether it trains, is measured, or both ("")."""

    text: str
    split: str = ""
    use: str = ""
    label: str = ""
    seed: int | None = None

    @property
    def base(self) -> str:
        """The split without the concept that it is of, where there are several: forget of "forget: church"."""
        return self.split.partition(":")[0]


def read_text(path: Path) -> str:
    """A file's text.

    Raises:
        UserError: it is not UTF-8; the text says in which line.
    """
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8; convert it with `iconv -t utf-8`") from error


def read_prompts(name: str, split: str = "") -> list[Prompt]:
    """Read prompts from a csv with a `prompt` column (and split, use, label, seed if there), or a text file, one a line.

    Args:
        name: a path, or the name of a list shipped in conf/.
        split: the split of rows that name none.

    Raises:
        UserError: a missing file or column, a bad encoding (with its line), or no prompt at all.
    """
    path = find_file(name)
    text = read_text(path)
    if path.suffix != ".csv":
        prompts = [Prompt(line.strip(), split) for line in text.splitlines() if line.strip()]
    else:
        rows = csv.DictReader(io.StringIO(text, newline=""))
        if "prompt" not in (rows.fieldnames or []):
            raise UserError(f"{path}, line 1: no column 'prompt'; the columns are {', '.join(rows.fieldnames or ['none'])}")
        prompts = []
        for row in rows:
            if not (row["prompt"] or "").strip():
                raise UserError(f"{path}, line {rows.line_num}: the prompt is empty")
            seed = (row.get("seed") or "").strip()
            if seed and not seed.isdigit():
                raise UserError(f"{path}, line {rows.line_num}: seed {seed!r} is not a whole number")
            for column, known in (("split", SPLITS), ("use", USES)):
                if row.get(column) and row[column] not in known:
                    raise UserError(f"{path}, line {rows.line_num}: {column} {row[column]!r}; {suggest(row[column], known)}")
            prompts.append(
                Prompt(row["prompt"].strip(), row.get("split") or split, row.get("use") or "", row.get("label") or "",
                       int(seed) if seed else None)
            )  # fmt: skip
    if not prompts:
        raise UserError(f"{path}: holds no prompt")
    return prompts


@dataclass
class Concept:
    """What is to be forgotten.

    Attributes:
        name: a word for folders and tables.
        words: the words that name the concept; a retain prompt that has one is left out.
        prompts: a csv or text file of prompts that ask for it (and, in a csv, of near ones and paraphrases).
        anchor: what to paint instead: phrase to phrase, applied to forget prompts, longest first.
        guide: the concept as a bare phrase, for methods that edit one.
        anchors: per domain, the anchor that `anchor` takes unless given.
        detector: per domain, the detector that decides whether a picture shows the concept.
        explicit: blur its images in reports.
    """

    name: str
    words: list[str]
    prompts: str
    anchor: dict[str, str]
    guide: str
    detector: dict[str, Any]
    anchors: dict[str, Any] = field(default_factory=dict)
    explicit: bool = False

    def load(self) -> list[Prompt]:
        """All its prompts; those of a plain list are forget prompts, both to train and to measure."""
        return read_prompts(self.prompts, "forget")

    def phrases(self) -> list[str]:
        """The bare phrase, then the words, none twice."""
        return list(dict.fromkeys([self.guide, *self.words]))

    def by_split(self, base: str) -> dict[str, Concept]:
        """The splits of forget prompts or of paraphrases, each with the concept that it is of: one, or as many as there are."""
        return {base: self}

    def stages(self) -> list[Concept]:
        """What is forgotten in turn: all at once, unless there are several."""
        return [self]

    def substitute(self, prompt: str) -> str:
        """The prompt with the concept's words exchanged for the anchor's.

        Examples:
            >>> church = Concept("church", ["church"], "", {"church": "house"}, "church", {})
            >>> church.substitute("a red church on a white background")
            'a red house on a white background'
        """
        for phrase in sorted(self.anchor, key=len, reverse=True):
            prompt = re.sub(rf"\b{re.escape(phrase)}\b", self.anchor[phrase].replace("\\", r"\\"), prompt, flags=re.IGNORECASE)
        return re.sub(r"\s+", " ", prompt).strip(" ,")

    def names(self, prompt: str) -> bool:
        """Whether the prompt says one of the concept's words."""
        return says(prompt, self.words)


def says(prompt: str, words: Iterable[str]) -> bool:
    """Whether one of the words stands in the prompt, whole."""
    return any(re.search(rf"\b{re.escape(word)}\b", prompt, re.IGNORECASE) for word in words)


@dataclass
class Retain:
    """What is to be kept.

    Attributes:
        prompts: a csv or text file of prompts far from any concept, and generic ones; near ones come with the concept.
        splits: which of near, far, generic count.
        images: a folder of real images for FID, or null; Pictoworld draws its own.
    """

    prompts: str
    splits: list[str] = field(default_factory=lambda: list(RETAIN_SPLITS))
    images: str | None = None

    def __post_init__(self) -> None:
        for split in self.splits:
            if split not in RETAIN_SPLITS:
                raise ValueError(f"splits: {split!r} is none of {', '.join(RETAIN_SPLITS)}")

    def load(self, concept: Concept) -> list[Prompt]:
        """The retain prompts: the concept's near ones and those of the list, less any that says the concept's words."""
        near = [p for p in concept.load() if p.split == "near"]
        listed = [replace(p, split=p.split or "far") for p in read_prompts(self.prompts)]
        kept = [p for p in [*near, *listed] if p.split in self.splits and not concept.names(p.text)]
        if not kept:
            raise UserError(f"retain.prompts={self.prompts}: no prompt of {', '.join(self.splits)} is left beside {concept.name}")
        return kept


@dataclass
class TrainingSource:
    """Where training images come from: sampled by the original from the training prompts, or a folder of the user's.

    Attributes:
        per_prompt: images sampled for each training prompt (with seeds that are never measured).
        forget_folder: the user's own images of the concept, each with a caption in a .txt beside it or in captions.csv.
        retain_folder: the same for what is to be kept.
    """

    per_prompt: int = 1
    forget_folder: str | None = None
    retain_folder: str | None = None

    def __post_init__(self) -> None:
        if self.per_prompt < 1:
            raise ValueError(f"per_prompt: {self.per_prompt} is less than 1")


def read_captioned(folder: str) -> tuple[list[str], list[Path]]:
    """Images of a folder with their captions: `captions.csv` (file, caption), or x.txt beside x.png.

    Raises:
        UserError: no such folder, no image, an image without a caption, or captions that cannot be read.
    """
    root = Path(folder)
    files = sorted(p for p in root.glob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
    if not files:
        raise UserError(f"{folder}: no .png, .jpg or .webp image there")
    listed: dict[str, str] = {}
    table = root / "captions.csv"
    if table.is_file():
        rows = csv.DictReader(io.StringIO(read_text(table), newline=""))
        columns = rows.fieldnames or []
        if not {"file", "caption"} <= set(columns):
            raise UserError(f"{table}, line 1: the columns must be file,caption, not {','.join(columns)}")
        listed = {row["file"]: row["caption"] for row in rows}
    captions = []
    for file in files:
        beside = file.with_suffix(".txt")
        if file.name not in listed and not beside.is_file():
            raise UserError(f"{file}: no caption; write it to {beside.name} or to captions.csv (file,caption)")
        captions.append(listed[file.name] if file.name in listed else read_text(beside).strip())
    return captions, files


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
class Shot:
    """One image of a folder: its file, and the prompt and seed that made it."""

    file: str
    prompt: str
    split: str
    label: str
    seed: int
    sha256: str


class Images(Sequence[Shot]):
    """A folder of images and its index.jsonl, one line an image; a line is written after its image.

    Read from a folder they are in the order of their files, whatever the order in which they were made.
    """

    def __init__(self, folder: Path, shots: Sequence[Shot] | None = None) -> None:
        self.folder = folder
        self._shots = list(shots) if shots is not None else sorted(self._read(), key=lambda shot: shot.file)

    def _read(self) -> Iterator[Shot]:
        index = self.folder / "index.jsonl"
        if index.is_file():
            for line in index.read_text(encoding="utf-8").split("\n"):
                with suppress(ValueError):  # of a line that a killed process did not finish
                    yield Shot(**json.loads(line))

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

    def key(self) -> str:
        """A hash of the images' bytes, in order."""
        return hashlib.sha256("".join(shot.sha256 for shot in self._shots).encode()).hexdigest()

    def intact(self, shot: Shot) -> bool:
        """Whether the file is there and is the one that was written."""
        path = self.folder / shot.file
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == shot.sha256

    def add(self, shots: Sequence[Shot]) -> None:
        """Append to the index; the images must be there."""
        with (self.folder / "index.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(_line(shot) for shot in shots)
        self._shots.extend(shots)

    def write(self) -> None:
        """Write the index anew, of these images alone."""
        write_text(self.folder / "index.jsonl", "".join(_line(shot) for shot in self._shots))


def _line(shot: Shot) -> str:
    return json.dumps(asdict(shot), ensure_ascii=False) + "\n"
