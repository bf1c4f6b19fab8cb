"""Text in quotes, for Hydra and for a shell."""

from __future__ import annotations

import re
import shlex


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
