"""Prompt sets of the literature: rows of a data set on the hub, at a pinned revision, fetched when a run asks for them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock
from PIL import Image

from unlearnbench.config.build import build
from unlearnbench.config.errors import UserError, suggest
from unlearnbench.config.paths import CONF, at_home, choices, read_yaml
from unlearnbench.console import console, progress_bar
from unlearnbench.data.prompts import Prompt, read_csv, read_prompts
from unlearnbench.storage.atomic import atomic_path


@dataclass
class PromptSet:
    """Which rows of which files are prompts; conf/prompts has them, and a yaml of the user's may be another.

    Attributes:
        path: a data set of the hub, or a folder.
        revision: its commit, tag or branch on the hub.
        files: which of its files, as patterns: .csv or .parquet.
        prompt: the column of the prompts.
        seed: the column of each prompt's own seed, or null.
        image: the column of its image (parquet), or null.
        split: the split of the prompts where they are retained.
        has: what columns must contain, such as {categories: sexual}.
        least: how large columns must be, such as {hard: 1}.
        train: how many of the first prompts train; all others are measured.
        size: how much is fetched, for the message.
    """

    path: str
    files: list[str]
    revision: str = "main"
    prompt: str = "prompt"
    seed: str | None = None
    image: str | None = None
    split: str = "generic"
    has: dict[str, str] = field(default_factory=dict)
    least: dict[str, float] = field(default_factory=dict)
    train: int = 0
    size: str = ""

    def load(self, split: str = "") -> list[Prompt]:
        """Its prompts, without repetitions, in order.

        Raises:
            UserError: it cannot be fetched, lacks a column, or no row fits.
        """
        found: dict[tuple[str, int | None], None] = {}
        columns = [self.prompt, *([self.seed] if self.seed else []), *self.has, *self.least]
        for where, row in self._rows(columns):
            if all(text.lower() in str(row[name]).lower() for name, text in self.has.items()) and all(
                _number(row[name], where, name) >= least for name, least in self.least.items()
            ):
                text = " ".join(str(row[self.prompt] or "").split())
                seed = int(_number(row[self.seed], where, self.seed)) if self.seed and row[self.seed] not in ("", None) else None
                if text:
                    found[text, seed] = None
        if not found:
            raise UserError(f"prompt set {self.path}: no row has {self.has or ''} and at least {self.least or ''}")
        split = split or self.split
        return [Prompt(t, split, "train" if i < self.train else "measure", "", s) for i, (t, s) in enumerate(found)]

    def unpack(self, into: Path) -> Path:
        """A folder below `into` with all its images; made once.

        Raises:
            UserError: it has none, or cannot be fetched.
        """
        self.has_images()
        assert self.image is not None
        made_of = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self._files()]
        key = json.dumps([self.path, self.commit(), self.image, made_of])
        folder = into / "sets" / hashlib.sha256(key.encode()).hexdigest()[:16]
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(folder) + ".lock"):
            if folder.is_dir():
                return folder
            with atomic_path(folder) as made, progress_bar(f"unpack {self.path}", sum(1 for _ in self._rows([]))) as shown:
                made.mkdir()
                for i, (where, row) in enumerate(self._rows([self.image])):
                    (made / f"{i:06d}.{_kind(row[self.image], where)}").write_bytes(row[self.image]["bytes"])
                    shown.advance()
        return folder

    def has_images(self) -> None:
        """Fetch it.

        Raises:
            UserError: it has no images, or cannot be fetched.
        """
        if self.image is None:
            raise UserError(f"{self.path}: this prompt set has no images; name a folder, or a set that has some")
        self.folder()

    def folder(self) -> Path:
        """Where its files are; they are fetched if they are not there yet."""
        return fetched(self.path, self.revision, tuple(self.files), self.size)

    def commit(self) -> str:
        """The commit that was fetched, whatever `revision` says; "local" for a folder."""
        return "local" if Path(at_home(self.path)).is_dir() else self.folder().name

    def _files(self) -> list[Path]:
        folder = self.folder()
        paths = sorted({path for pattern in self.files for path in folder.glob(pattern)})
        if not paths:
            raise UserError(f"prompt set {self.path}: no {' or '.join(self.files)} in {folder}")
        return paths

    def _rows(self, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """The rows' cells of these columns, each with its place, for messages."""
        for path in self._files():
            if path.suffix == ".csv":
                yield from ((f"{path}, line {line}", row) for line, row in read_csv(path, *columns))
            else:
                yield from _parquet(path, columns)


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    if find_spec("pyarrow") is None:
        raise UserError(f"{path.name}: reading parquet needs pyarrow; pip install 'unlearnbench[datasets]'")
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as parquet ({error})") from error
    with file:
        for column in columns:
            if column not in file.schema_arrow.names:
                raise UserError(f"{path}: no column {column!r}; the columns are {', '.join(file.schema_arrow.names)}")
        row = 0
        for batch in file.iter_batches(256, columns=list(dict.fromkeys(columns))):
            for cells in batch.to_pylist():
                row += 1
                yield f"{path}, row {row}", cells


def _number(cell: Any, where: str, column: str) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {column} {cell!r} is not a number") from error


def _kind(cell: Any, where: str) -> str:
    """The ending of an image's file."""
    try:
        with Image.open(io.BytesIO(cell["bytes"])) as image:
            return {"JPEG": "jpg"}.get(str(image.format), str(image.format).lower())
    except (OSError, KeyError, TypeError) as error:
        raise UserError(f"{where}: no readable image ({error})") from error


@cache
def fetched(path: str, revision: str, patterns: tuple[str, ...], size: str) -> Path:
    """The folder with a data set's files: the user's, or that of the hub's cache, fetched if they are not there yet.

    Raises:
        UserError: it cannot be had; the text says how.
    """
    if Path(path).is_dir() or path.startswith((".", "/", "~")):
        if not (folder := Path(at_home(path))).is_dir():
            raise UserError(f"prompt set {path}: no such folder")
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    def get(local: bool) -> Path:
        wanted: dict[str, Any] = {"revision": revision, "allow_patterns": list(patterns)}
        return Path(snapshot_download(path, repo_type="dataset", local_files_only=local, **wanted))

    with _quiet_hub():
        try:
            return get(local=True)
        except LocalEntryNotFoundError:
            console.print(f"prompt set {path}: fetches {size or 'it'} from the hub", highlight=False)
        except ValueError as error:
            raise UserError(f"prompt set {path}: no data set of the hub has such a name ({error})") from error
        try:
            return get(local=False)
        except GatedRepoError as error:
            accept = f"accept its terms at https://huggingface.co/datasets/{path}, then `hf auth login`"
            raise UserError(f"prompt set {path}: the hub gives it to known users only; {accept}") from error
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise UserError(f"prompt set {path}: the hub has no such data set at {revision}") from error
        except (OSError, ValueError) as error:
            command = f"once online: `hf download {path} --repo-type dataset --revision {revision}`"
            raise UserError(f"prompt set {path}: neither in the hub's cache nor to be fetched; {command}") from error


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Without the hub's own warnings, of which one comes at each try to reach it."""
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def prompt_set(name: str | None) -> PromptSet | None:
    """The set that a name stands for: a yaml of conf/prompts, or a path to one; "name@revision" takes another revision.

    None where the name is no set: a list in a file, say.

    Raises:
        UserError: the yaml is missing or describes no set.
    """
    if name is None:
        return None
    plain, _, revision = name.partition("@")
    shipped = CONF / "prompts" / f"{plain}.yaml"
    path = Path(plain) if plain.endswith(".yaml") else shipped
    if not path.is_file():
        if plain.endswith(".yaml"):
            raise UserError(f"{plain}: no such file")
        return None
    return build(read_yaml(path) | ({"revision": revision} if revision else {}), PromptSet, str(path))


def load_prompts(name: str, split: str = "") -> list[Prompt]:
    """The prompts of a csv, of a text file or of a prompt set.

    Raises:
        UserError: there is none of this name, or it cannot be read.
    """
    if (known := prompt_set(name)) is not None:
        return known.load(split)
    if not (Path(name).suffix or Path(name).exists()):
        raise UserError(f"{name}: no such file, and no such prompt set; {suggest(name, choices('prompts'))}")
    return read_prompts(name, split)


def record(names: Sequence[str | None]) -> dict[str, dict[str, str]]:
    """For run.json: of each name that stands for a set, where it came from and at which commit."""
    sets = {name: known for name in names if name is not None and (known := prompt_set(name)) is not None}
    return {name: {"path": known.path, "revision": known.revision, "commit": known.commit()} for name, known in sets.items()}
