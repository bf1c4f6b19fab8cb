"""The widths of a table's columns: numbers and words stay whole, and a table that is too wide becomes several."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

GAP = 2  # spaces between two columns


class Block(NamedTuple):
    """Columns that stand side by side.

    Attributes:
        columns: their numbers.
        widths: the width of each.
    """

    columns: list[int]
    widths: list[int]


def pieces(text: str) -> list[str]:
    """The parts of a text that stay whole: words, and in paths the names of folders.

    Examples:
        >>> pieces("fid (retain)"), pieces("0.875 (0.812..0.938)"), pieces("outputs/a-b/1")
        (['fid', '(retain)'], ['0.875', '(0.812..0.938)'], ['outputs/', 'a-b/', '1'])
    """
    return [piece for word in words(text) for piece in re.findall(r"[^/]+/?|/", word)]


def words(text: str) -> list[str]:
    """The words of a text; an arrow belongs to the word before it.

    Examples:
        >>> words("FID (classifier features) ↓")
        ['FID', '(classifier', 'features) ↓']
    """
    return re.split(r"\s+(?![↑↓])", text.strip())


def wrap(text: str, width: int) -> str:
    """The text in lines of at most `width`, broken between pieces; a longer piece is broken anywhere.

    Examples:
        >>> wrap("forget_accuracy (forget)", 16)
        'forget_accuracy\\n(forget)'
        >>> wrap("outputs/sweeps/1", 9)
        'outputs/\\nsweeps/1'
    """
    if len(text) <= width:
        return text
    lines = [""]
    for word in words(text):
        for number, piece in enumerate(pieces(word)):
            space = " " if number == 0 and lines[-1] else ""
            if len(lines[-1]) + len(space) + len(piece) <= width:
                lines[-1] += space + piece
                continue
            parts = [piece[start : start + width] for start in range(0, len(piece), width)]
            lines = [*lines, *parts] if lines[-1] else [*lines[:-1], *parts]
    return "\n".join(lines)


def fit_columns(head: Sequence[str], rows: Sequence[Sequence[str]], keys: int, width: int) -> list[Block]:
    """The blocks of columns of a table, each at most `width` wide.

    Args:
        head: the names of the columns.
        rows: the cells.
        keys: the number of first columns that identify a row; every block repeats them.
        width: the width of the terminal.
    """
    columns = [[name, *(row[i] for row in rows)] for i, name in enumerate(head)]
    natural = [max(map(len, cells)) for cells in columns]
    minimal = [max((len(piece) for cell in cells for piece in pieces(cell)), default=1) for cells in columns]
    if sum(natural) + GAP * (len(head) - 1) <= width:
        return [Block(list(range(len(head))), natural)]
    _narrow_keys(minimal, keys, width)
    blocks: list[list[int]] = [list(range(keys))]
    for i in range(keys, len(head)):
        needed = sum(minimal[j] + GAP for j in blocks[-1]) + minimal[i]
        if needed > width and len(blocks[-1]) > keys:
            blocks.append(list(range(keys)))
        blocks[-1].append(i)
    return [Block(block, _widths(block, natural, minimal, width)) for block in blocks]


def _narrow_keys(minimal: list[int], keys: int, width: int) -> None:
    """Make the widest key columns narrower until the widest other column has a place beside them."""
    others = max(minimal[keys:], default=0)
    while keys and sum(minimal[:keys]) + GAP * keys + others > width and max(minimal[:keys]) > GAP:
        widest = max(range(keys), key=lambda i: minimal[i])
        minimal[widest] -= 1


def _widths(block: Sequence[int], natural: Sequence[int], minimal: Sequence[int], width: int) -> list[int]:
    """The widths of a block: what columns need at least, and the rest first to those that lack least."""
    widths = {i: minimal[i] for i in block}
    rest = width - sum(widths.values()) - GAP * (len(block) - 1)
    for i in sorted(block, key=lambda i: natural[i] - minimal[i]):
        more = max(min(natural[i] - minimal[i], rest), 0)
        widths[i] += more
        rest -= more
    return [widths[i] for i in block]
