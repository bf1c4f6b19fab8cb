"""Files of a public GitHub repository at one commit, kept beside the hub's cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from unlearnbench.storage.downloads import Advance, Download, FileDownload

RAW = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class GitHubFiles(Download):
    """Some files of a repository.

    Attributes:
        repository: OWNER/NAME.
        commit: all 40 digits.
        files: their paths in the repository.
    """

    repository: str
    commit: str
    files: tuple[str, ...]

    state = "not on this machine"

    @property
    def what(self) -> str:  # type: ignore[override]
        """See `Download`."""
        return f"prompt set github:{self.repository} {', '.join(self.files)}"

    @property
    def repair(self) -> str:  # type: ignore[override]
        """See `Download`."""
        addresses = " and ".join(part.url for part in self._parts())
        return f"download {addresses} into {self.folder}, with the same names and folders"

    @property
    def folder(self) -> Path:
        """Where the files are written, under their paths in the repository; named after the commit."""
        from huggingface_hub import constants

        return Path(constants.HF_HOME) / "unlearnbench" / self.repository.replace("/", "--") / self.commit

    def is_local(self) -> bool:
        """Whether all files are on this machine."""
        return all((self.folder / name).is_file() for name in self.files)

    def source(self) -> str:
        """See `Download.source`."""
        return "GitHub"

    def remote_problem(self) -> str | None:
        """See `Download.remote_problem`."""
        return next((problem for part in self._missing() if (problem := part.remote_problem())), None)

    def size(self) -> int | None:
        """See `Download.size`."""
        sizes = [part.size() for part in self._missing()]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def fetch(self, advance: Advance) -> None:
        """See `Download.fetch`."""
        for part in self._missing():
            part.fetch(advance)

    def _parts(self) -> list[FileDownload]:
        base = f"{RAW}/{self.repository}/{self.commit}"
        return [FileDownload(self.what, f"{base}/{quote(name)}", self.folder / name, "") for name in self.files]

    def _missing(self) -> list[FileDownload]:
        return [part for part in self._parts() if not part.path.is_file()]
