"""Errors that a user can mend, and suggestions for a mistyped word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend. The text says what is wrong and what repairs it; no traceback is shown."""


class RunError(Exception):
    """A run that failed under way; what it had made so far is kept."""


def suggest(word: str, known: Iterable[str]) -> str:
    """The known choices, led by "did you mean ...?" where one of them is close."""
    choices = sorted(known)
    close = difflib.get_close_matches(word, choices, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + "known: " + ", ".join(choices)
