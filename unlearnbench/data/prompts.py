"""Prompts, their seeds, and the files that hold them: csv or jsonl with a column `prompt`, or text with one prompt a line."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearnbench.config.errors import UserError, suggest
from unlearnbench.config.paths import find_file

RETAIN_SPLITS = ("near", "far", "generic")
SPLITS = ("forget", "paraphrase", *RETAIN_SPLITS)
USES = ("train", "measure")
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        text: the prompt itself.
        split: forget, paraphrase, near, far or generic; "forget: church" if several concepts are forgotten.
        use: "train", "measure" or "" for both.
        label: what an image of it shows, for classifiers.
        seed: the seed of its first image, if it has one.
    """

    text: str
    split: str = ""
    use: str = ""
    label: str = ""
    seed: int | None = None

    @property
    def base(self) -> str:
        """The split without the name of a concept: "forget" for "forget: church"."""
        return self.split.partition(":")[0]


def read_text(path: Path) -> str:
    """A file's text.

    Raises:
        UserError: it cannot be read, or is not UTF-8; the message names the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8; convert it with `iconv -t utf-8`") from error


def read_csv(path: Path, *columns: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a csv with a header, each with the number of its last line.

    Raises:
        UserError: a column is missing, a row has more cells than the header, or the file is not a csv.
    """
    rows: Any = csv.DictReader(io.StringIO(read_text(path), newline=""))
    header = rows.fieldnames or []
    for column in columns:
        if column not in header:
            raise UserError(f"{path}, line 1: no column {column!r}; the columns are {', '.join(header) or 'none'}")
    try:
        for row in rows:
            if any(row.pop(None, [])):
                raise UserError(f"{path}, line {rows.line_num}: more cells than columns; quote a text with commas")
            yield rows.line_num, {name: value or "" for name, value in row.items()}
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: {error}") from error


def read_jsonl(path: Path, *columns: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a jsonl file, each with the number of its line.

    Raises:
        UserError: a line is not a JSON object, or a column is missing in it.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: no JSON ({error.msg})") from error
            if not isinstance(row, dict) or (missing := [column for column in columns if not isinstance(row.get(column), str)]):
                what = f"no text {missing[0]!r}" if isinstance(row, dict) else "not an object"
                raise UserError(f"{path}, line {number}: {what}")
            yield number, row


def read_prompts(name: str, split: str = "") -> list[Prompt]:
    """Read prompts from csv or jsonl with a `prompt` (and optional split, use, label, seed), or from text with one a line.

    Args:
        name: a path, or the name of a list shipped in conf/.
        split: the split of rows without one.

    Raises:
        UserError: a missing file or column, a wrong encoding (with its line), or no prompt.
    """
    path = find_file(name)
    if path.suffix not in (".csv", ".jsonl"):
        prompts = [Prompt(line.strip(), split) for line in read_text(path).splitlines() if line.strip()]
    else:
        prompts = []
        for line, row in (read_csv if path.suffix == ".csv" else read_jsonl)(path, "prompt"):
            if not row["prompt"].strip():
                raise UserError(f"{path}, line {line}: the prompt is empty")
            text, own, use, label, seed = (_cell(row, column) for column in ("prompt", "split", "use", "label", "seed"))
            for column, cell, choices in (("split", own, SPLITS), ("use", use, USES)):
                if cell and cell not in choices:
                    raise UserError(f"{path}, line {line}: {column} {cell!r}; {suggest(cell, choices)}")
            prompts.append(Prompt(text.strip(), own or split, use, label, _seed(seed.strip(), f"{path}, line {line}")))
    if not prompts:
        raise UserError(f"{path}: no prompt in it")
    return prompts


def _cell(row: Mapping[str, Any], column: str) -> str:
    """A row's text in a column, "" if it has none."""
    value = row.get(column)
    return "" if value is None else str(value)


def _seed(text: str, where: str) -> int | None:
    """The seed that a row gives its prompt.

    Raises:
        UserError: it is not a whole number, or too large for a generator.
    """
    if text and not text.isdecimal():
        raise UserError(f"{where}: seed {text!r} is not a whole number")
    if len(text) > len(str(LARGEST_SEED)) or int(text or 0) > LARGEST_SEED:
        raise UserError(f"{where}: seed {text} is above {LARGEST_SEED}")
    return int(text) if text else None


def image_seed(seed: int, prompt: Prompt, repeat: int) -> int:
    """The seed of one image: a hash of (seed, prompt, repeat); for seed 0 and repeat 0 the prompt's own seed, if it has one.

    Noise is `torch.randn(shape, generator=torch.Generator().manual_seed(image_seed))` on the CPU, so that anyone can
    generate the image again with its seed in index.jsonl.
    """
    if prompt.seed is not None and repeat == 0 and seed == 0:
        return prompt.seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{repeat}/{prompt.text}".encode()).digest()[:4]) >> 1
