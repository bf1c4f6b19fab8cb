"""Remarks on the user's files: what is left out or changed as it is read, each once a process."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)


def remark(path: Path, text: str) -> None:
    """Log a warning about a file or folder, once as long as it does not change."""
    _warn(f"{path}: {text}", str(path.resolve()), path.stat().st_mtime_ns)


@cache
def _warn(text: str, path: str, changed: int) -> None:
    logger.warning("%s", text)


def few(names: list[str]) -> str:
    """The first five names, and dots if there are more."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
