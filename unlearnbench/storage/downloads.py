"""What a run needs from the network: how large it is, why it cannot be had, and its download, which goes on where it stopped."""

from __future__ import annotations

import hashlib
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from unlearnbench.config.errors import UserError
from unlearnbench.console import ProgressBar, progress_bar
from unlearnbench.storage.units import format_size

MB = 10**6
TRIES = 5  # connections for one file, as long as each of them brings something
TIMEOUT = 30.0  # seconds without a byte, after which a connection counts as cut
GOES_ON = "the same command goes on where it stopped"

Advance = Callable[[int], None]


class Download(ABC):
    """Files that a run needs and that are not on this machine.

    Attributes:
        what: such as "model a/b", for messages.
        state: such as "not in the hub's cache".
        repair: what helps without the network, after "or".
    """

    what: str
    state: str
    repair: str

    @abstractmethod
    def remote_problem(self) -> str | None:
        """Why the files cannot be downloaded; asks the network."""

    @abstractmethod
    def size(self) -> int | None:
        """The bytes that are still to be downloaded; None if unknown."""

    @abstractmethod
    def fetch(self, advance: Advance) -> None:
        """Download the files.

        Args:
            advance: called with the number of bytes after each block, and with those that were there already.

        Raises:
            UserError: the download failed or was cut.
        """

    def problem(self, allowed: bool = True) -> str | None:
        """Why the files cannot be had, with the repair; None if they can.

        Args:
            allowed: whether the run may download; if not, the network is not asked.
        """
        from huggingface_hub import constants

        if not allowed:
            return f"{self.what} is {self.state}, and fetch=never is set; leave it out, or {self.repair}"
        if constants.HF_HUB_OFFLINE:
            return f"{self.what} is {self.state}, and HF_HUB_OFFLINE is set; unset it, or {self.repair}"
        problem = self.remote_problem()
        return problem and f"{self.what} is {self.state}, and {problem}; {self.repair}"

    def line(self) -> str:
        """What is downloaded and how large it is, in words."""
        size = self.size()
        return f"{self.what}: {'of unknown size' if size is None else format_size(size)} from {self.source()}"

    def source(self) -> str:
        """Where it comes from."""
        return "the hub"


def fetch(downloads: Sequence[Download]) -> None:
    """Download all of these, with a progress bar in megabytes for each.

    Raises:
        UserError: one cannot be downloaded, or was cut.
    """
    for download in downloads:
        if (problem := download.problem()) is not None:
            raise UserError(problem)
        size = download.size()
        with progress_bar(f"download {download.what} (MB)", None if size is None else max(1, round(size / MB))) as progress:
            download.fetch(_Megabytes(progress).advance)


class _Megabytes:
    """Passes bytes on to a progress bar in megabytes."""

    def __init__(self, progress: ProgressBar) -> None:
        self._progress, self._bytes, self._shown = progress, 0, 0

    def advance(self, count: int) -> None:
        self._bytes += count
        megabytes = round(self._bytes / MB)
        if megabytes != self._shown:
            self._progress.advance(megabytes - self._shown)
            self._shown = megabytes


@dataclass(frozen=True)
class FileDownload(Download):
    """One file of a web server.

    Attributes:
        what: see `Download`.
        url: its address.
        path: where it is written.
        sha256: the beginning of its hash.
    """

    what: str
    url: str
    path: Path
    sha256: str

    state = "not on this machine"

    @property
    def repair(self) -> str:  # type: ignore[override]
        """See `Download`."""
        return f"download {self.url} to {self.path}"

    def source(self) -> str:
        """See `Download.source`."""
        return self.url.split("/")[2]

    def remote_problem(self) -> str | None:
        """See `Download.remote_problem`."""
        status, size = _head(self.url)
        if status is None:
            return f"{self.source()} cannot be reached"
        if status != 200:
            return f"{self.url} answers {status}"
        return None if size else f"{self.url} does not say how large it is"

    def size(self) -> int | None:
        """See `Download.size`."""
        return _head(self.url)[1]

    def fetch(self, advance: Advance) -> None:
        """See `Download.fetch`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if (problem := self.problem()) is not None:
            raise UserError(problem)
        resumable_download(self.what, self.url, self.path, self.size() or 0, self.sha256, {}, advance)


def _head(url: str) -> tuple[int | None, int | None]:
    """The status and the bytes of a file of a web server; None where it does not answer."""
    from huggingface_hub.utils import get_session

    try:
        response = get_session().head(url, follow_redirects=True, timeout=5.0, headers={"Accept-Encoding": "identity"})
    except Exception:  # each version of the hub's client raises others
        return None, None
    length = response.headers.get("Content-Length", "")
    return response.status_code, int(length) if length.isdigit() else None


def resumable_download(
    what: str, url: str, path: Path, size: int, sha256: str, headers: Mapping[str, str], advance: Advance
) -> None:
    """Download a file; what an earlier try wrote beside it is not downloaded again.

    Args:
        what: for messages.
        url: the file's address.
        path: where the file is written, once it is whole.
        size: its bytes.
        sha256: its hash or the beginning of it; empty if unknown.
        headers: of the request.
        advance: called with the number of bytes.

    Raises:
        UserError: the download was cut, the disk is too small, or the bytes are not those of the hash.
    """
    part = path.with_name(f"{path.name}.unlearnbench-part")
    with FileLock(f"{part}.lock"):
        if path.exists():
            advance(size)
            return
        present = _bytes_of(part)
        if (free := shutil.disk_usage(path.parent).free) < size - present:
            needed = format_size(size - present)
            raise UserError(f"{what}: needs {needed}, and the disk of {path.parent} has {format_size(free)}; free some space")
        advance(present)
        reason = ""
        for _ in range(TRIES):
            reason = _append(url, part, size, headers, advance) if present < size else ""
            received, present = _bytes_of(part) - present, _bytes_of(part)
            if present >= size or received <= 0:
                break
        if present < size:
            done = f"{format_size(present)} of {format_size(size)}"
            raise UserError(f"{what}: the download was cut after {done} ({reason or 'no more bytes came'}); {GOES_ON}")
        if present > size or (sha256 and not _hash_of(part).startswith(sha256)):
            part.unlink()
            raise UserError(f"{what}: the downloaded {path.name} is damaged and was removed; the same command downloads it again")
        part.replace(path)
    with suppress(OSError):
        Path(f"{part}.lock").unlink()


def _bytes_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _append(url: str, part: Path, size: int, headers: Mapping[str, str], advance: Advance) -> str:
    """Append the rest of a file to its part; returns why the connection ended early, or an empty text."""
    from huggingface_hub.utils import get_session

    present = _bytes_of(part)
    ranged = {**headers, "Range": f"bytes={present}-", "Accept-Encoding": "identity"}
    try:
        with get_session().stream("GET", url, headers=ranged, follow_redirects=True, timeout=TIMEOUT) as response:
            if response.status_code not in (200, 206):
                return f"the server answers {response.status_code}"
            if response.status_code == 200 and present:  # the server sends the whole file again
                part.unlink()
                advance(-present)
            with part.open("ab") as file:
                for block in response.iter_raw():
                    file.write(block)
                    advance(len(block))
    except Exception as error:  # each version of the hub's client raises others
        return _first_line(error)
    return ""


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
