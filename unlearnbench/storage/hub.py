"""Repositories of the Hugging Face hub: whether they could be downloaded, and how large they are; nothing is downloaded."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from fnmatch import fnmatch

from unlearnbench.storage.units import format_size

UNREACHABLE = "the hub cannot be reached"
PATIENCE = 5.0  # seconds to wait for the hub, name look-up included


@dataclass(frozen=True)
class HubRepository:
    """A repository of the hub.

    Attributes:
        path: its name.
        revision: a branch, tag or commit; None for the default.
        kind: model or dataset.
        patterns: glob patterns of the files that a run downloads.
    """

    path: str
    revision: str | None = None
    kind: str = "model"
    patterns: tuple[str, ...] = ("*",)

    def look_up(self) -> HubFiles:
        """What the hub says of it, within `PATIENCE` seconds."""
        answers: list[HubFiles] = []
        thread = threading.Thread(target=lambda: answers.append(self._ask()), daemon=True)
        thread.start()
        thread.join(PATIENCE)
        return answers[0] if answers else HubFiles(UNREACHABLE)

    def _ask(self) -> HubFiles:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        api, address = HfApi(), self.path if self.kind == "model" else f"{self.kind}s/{self.path}"
        try:
            info = api.repo_info(self.path, revision=self.revision, repo_type=self.kind, files_metadata=True, timeout=PATIENCE)
            if getattr(info, "gated", False):
                api.auth_check(self.path, repo_type=self.kind)
        except GatedRepoError:
            return HubFiles(f"it is gated: accept its terms at https://huggingface.co/{address}, then `hf auth login`")
        except RevisionNotFoundError:
            return HubFiles(f"the hub has no revision {self.revision} of it")
        except RepositoryNotFoundError:
            return HubFiles(f"the hub has no such {self.kind}; if it is private, `hf auth login`")
        except Exception:  # each version of the hub's client raises others
            return HubFiles(UNREACHABLE)
        files = {file.rfilename: file.size or 0 for file in getattr(info, "siblings", None) or []}
        return HubFiles(None, {name: size for name, size in files.items() if any(fnmatch(name, p) for p in self.patterns)})

    def download_problem(self, what: str, state: str, repair: str) -> str | None:
        """Why what is not on this machine cannot be downloaded; None if it can.

        Args:
            what: what it is, for the message.
            state: such as "not in the hub's cache".
            repair: what helps without the hub, after "or".
        """
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            return f"{what} is {state}, and HF_HUB_OFFLINE is set; unset it, or {repair}"
        problem = self.look_up().problem
        return problem and f"{what} is {state}, and {problem}; {repair}"


@dataclass(frozen=True)
class HubFiles:
    """The files of a repository that a run downloads.

    Attributes:
        problem: why they cannot be downloaded; None if they can.
        sizes: bytes, by name.
    """

    problem: str | None
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def size(self) -> str:
        """The size of all, in words."""
        return format_size(sum(self.sizes.values()))
