"""Errors that a user can repair, and suggestions for a mistyped name."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable
from pathlib import Path

from unlearnbench.config.quoting import command_text

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """A mistake that the user can repair. The text says what is wrong and what repairs it; no traceback is shown."""


class RunError(Exception):
    """A run that failed after it had begun; its finished work is kept."""


def first_line(error: BaseException) -> str:
    """The first line of another package's error, its unprintable characters escaped; without a text the name of its class."""
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in line)


def disk_is_full(error: BaseException) -> bool:
    """Whether an error says that no space is left on a disk."""
    codes = [getattr(error, "errno", None), *map(int, re.findall(r"os error (\d+)", str(error)))]  # the latter by safetensors
    return any(code in DISK_FULL for code in codes)


def similar(name: str, choices: Iterable[str]) -> str:
    """ "did you mean ...? " if one of the choices is similar, else an empty text."""
    matches = difflib.get_close_matches(name, sorted(set(choices)), n=1)
    return f"did you mean {matches[0]!r}? " if matches else ""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run or a sweep.

    Attributes:
        folder: the folder that `unlearnbench resume` continues.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self.folder = folder

    def __str__(self) -> str:
        return f"interrupted; {command_text('resume', self.folder)} continues"


def suggest(name: str, choices: Iterable[str]) -> str:
    """A list of the choices, after "did you mean ...?" if one of them is similar."""
    names = sorted(choices)
    return similar(name, names) + "known: " + (", ".join(names) or "none")
