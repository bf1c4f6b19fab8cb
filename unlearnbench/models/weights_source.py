"""Where published weights are: a file, a folder, or a repository of the hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from unlearnbench.config.errors import UserError
from unlearnbench.config.paths import at_home, is_hub_id
from unlearnbench.models.checkpoint_files import PICKLES
from unlearnbench.models.checkpoint_parts import INDEX, damage, pickle_repair, read_index
from unlearnbench.storage.downloads import fetch
from unlearnbench.storage.hub import HubDownload, HubRepository
from unlearnbench.storage.pickles import is_pickle

SHARD = re.compile(r"-(\d+)-of-(\d+)\.safetensors$")
VARIANTS = ("fp16", "bf16", "ema", "non_ema")
VARIANT = re.compile(rf"\.(?:{'|'.join(VARIANTS)})\.safetensors$")
PART = re.compile(r"unet|transformer|text_encoder|vae")
SETTINGS = (".json", ".txt", ".model")


@dataclass(frozen=True)
class WeightsSource:
    """Published weights.

    Attributes:
        weights: a file, a folder, or a hub id.
        revision: the hub's branch, tag or commit.
        subfolder: a folder or a file in the folder or repository.
    """

    weights: str
    revision: str | None = None
    subfolder: str | None = None

    def path(self) -> Path | None:
        """The file or folder on this machine, in the hub's cache if it is whole there; None if there is none."""
        if not self.is_on_hub:
            own = self._root / (self.subfolder or "")
            return own if own.exists() else None
        snapshot = self._snapshot()
        path = None if snapshot is None else snapshot / (self.subfolder or "")
        return path if path is not None and _is_complete(path) else None

    @property
    def is_on_hub(self) -> bool:
        """Whether the weights are a repository of the hub, and no path of this machine."""
        is_path = self.weights.startswith((".", "/", "~")) or Path(self.weights).suffix in (*PICKLES, ".safetensors")
        return not self._root.exists() and not is_path and is_hub_id(self.weights)

    def problem(self) -> str | None:
        """Why the weights cannot be read, without the setting's name; None if they can, or if the hub has to be asked."""
        path = self.path()
        if path is None:
            inside = f", {self.subfolder} in it" if self.subfolder and self._root.exists() else ""
            return None if self.is_on_hub else f"no such file or folder{inside}, and not a hub id"
        try:
            files = [] if (path / INDEX).is_file() else weight_files(path)
        except UserError as error:
            return str(error)
        return next((problem for file in files if (problem := file_problem(file))), None)

    def download(self) -> HubDownload | None:
        """What is to be downloaded from the hub; None if nothing."""
        if not self.is_on_hub or self.path() is not None:
            return None
        repository, repair = HubRepository(self.weights, self.revision), "set algo.weights to a file or a folder"
        choose = partial(files_to_fetch, inside=self.subfolder or "")
        return HubDownload(f"weights {self.weights}", "not in the hub's cache", repair, repository, choose)

    def fetch(self) -> Path:
        """The file or folder on this machine, after a download where it is necessary.

        Raises:
            UserError: the weights are nowhere, or the download failed.
        """
        if download := self.download():
            fetch([download])
        if (path := self.path()) is None:
            raise UserError(f"algo.weights={self.weights}: {self.problem()}")
        return path

    @property
    def _root(self) -> Path:
        return Path(at_home(self.weights))

    def _snapshot(self) -> Path | None:
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(self.weights, revision=self.revision, local_files_only=True))
        except Exception:  # not in the cache; each version of the hub's client raises others
            return None


def files_to_fetch(names: Iterable[str], inside: str) -> list[str]:
    """The files of a repository that a run needs, sorted: one file; a folder's own files; or those of a pipeline's parts.

    Variants, such as fp16, are left out where there is a file without one.

    Args:
        names: of all files of the repository.
        inside: the folder or file in it, or "".

    Raises:
        UserError: there are no weights, or several.
    """
    names = sorted(names)
    if inside.endswith(".safetensors") and inside in names:
        return [inside]
    start = f"{inside.rstrip('/')}/" if inside else ""
    below = {name: name.removeprefix(start) for name in names if name.startswith(start)}
    if f"{start}{INDEX}" in names:
        parts = {name: rest for name, rest in below.items() if rest.count("/") == 1}
        weights = [name for name, rest in parts.items() if PART.match(rest) and rest.endswith(".safetensors")]
        settings = [f"{start}{INDEX}", *(name for name in parts if name.endswith(SETTINGS))]
    else:
        own = [name for name, rest in below.items() if "/" not in rest]
        weights = [name for name in own if name.endswith(".safetensors")]
        settings = [name for name in own if name.endswith(SETTINGS)]
    plain = {name.rpartition("/")[0] for name in weights if not VARIANT.search(name)}
    weights = [name for name in weights if not VARIANT.search(name) or name.rpartition("/")[0] not in plain]
    place = f"{inside} of the hub's repository" if inside else "the hub's repository"
    if not weights:
        raise UserError(f"{place} has no .safetensors file there; set algo.subfolder, or convert its pickle")
    if f"{start}{INDEX}" not in names and (problem := _several_problem(place, [Path(name) for name in weights])):
        raise UserError(problem)
    return [*settings, *weights]


def _is_complete(path: Path) -> bool:
    """Whether a file, or the weights of a folder, are whole in the hub's cache."""
    if path.is_file():
        return True
    if (path / INDEX).is_file():
        parts = [path / name for name, saved in read_index(path).items() if PART.match(name) and saved != [None, None]]
    else:
        parts = [path]
    return all((files := _plain_files(part)) and not missing_shards(files) for part in parts)


def _plain_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, without variants where there is a file without one."""
    files = sorted(folder.glob("*.safetensors"))
    return [file for file in files if not VARIANT.search(file.name)] or files


def missing_shards(files: Sequence[Path]) -> list[str]:
    """The names of the shards that are not among these files, by the number that each shard's name says there are."""
    names = {file.name for file in files}
    expected = {
        f"{name[: match.start()]}-{number:0{len(match[1])}d}-of-{match[2]}.safetensors"
        for name in names
        if (match := SHARD.search(name))
        for number in range(1, int(match[2]) + 1)
    }
    return sorted(expected - names)


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a file or of a folder of one part: one, or its shards.

    Raises:
        UserError: the folder has none, several that are no shards of one, or not all shards.
    """
    if path.is_file():
        return [path]
    if (path / "run.json").is_file():
        return [path / "weights.safetensors"]
    plain = _plain_files(path)
    if not plain:
        pickles = sorted(file for file in path.iterdir() if file.suffix in PICKLES)
        if pickles:
            raise UserError(pickle_problem(pickles[0]))
        raise UserError(f"{path} holds no {INDEX} and no .safetensors file")
    if problem := _several_problem(path, plain):
        raise UserError(problem)
    if missing := missing_shards(plain):
        raise UserError(f"{path}: {_listed(missing)} missing; fetch the whole folder again")
    return plain


def _several_problem(place: Path | str, files: Sequence[Path]) -> str | None:
    """Why a folder with these files of weights is ambiguous; None if they are one, or shards of one."""
    if len(files) <= 1 or all(SHARD.search(file.name) for file in files):
        return None
    return f"{place} holds several files; choose one with algo.subfolder: {_listed(file.name for file in files)}"


def file_problem(path: Path) -> str | None:
    """Why a file is not whole safetensors, with the repair; None if it is. Only its header is read."""
    if not path.is_file():
        return f"{path}: no such file"
    if is_pickle(path):
        return pickle_problem(path)
    return damage(path)


def pickle_problem(path: Path) -> str:
    """The refusal of a pickle, with the command that converts it."""
    return f"{path.name} is a pickle, which no run opens; {pickle_repair(path)}"


def _listed(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
