"""What is to be forgotten and what kept, and the folders of images that a model answered."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from unlearnbench.bounds import at_least
from unlearnbench.config import UserError, at_home
from unlearnbench.files import write_text
from unlearnbench.prompts import RETAIN_SPLITS as RETAIN_SPLITS
from unlearnbench.prompts import Prompt as Prompt
from unlearnbench.prompts import read_csv, read_text
from unlearnbench.prompts import read_prompts as read_prompts
from unlearnbench.sets import load_prompts

if TYPE_CHECKING:
    import torch


@dataclass
class Concept:
    """What is to be forgotten.

    Attributes:
        name: a word for folders and tables.
        words: the words that name the concept; a retain prompt that has one is left out.
        prompts: a csv, a text file or a set of conf/prompts: prompts that ask for it (in a csv, near ones and paraphrases too).
        anchor: what to paint instead: phrase to phrase, applied to forget prompts, longest first.
        guide: the concept as a bare phrase, for methods that edit one.
        anchors: per domain, the anchor that `anchor` takes unless given.
        detector: per domain, the detector that decides whether a picture shows the concept.
        explicit: blur its images in reports.
        paraphrases: further lists or sets of prompts that ask for it, measured as paraphrases and never trained on.
    """

    name: str
    words: list[str]
    prompts: str
    anchor: dict[str, str]
    guide: str
    detector: dict[str, Any]
    anchors: dict[str, Any] = field(default_factory=dict)
    explicit: bool = False
    paraphrases: list[str] = field(default_factory=list)

    def load(self) -> list[Prompt]:
        """All its prompts; those of a plain list are forget prompts, both to train and to measure."""
        return [*load_prompts(self.prompts, "forget"), *self.more()]

    def more(self) -> list[Prompt]:
        """The prompts of its further lists."""
        return [replace(p, use=p.use or "measure") for name in self.paraphrases for p in load_prompts(name, "paraphrase")]

    def sources(self) -> list[str]:
        """The names of all lists and sets that its prompts come from."""
        return [self.prompts, *self.paraphrases]

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

    def unspoken(self, prompts: Iterable[str]) -> str | None:
        """What is wrong with the first prompt that says none of its phrases, with the repair; None if each says one."""
        for prompt in prompts:
            if not says(" ".join(prompt.split()), self.phrases()):
                return self.missed(prompt)
        return None

    def missed(self, prompt: str) -> str:
        """What is wrong with a forget prompt that says none of its phrases, with the repair."""
        return f"forget prompt {prompt!r} says none of {', '.join(self.words)}; reword it, or drop it"


@dataclass
class Derived(Concept):
    """A concept that finds its words, prompts, anchors and detector from settings of its own, in `__post_init__`."""

    words: list[str] = field(init=False)
    prompts: str = field(init=False)
    anchor: dict[str, str] = field(init=False)
    guide: str = field(init=False)
    detector: dict[str, Any] = field(init=False)
    anchors: dict[str, Any] = field(init=False)


def says(prompt: str, words: Iterable[str]) -> bool:
    """Whether one of the words stands in the prompt, whole."""
    return any(re.search(rf"\b{re.escape(word)}\b", prompt, re.IGNORECASE) for word in words)


@dataclass
class Retain:
    """What is to be kept.

    Attributes:
        prompts: a csv, a text file or a set of conf/prompts: prompts far from any concept, and generic ones; near ones come
            with the concept.
        splits: which of near, far, generic count.
        images: a folder of real images for FID, a set of conf/prompts that has images, or null; Pictoworld draws its own.
    """

    prompts: str
    splits: list[str] = field(default_factory=lambda: list(RETAIN_SPLITS))
    images: str | None = None

    def __post_init__(self) -> None:
        for split in self.splits:
            if split not in RETAIN_SPLITS:
                raise ValueError(f"splits: {split!r} is none of {', '.join(RETAIN_SPLITS)}")
        if self.images is not None:
            self.images = at_home(self.images)

    def load(self, concept: Concept) -> list[Prompt]:
        """The retain prompts: the concept's near ones and those of the list, less any that says the concept's words."""
        near = [p for p in concept.load() if p.split == "near"]
        listed = [replace(p, split=p.split or "far") for p in load_prompts(self.prompts)]
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
        processes: how many processes share each batch: every one takes its part, and gradients are averaged.
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
        UserError: no such folder, no image, an image without a caption, or captions that cannot be read.
    """
    root = Path(folder)
    files = image_files(root)
    listed: dict[str, str] = {}
    table = root / "captions.csv"
    if table.is_file():
        listed = {row["file"]: row["caption"] for _, row in read_csv(table, "file", "caption")}
    captions = []
    for file in files:
        beside = file.with_suffix(".txt")
        if file.name not in listed and not beside.is_file():
            raise UserError(f"{file}: no caption; write it to {beside.name} or to captions.csv (file,caption)")
        captions.append(listed[file.name] if file.name in listed else read_text(beside).strip())
    return captions, files


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

    def batches(self, size: int = 64) -> Iterator[torch.Tensor]:
        """The same in parts, so that no more than one need be held at once."""
        for start in range(0, max(len(self), 1), size):
            yield Images(self.folder, self._shots[start : start + size]).pixels()

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
