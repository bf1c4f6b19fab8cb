"""Text in quotes, for Hydra and for a shell."""

from __future__ import annotations

import re
import shlex
from pathlib import Path


def quoted(text: str) -> str:
    r"""Text between single quotes in Hydra's syntax, which halves backslashes before a quote and at the end.

    Examples:
        >>> print(quoted("it's"), quoted("a,b"))
        'it\'s' 'a,b'
    """
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"


def quoted_override(key: str, value: str) -> str:
    """An override whose value is this text, whatever its signs, as it is typed in a shell.

    Examples:
        >>> print(quoted_override("concept.prompts", "a,b.csv"))
        "concept.prompts='a,b.csv'"
    """
    override = f"{key}={quoted(value)}"
    return shlex.quote(override) if re.search(r"[\"$`!]|\\[^']", override) else f'"{override}"'


def command_text(*words: str | Path) -> str:
    """A command of this program as messages show it, its words quoted for a shell.

    Examples:
        >>> print(command_text("resume", "outputs/ga-church/1"), command_text("show", "my runs/1"))
        `unlearnbench resume outputs/ga-church/1` `unlearnbench show 'my runs/1'`
    """
    return f"`{shlex.join(['unlearnbench', *map(str, words)])}`"
