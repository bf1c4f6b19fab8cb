"""Errors as the command line prints them, and their exit codes."""

from __future__ import annotations

import sys

from unlearnbench.config.errors import RunError, UserError


def error_text(error: Exception) -> str:
    """The text of an error; an unforeseen error starts with the name of its class."""
    return str(error) if isinstance(error, UserError | RunError) else f"{type(error).__name__}: {error}"


def exit_code(error: Exception) -> int:
    """2 for a mistake of the user, 1 for a run that failed."""
    return 2 if isinstance(error, UserError) else 1


def print_error(error: Exception) -> int:
    """Print an error, a line each; returns its exit code."""
    kind = "error" if isinstance(error, UserError) else "run failed"
    for line in error_text(error).splitlines():
        print(f"{kind}: {line}", file=sys.stderr)
    return exit_code(error)
