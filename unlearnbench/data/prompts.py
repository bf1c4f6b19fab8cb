"""Prompts, their seeds, and the files that hold them: tables with a column `prompt`, or text with one prompt a line."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from unlearnbench.config.errors import UserError, suggest
from unlearnbench.config.paths import find_file
from unlearnbench.data.table_reader import Columns, Row, read_table

RETAIN_SPLITS = ("near", "far", "generic")
FORGET_SPLITS = ("forget", "paraphrase", "implicit")
SPLITS = (*FORGET_SPLITS, *RETAIN_SPLITS)
USES = ("train", "measure")
LARGEST_SEED = 2**63 - 1
FIELD_COLUMNS = (  # of published lists and this package's, which metrics and concepts may read, and the index that pandas writes
    "case_number", "sd_model", "sd_guidance_scale", "evaluation_guidance", "guidance", "guidance_scale", "sd_image_width",
    "sd_image_height", "categories", "hard", "nudity_percentage", "inappropriate_percentage", "q16_percentage",
    "sd_safety_percentage", "prompt_toxicity", "prompt_perspective_score", "lang", "user", "tag", "include", "exclude",
    "kind", "concept", "length", "style", "object", "index", "unnamed: 0", "unnamed: 0.1",
)  # fmt: skip
COLUMNS = Columns(
    required=("prompt",),
    optional=("split", "use", "label", "seed"),
    aliases={"seed": ("evaluation_seed", "sd_seed")},
    ignored=frozenset(FIELD_COLUMNS),
    text=("prompt",),
    others=True,
)
READ = (*COLUMNS.required, *COLUMNS.optional)


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        text: the prompt itself.
        split: forget, paraphrase, implicit, near, far or generic; "forget: church" if several concepts are forgotten.
        use: "train", "measure" or "" for both.
        label: what an image of it shows, for classifiers.
        seed: its own seed, if it has one; see `image_seed`.
        columns: the other cells of its row that are not empty, by the names of their columns; the index of images holds them.
    """

    text: str
    split: str = ""
    use: str = ""
    label: str = ""
    seed: int | None = None
    columns: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    @property
    def base(self) -> str:
        """The split without the name of a concept: "forget" for "forget: church"."""
        return self.split.partition(":")[0]

    @property
    def case_number(self) -> int | None:
        """The row's number in the files of ESD and its successors, by which they name images; None if it has none."""
        text = re.sub(r"\.0+$", "", dict(self.columns).get("case_number", ""))
        return int(text) if text.isdecimal() else None


def read_prompts(name: str, split: str = "") -> list[Prompt]:
    """Read prompts from a table with a `prompt` (and optional split, use, label, seed), or from text with one a line.

    Args:
        name: a path, or the name of a list shipped in conf/.
        split: the split of rows without one.

    Raises:
        UserError: a missing file or column, a wrong encoding (with its line), or no prompt.
    """
    path = find_file(name)
    stat = path.stat()
    return list(_read_prompts(path, path.resolve(), split, stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=64)
def _read_prompts(path: Path, resolved: Path, split: str, changed: int, size: int) -> tuple[Prompt, ...]:
    """The prompts of a file, remembered as long as it does not change: a run reads each list some twenty times."""
    prompts = tuple(_prompt(row, split) for row in read_table(path, COLUMNS))
    if not prompts:
        raise UserError(f"{path}: no prompt in it")
    return prompts


def _prompt(row: Row, split: str) -> Prompt:
    text, own, use, label = (str(row.cells.get(column, "")) for column in ("prompt", "split", "use", "label"))
    if not text:
        raise UserError(f"{row.where}: the prompt is empty")
    for column, cell, choices in (("split", own, SPLITS), ("use", use, USES)):
        if cell and cell not in choices:
            raise UserError(f"{row.where}: {column} {cell!r}; {suggest(cell, choices)}")
    others = kept_columns({name: cell for name, cell in row.cells.items() if name not in READ})
    return Prompt(text, own or split, use, label, read_seed(row.cells.get("seed", ""), row.where), others)


def kept_columns(cells: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What the index of images holds of a row's other columns: all single values but the numbers of rows by pandas."""
    values = {name: cell for name, cell in cells.items() if isinstance(cell, str | int | float) and cell != ""}
    return tuple((name, str(cell)) for name, cell in values.items() if name != "index" and not name.startswith("unnamed: "))


def read_seed(cell: Any, where: str) -> int | None:
    """The seed that a row gives its prompt; None for an empty cell. A whole number may be written with a point: 1949.0.

    Raises:
        UserError: it is not a whole number, or too large for a generator.
    """
    text = re.sub(r"\.0+$", "", str(cell))
    if text and not text.isdecimal():
        raise UserError(f"{where}: seed {text!r} is not a whole number")
    if len(text) > len(str(LARGEST_SEED)) or int(text or 0) > LARGEST_SEED:
        raise UserError(f"{where}: seed {text} is above {LARGEST_SEED}")
    return int(text) if text else None


def image_seed(seed: int, prompt: Prompt, repeat: int) -> int:
    """The seed of one image, from the sampling seed, the prompt with its own seed, and the number of the image (`repeat`).

    - A prompt without a seed: a hash of (seed, repeat, text).
    - A prompt with its own seed: for seed 0 and repeat 0 that seed itself; otherwise a hash of (seed, repeat, text, own
      seed), so that rows of one text with different seeds have different images at every sampling seed and repeat.

    Noise is `torch.randn(shape, generator=torch.Generator().manual_seed(image_seed))` on the CPU, so that anyone can
    generate the image again with its seed in index.jsonl.
    """
    if prompt.seed is not None and repeat == 0 and seed == 0:
        return prompt.seed
    own = "" if prompt.seed is None else f"/{prompt.seed}"
    return int.from_bytes(hashlib.sha256(f"{seed}/{repeat}/{prompt.text}{own}".encode()).digest()[:4]) >> 1


def distinct_prompts(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The prompts without those whose images would be copies: the same text and seed on splits that are measured together.

    The retain splits are measured together; every other split stands alone. The first of equal prompts remains, with the
    first label among them.

    Examples:
        >>> [p.text for p in distinct_prompts([Prompt("a", "far"), Prompt("b", "far"), Prompt("a", "generic")])]
        ['a', 'b']
    """
    distinct: dict[tuple[str, str, int | None], Prompt] = {}
    for prompt in prompts:
        key = measured_split(prompt.split), prompt.text, prompt.seed
        first = distinct.setdefault(key, prompt)
        if prompt.label and not first.label:
            distinct[key] = replace(first, label=prompt.label)
    return list(distinct.values())


def measured_split(split: str) -> str:
    """The split with which images are measured together: "retain" for near, far and generic, else the split itself."""
    return "retain" if split.partition(":")[0] in RETAIN_SPLITS else split
