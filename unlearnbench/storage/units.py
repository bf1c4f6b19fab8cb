"""Sizes and time spans as text, such as 20GB and 30d."""

from __future__ import annotations

import re
import time

from unlearnbench.config.errors import UserError

SIZES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
SPANS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_size(text: str) -> int:
    """The bytes of a size such as 20GB.

    Examples:
        >>> parse_size("20GB"), parse_size("1.5 MiB")
        (20000000000, 1572864)

    Raises:
        UserError: not a number and a unit.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    if match is None or match.group(2).upper() not in SIZES:
        raise UserError(f"size {text!r}: give a number and a unit, such as 20GB or 500MiB")
    return int(float(match.group(1)) * SIZES[match.group(2).upper()])


def parse_span(text: str) -> int:
    """The seconds of a time span such as 30d, in m, h, d or w.

    Examples:
        >>> parse_span("30d")
        2592000

    Raises:
        UserError: not a whole number and a unit.
    """
    match = re.fullmatch(r"\s*(\d+)\s*([mhdw])\s*", text)
    if match is None:
        raise UserError(f"span {text!r}: give a whole number and m, h, d or w, such as 30d")
    return int(match.group(1)) * SPANS[match.group(2)]


def format_size(count: float) -> str:
    """A number of bytes as text, in the largest unit that fits.

    Examples:
        >>> format_size(999), format_size(1_530_000)
        ('999 B', '1.5 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def format_age(moment: float) -> str:
    """The time since a moment as text, in the largest unit that fits.

    Examples:
        >>> format_age(time.time() - 7300)
        '2 h'
    """
    past = max(0.0, time.time() - moment)
    unit = next((unit for unit in ("d", "h", "m") if past >= SPANS[unit]), None)
    return f"{past / SPANS[unit]:.0f} {unit}" if unit else "now"
