"""Where published weights are: a file, a folder, or a repository of the hub."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from unlearnbench.config.errors import UserError, first_line
from unlearnbench.config.paths import at_home, is_hub_id
from unlearnbench.models.checkpoint_files import PICKLES
from unlearnbench.models.checkpoint_parts import INDEX, damage, pickle_repair
from unlearnbench.storage.hub import HubDownload, HubRepository
from unlearnbench.storage.pickles import is_pickle

SHARD = re.compile(r"-\d+-of-\d+\.safetensors$")
VARIANTS = ("fp16", "bf16", "ema", "non_ema")
VARIANT = re.compile(rf"\.(?:{'|'.join(VARIANTS)})\.safetensors$")
PIPELINE_FILES = ("*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors")


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
        """The file or folder on this machine, the hub's cache included; None if there is none."""
        root = Path(at_home(self.weights))
        if not root.exists():
            snapshot = self._snapshot() if self.is_on_hub else None
            if snapshot is None:
                return None
            root = snapshot
        path = root / (self.subfolder or "")
        return path if path.exists() else None

    @property
    def is_on_hub(self) -> bool:
        """Whether the weights are a repository of the hub, and no path of this machine."""
        is_path = self.weights.startswith((".", "/", "~")) or Path(self.weights).suffix in (*PICKLES, ".safetensors")
        return not Path(at_home(self.weights)).exists() and not is_path and is_hub_id(self.weights)

    def problem(self) -> str | None:
        """Why the weights cannot be read, without the setting's name; None if no reason is known. Opens no weights."""
        path = self.path()
        if path is None or (self.is_on_hub and not self._is_complete(path)):
            return self._absence()
        try:
            files = [path / INDEX] if (path / INDEX).is_file() else weight_files(path)
        except UserError as error:
            return str(error)
        return next((problem for file in files if file.name != INDEX and (problem := file_problem(file))), None)

    def fetch(self) -> Path:
        """The file or folder on this machine, after a download where it is necessary.

        Raises:
            UserError: the weights are nowhere.
        """
        path = self.path()
        if path is not None and (not self.is_on_hub or self._is_complete(path)):
            return path
        if not self.is_on_hub:
            raise UserError(f"{self.weights}: {self._absence()}")
        try:
            return self._download()
        except Exception as error:  # each version of the hub's client raises others
            raise UserError(f"{self.weights}: {self._absence() or first_line(error)}") from error

    def _download(self) -> Path:
        """Download a file; or a folder's settings, which say whether it is a pipeline, and then its weights."""
        from huggingface_hub import snapshot_download

        inside = self.subfolder or ""
        if inside.endswith(".safetensors"):
            return Path(snapshot_download(self.weights, revision=self.revision, allow_patterns=[inside])) / inside
        start = f"{inside}/" if inside else ""
        folder = Path(snapshot_download(self.weights, revision=self.revision, allow_patterns=[f"{start}*.json"])) / inside
        names = PIPELINE_FILES if (folder / INDEX).is_file() else ("*.safetensors",)
        patterns, variants = [f"{start}{name}" for name in names], [f"*.{variant}.*" for variant in VARIANTS]
        snapshot_download(self.weights, revision=self.revision, allow_patterns=patterns, ignore_patterns=variants)
        if not self._is_complete(folder):
            snapshot_download(self.weights, revision=self.revision, allow_patterns=patterns)
        return folder

    def _snapshot(self) -> Path | None:
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(self.weights, revision=self.revision, local_files_only=True))
        except Exception:  # not in the cache; each version of the hub's client raises others
            return None

    def _is_complete(self, path: Path) -> bool:
        return path.is_file() or any(path.glob("*.safetensors")) or any(path.glob("*/*.safetensors"))

    def _absence(self) -> str | None:
        if not self.is_on_hub:
            inside = f", {self.subfolder} in it" if self.subfolder and Path(at_home(self.weights)).exists() else ""
            return f"no such file or folder{inside}, and not a hub id"
        repository = HubRepository(self.weights, self.revision)
        return HubDownload("it", "not in the hub's cache", "name a file or a folder", repository, list).problem()


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a file or of a folder of one part: one, or its shards.

    Raises:
        UserError: the folder has none, or several that are no shards of one.
    """
    if path.is_file():
        return [path]
    if (path / "run.json").is_file():
        return [path / "weights.safetensors"]
    files = sorted(path.glob("*.safetensors"))
    plain = [file for file in files if not VARIANT.search(file.name)] or files
    if not plain:
        pickles = sorted(file for file in path.iterdir() if file.suffix in PICKLES)
        if pickles:
            raise UserError(pickle_problem(pickles[0]))
        raise UserError(f"{path} holds no {INDEX} and no .safetensors file")
    if len(plain) > 1 and not all(SHARD.search(file.name) for file in plain):
        raise UserError(f"{path} holds several files; choose one with algo.subfolder: {_listed(file.name for file in plain)}")
    return plain


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
