"""Prompt sets of the literature: rows of a data set of the hub or GitHub at a pinned commit, downloaded when a run needs them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock

from unlearnbench.config.build import build
from unlearnbench.config.errors import UserError, suggest
from unlearnbench.config.paths import CONF, at_home, choices, exists, read_yaml
from unlearnbench.console import progress_bar
from unlearnbench.data.image_reader import image_suffix
from unlearnbench.data.prompts import Prompt, kept_columns, read_prompts, read_seed
from unlearnbench.data.table_reader import Columns, Row, read_lines, read_table
from unlearnbench.storage.atomic import atomic_path
from unlearnbench.storage.downloads import Download, fetch
from unlearnbench.storage.github import GitHubFiles
from unlearnbench.storage.hub import HubDownload, HubRepository, choose_by_patterns, quiet_hub

GITHUB = "github:"
SERIES = re.compile(r"-\d{5}-of-(?P<count>\d{5})")  # such as train-00000-of-00010


class NotDownloaded(UserError):
    """The files of a data set are not on this machine."""


@dataclass
class PromptSet:
    """The rows of a data set that are prompts, as a yaml of conf/prompts or of the user describes them.

    Attributes:
        path: a data set of the hub, a folder, or github:OWNER/NAME.
        revision: its commit, tag or branch on the hub; on GitHub its whole commit.
        files: glob patterns of its files: .csv, .tsv, .jsonl, .json or .parquet; on GitHub their paths.
        prompt: the column of the prompts.
        text: its files are text with one prompt a line, whatever their suffix.
        label: the column of what an image of the prompt shows, or null.
        seed: the column of each prompt's own seed, or null.
        image: the column of each prompt's image (parquet), or null.
        split: the split of its prompts in a retain set.
        has: text that columns must contain, such as {categories: sexual}.
        least: the minimum of columns, such as {hard: 1}.
        train: how many of the first prompts train; all others are measured.
    """

    path: str
    files: list[str]
    revision: str = "main"
    prompt: str = "prompt"
    text: bool = False
    label: str | None = None
    seed: str | None = None
    image: str | None = None
    split: str = "generic"
    has: dict[str, str] = field(default_factory=dict)
    least: dict[str, float] = field(default_factory=dict)
    train: int = 0

    def load(self, split: str = "") -> list[Prompt]:
        """The prompts, without repetition, in order.

        Raises:
            UserError: the download fails, a column is missing, or no row matches.
        """
        rows: dict[tuple[str, int | None], tuple[str, tuple[tuple[str, str], ...]]] = {}
        own = [name for name in (self.prompt, self.seed, self.label) if name]
        for where, row in self._rows([*own, *self.has, *self.least], others=True):
            if all(text.lower() in str(row[name]).lower() for name, text in self.has.items()) and all(
                _number(row[name], where, name) >= least for name, least in self.least.items()
            ):
                text = " ".join(str(row[self.prompt] or "").split())
                seed = read_seed(row[self.seed], where) if self.seed else None
                if text:
                    label = str(row[self.label]) if self.label else ""
                    others = {name: cell for name, cell in row.items() if name not in own}
                    rows.setdefault((text, seed), (label, kept_columns(others)))
        if not rows:
            raise UserError(f"prompt set {self.path}: no row has {self.has or ''} and at least {self.least or ''}")
        split = split or self.split
        return [
            Prompt(text, split, "train" if i < self.train else "measure", label, seed, others)
            for i, ((text, seed), (label, others)) in enumerate(rows.items())
        ]

    def unpack(self, into: Path) -> Path:
        """A folder below `into` with all images of the set, written once.

        Raises:
            UserError: the set has no images, or the download fails.
        """
        self.has_images()
        assert self.image is not None
        files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self._files()]
        key = json.dumps([self.path, self.commit(), self.image, files])
        folder = into / "sets" / hashlib.sha256(key.encode()).hexdigest()[:16]
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(folder) + ".lock"):
            if folder.is_dir():
                return folder
            with atomic_path(folder) as temporary, progress_bar(f"unpack {self.path}", sum(1 for _ in self._rows([]))) as shown:
                temporary.mkdir()
                for i, (where, row) in enumerate(self._rows([self.image])):
                    (temporary / f"{i:06d}.{_image_suffix(row[self.image], where)}").write_bytes(row[self.image]["bytes"])
                    shown.advance()
        return folder

    def has_images(self) -> None:
        """Check that the set has images.

        Raises:
            UserError: it has none.
        """
        if self.image is None:
            raise UserError(f"{self.path}: this prompt set has no images; give a folder or a set that has images")

    def is_local(self) -> bool:
        """Whether its files are on this machine, so that nothing is downloaded."""
        try:
            download(self.path, self.revision, tuple(self.files), False)
        except NotDownloaded:
            return False
        return True

    def download(self) -> Download | None:
        """What is to be downloaded of it; None if its files are on this machine."""
        if self.is_local():
            return None
        if self.path.startswith(GITHUB):
            return github_download(self.path, self.revision, tuple(self.files))
        return _hub_download(self.path, self.revision, tuple(self.files))

    def folder(self) -> Path:
        """The folder of its files, which are downloaded if necessary."""
        return download(self.path, self.revision, tuple(self.files))

    def commit(self) -> str:
        """The downloaded commit, even if `revision` is a branch or tag; "local" for a folder."""
        return "local" if Path(at_home(self.path)).is_dir() else self.folder().name

    def _files(self) -> list[Path]:
        folder = self.folder()
        paths = sorted({path for pattern in self.files for path in folder.glob(pattern)})
        if not paths:
            raise UserError(f"prompt set {self.path}: no {' or '.join(self.files)} in {folder}")
        return paths

    def _rows(self, columns: Sequence[str], others: bool = False) -> Iterator[Row]:
        """The cells of these columns row by row, with `others` those of all columns."""
        for path in self._files():
            if self.text:
                yield from read_lines(path, self.prompt)
            else:
                yield from read_table(path, Columns(tuple(dict.fromkeys(columns)), others=others))


def _number(cell: Any, where: str, column: str) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {column} {cell!r} is not a number") from error


def _image_suffix(cell: Any, where: str) -> str:
    """The suffix for the file of an image."""
    try:
        return image_suffix(cell["bytes"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where}: no readable image ({error})") from error


@cache
def download(path: str, revision: str, patterns: tuple[str, ...], may_fetch: bool = True) -> Path:
    """The folder of a data set's files: a local folder, or the hub's cache, to which they are downloaded if necessary.

    Raises:
        UserError: the folder does not exist or the download fails; the message gives the repair.
        NotDownloaded: they are not on this machine, and `may_fetch` is False.
    """
    if path.startswith(GITHUB):
        files = github_download(path, revision, patterns)
        if not files.is_local():
            if not may_fetch:
                raise NotDownloaded(f"prompt set {path}: not on this machine")
            fetch([files])
        return files.folder
    if Path(path).is_dir() or path.startswith((".", "/", "~")):
        if not (folder := Path(at_home(path))).is_dir():
            raise UserError(f"prompt set {path}: no such folder")
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    selection: dict[str, Any] = {"repo_type": "dataset", "revision": revision, "allow_patterns": list(patterns)}
    for tried in (False, True):
        try:
            with quiet_hub():
                folder = Path(snapshot_download(path, local_files_only=True, **selection))
            if _has_all(folder, patterns):
                return folder
        except LocalEntryNotFoundError:
            pass
        except ValueError as error:
            raise UserError(f"prompt set {path}: not a valid name of a data set on the hub ({error})") from error
        if not may_fetch or tried:
            break
        fetch([_hub_download(path, revision, patterns)])
    raise NotDownloaded(f"prompt set {path}: not in the hub's cache")


def github_download(path: str, revision: str, files: tuple[str, ...]) -> GitHubFiles:
    """The files of a repository of GitHub.

    Raises:
        UserError: the name, or the revision, which must be a whole commit, is wrong.
    """
    name = path.removeprefix(GITHUB)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"prompt set {path}: write github:OWNER/NAME")
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise UserError(f"prompt set {path}: revision {revision!r} is no whole commit; on GitHub give all 40 digits")
    return GitHubFiles(name, revision, files)


def _hub_download(path: str, revision: str, patterns: tuple[str, ...]) -> HubDownload:
    repair = f"fetch it once online: `hf download {path} --repo-type dataset --revision {revision}`"
    repository = HubRepository(path, revision, "dataset")
    return HubDownload(f"prompt set {path}", "not in the hub's cache", repair, repository, _choose_readable(patterns))


def _choose_readable(patterns: tuple[str, ...]) -> Callable[[Collection[str]], list[str]]:
    """A choice of the files that match the patterns, which refuses them where no package can read them."""

    def choose(names: Collection[str]) -> list[str]:
        if find_spec("pyarrow") is None and any(pattern.endswith(".parquet") for pattern in patterns):
            raise UserError("its files are parquet, which pyarrow reads: pip install 'unlearnbench[datasets]'")
        return choose_by_patterns(*patterns)(names)

    return choose


def _has_all(folder: Path, patterns: Sequence[str]) -> bool:
    """Whether a folder has files of every pattern, and of each numbered series all those that a pattern matches."""
    for pattern in patterns:
        files = sorted(folder.glob(pattern))
        if not files:
            return False
        for name, match in ((file.name, match) for file in files if (match := SERIES.search(file.name))):
            for number in range(int(match["count"])):
                other = f"{name[: match.start()]}-{number:05d}-of-{match['count']}"
                is_asked = fnmatch(f"{other}{name[match.end() :]}", pattern.rpartition("/")[2])
                if is_asked and not any(file.name.startswith(other) for file in files):
                    return False
    return True


def sets_to_download(names: Sequence[str | None]) -> list[PromptSet]:
    """The prompt sets among these names whose files are not on this machine, each once."""
    sets = [named_set for name in names if (named_set := prompt_set(name)) is not None]
    return list({(s.path, s.revision): s for s in sets if not s.is_local()}.values())


def prompt_set(name: str | None) -> PromptSet | None:
    """The prompt set of a name: a yaml of conf/prompts or a path to one; "name@revision" takes another revision.

    None if the name is not that of a set, for example a csv.

    Raises:
        UserError: the yaml is missing or does not describe a set.
    """
    if name is None:
        return None
    plain, _, revision = name.partition("@")
    shipped = CONF / "prompts" / f"{plain}.yaml"
    is_yaml = Path(plain).suffix.lower() in (".yaml", ".yml")
    path = Path(at_home(plain)) if is_yaml else shipped
    if not exists(path) or path.is_dir():
        if is_yaml:
            raise UserError(f"{plain}: no such file")
        return None
    return build(read_yaml(path) | ({"revision": revision} if revision else {}), PromptSet, str(path))


def load_prompts(name: str, split: str = "") -> list[Prompt]:
    """The prompts of a csv, of a text file or of a prompt set.

    Raises:
        UserError: no file or set has this name, or it cannot be read.
    """
    if (named_set := prompt_set(name)) is not None:
        return named_set.load(split)
    if not (Path(name).suffix or exists(Path(at_home(name)))):
        raise UserError(f"{name}: no such file, and no such prompt set; {suggest(name, choices('prompts'))}")
    return read_prompts(name, split)


def prompt_set_versions(names: Sequence[str | None]) -> dict[str, dict[str, str]]:
    """For run.json: path, revision and commit of each name that is a prompt set."""
    sets = {name: named_set for name in names if name is not None and (named_set := prompt_set(name)) is not None}
    return {name: {"path": s.path, "revision": s.revision, "commit": s.commit()} for name, s in sets.items()}
