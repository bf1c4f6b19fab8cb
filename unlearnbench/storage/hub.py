"""Repositories of the Hugging Face hub: whether they can be downloaded, how large they are, and their download."""

from __future__ import annotations

import glob
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from unlearnbench.config.errors import UserError
from unlearnbench.storage.downloads import GOES_ON, Advance, Download, resumable_download

UNREACHABLE = "the hub cannot be reached"
PATIENCE = 5.0  # seconds to wait for the hub, name look-up included
REMEMBERED = 60.0  # seconds for which an answer of the hub stands
LARGE = 8 * 10**6  # bytes from which a file's download goes on where it stopped; smaller ones start again
SHA256 = re.compile(r"[0-9a-f]{64}")

_answers: dict[tuple[object, ...], tuple[float, HubFiles]] = {}


@dataclass(frozen=True)
class HubRepository:
    """A repository of the hub.

    Attributes:
        path: its name.
        revision: a branch, tag or commit; None for the default.
        kind: model or dataset.
    """

    path: str
    revision: str | None = None
    kind: str = "model"

    def look_up(self) -> HubFiles:
        """What the hub says of it, within `PATIENCE` seconds; asked once a minute."""
        from huggingface_hub import constants

        key = (constants.ENDPOINT, self)
        moment, answer = _answers.get(key, (0.0, None))
        if answer is None or time.monotonic() - moment > REMEMBERED:
            answer = self._look_up()
            _answers[key] = time.monotonic(), answer
        return answer

    def _look_up(self) -> HubFiles:
        answers: list[HubFiles] = []
        thread = threading.Thread(target=lambda: answers.append(self._ask()), daemon=True)
        thread.start()
        thread.join(PATIENCE)
        return answers[0] if answers else HubFiles(UNREACHABLE)

    def _ask(self) -> HubFiles:
        from huggingface_hub import HfApi

        api = HfApi()
        try:
            info = api.repo_info(self.path, revision=self.revision, repo_type=self.kind, files_metadata=True, timeout=PATIENCE)
            if getattr(info, "gated", False):
                api.auth_check(self.path, repo_type=self.kind)
        except Exception as error:  # each version of the hub's client raises others
            return HubFiles(self.error_text(error))
        return HubFiles(None, {file.rfilename: file.size or 0 for file in getattr(info, "siblings", None) or []})

    def error_text(self, error: Exception) -> str:
        """What an error of the hub's client means, in words."""
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        address = self.path if self.kind == "model" else f"{self.kind}s/{self.path}"
        status = getattr(getattr(error, "response", None), "status_code", None)
        match error:
            case GatedRepoError():
                return f"it is gated: accept its terms at https://huggingface.co/{address}, then `hf auth login`"
            case RevisionNotFoundError():
                return f"the hub has no revision {self.revision} of it"
            case RepositoryNotFoundError():
                return f"the hub has no such {self.kind}; if it is private, `hf auth login`"
        if status in (401, 403):
            return f"the hub refuses access ({status}): `hf auth login` with a token that may read it"
        return UNREACHABLE if status is None else f"the hub answers {status}"

    def missing(self, names: Collection[str]) -> list[str]:
        """The files among these that are not in the hub's cache."""
        from huggingface_hub import try_to_load_from_cache

        settings: dict[str, Any] = {"revision": self.revision, "repo_type": self.kind}
        return [name for name in names if not isinstance(try_to_load_from_cache(self.path, name, **settings), str)]

    def fetch(self, what: str, sizes: Mapping[str, int], advance: Advance) -> Path:
        """Download files to the hub's cache; returns their folder there.

        Large files are written to the cache by `resumable_download`: the hub's client itself (since version 2) begins a file
        again when its process was ended. Small files and the folder's layout are the client's.

        Args:
            what: for messages.
            sizes: bytes of the files, by name.
            advance: called with the number of bytes.

        Raises:
            UserError: the download failed or was cut.
        """
        from huggingface_hub import snapshot_download

        large = [name for name, size in sizes.items() if size >= LARGE]
        try:
            with quiet_hub():
                for name in large:
                    self._fetch_blob(what, name, advance)
                patterns = [glob.escape(name) for name in sizes]
                folder = snapshot_download(self.path, repo_type=self.kind, revision=self.revision, allow_patterns=patterns)
        except UserError:
            raise
        except Exception as error:  # each version of the hub's client raises others
            raise UserError(f"{what}: the download failed, {self.error_text(error)}; {GOES_ON}") from error
        advance(sum(size for name, size in sizes.items() if name not in large))
        if still := self.missing(sizes):
            raise UserError(f"{what}: the download was cut ({', '.join(still[:3])} missing); {GOES_ON}")
        return Path(folder)

    def _fetch_blob(self, what: str, name: str, advance: Advance) -> None:
        """Download a file to the place in the cache where the hub's client looks for its content."""
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
        from huggingface_hub.file_download import repo_folder_name
        from huggingface_hub.utils import build_hf_headers

        metadata = get_hf_file_metadata(hf_hub_url(self.path, name, repo_type=self.kind, revision=self.revision))
        if not metadata.etag or metadata.size is None:
            return  # the client downloads it
        blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self.path, repo_type=self.kind) / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        sha256 = metadata.etag if SHA256.fullmatch(metadata.etag) else ""
        # each connection asks the hub for a new link to the file's server, for links expire; the client sends no token there
        url = hf_hub_url(self.path, name, repo_type=self.kind, revision=metadata.commit_hash or self.revision)
        resumable_download(what, url, blobs / metadata.etag, metadata.size, sha256, build_hf_headers(), advance)


@dataclass(frozen=True)
class HubFiles:
    """The files of a repository.

    Attributes:
        problem: why they cannot be downloaded; None if they can.
        sizes: bytes, by name.
    """

    problem: str | None
    sizes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class HubDownload(Download):
    """Files of one repository of the hub.

    Attributes:
        what: see `Download`.
        state: see `Download`.
        repair: see `Download`.
        repository: where they are.
        choose: from the names of all files of the repository, those that are needed; a `UserError` says why there are none.
    """

    what: str
    state: str
    repair: str
    repository: HubRepository
    choose: Callable[[Collection[str]], list[str]]

    def remote_problem(self) -> str | None:
        """See `Download.remote_problem`."""
        files = self.repository.look_up()
        if files.problem is not None:
            return files.problem
        try:
            self.choose(files.sizes)
        except UserError as error:
            return str(error)
        return None

    def sizes(self) -> dict[str, int]:
        """The bytes of the files that are still to be downloaded, by name.

        Raises:
            UserError: the repository has no such files.
        """
        sizes = self.repository.look_up().sizes
        return {name: sizes[name] for name in self.repository.missing(self.choose(sizes))} if sizes else {}

    def size(self) -> int | None:
        """See `Download.size`."""
        return sum(self.sizes().values()) or None

    def fetch(self, advance: Advance) -> None:
        """See `Download.fetch`."""
        if (problem := self.problem()) is not None:
            raise UserError(problem)
        self.repository.fetch(self.what, self.sizes(), advance)


def choose_by_patterns(*patterns: str) -> Callable[[Collection[str]], list[str]]:
    """A choice of the files whose names match a glob pattern.

    Raises:
        UserError: when it is called with names of which none matches.
    """

    def choose(names: Collection[str]) -> list[str]:
        matches = [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
        if not matches:
            raise UserError(f"the hub's repository has no {' or '.join(patterns)}")
        return matches

    return choose


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Silence the hub client's warnings and progress bars: it prints one for every attempt to reach the hub."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    verbosity, were_disabled = logging.get_verbosity(), are_progress_bars_disabled()
    logging.set_verbosity_error()
    disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if not were_disabled:
            enable_progress_bars()
