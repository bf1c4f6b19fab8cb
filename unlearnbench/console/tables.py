"""Tables on the terminal, which split no number and no word, and numbers as tables show them."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from unlearnbench.console.columns import fit_columns, wrap

WIDE = 160  # characters of a table where there is no terminal


def table_console() -> Console:
    """A console for tables on stdout: as wide as the terminal, or as COLUMNS says; in a file or a pipe 160 characters."""
    if "COLUMNS" in os.environ:  # rich would take 0 for a width
        return Console(file=sys.stdout, width=shutil.get_terminal_size((WIDE, 24)).columns)
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDE)


def build_table(
    head: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    text_columns: Collection[str],
    *,
    wrapped: Collection[str] = (),
    title: str | None = None,
    caption: str | None = None,
    max_width: int | None = None,
) -> Table:
    """A table without lines, for `table_console`.

    Args:
        head: the names of the columns.
        rows: cells, printed as they are, without markup.
        text_columns: the columns that are aligned to the left; the others hold numbers and are aligned to the right.
        wrapped: the columns whose cells may take several lines; in the others a cell that is too long ends with an ellipsis.
        title: above the table.
        caption: below the table.
        max_width: the largest width of a column, in characters.
    """
    table = Table(
        title=title, title_justify="left", title_style="bold", caption=caption, caption_justify="left", box=None, pad_edge=False
    )
    for name in head:
        justify: Literal["left", "right"] = "left" if name in text_columns else "right"
        if name in wrapped:
            table.add_column(name, justify=justify, overflow="fold", max_width=max_width)
        else:
            table.add_column(name, justify=justify, no_wrap=True, max_width=max_width)
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return table


def print_columns(
    target: Console,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    text_columns: Collection[str],
    keys: int,
    title: str | None = None,
    starred_bold: bool = False,
) -> None:
    """Print a table that fits the terminal: no number or word is split, and a table that is too wide becomes several.

    Args:
        target: the console.
        head: the names of the columns.
        rows: the cells.
        text_columns: the columns that are aligned to the left.
        keys: the number of first columns, which every part of the table repeats.
        title: above the table.
        starred_bold: whether a cell with a star is bold.
    """
    for number, (columns, widths) in enumerate(fit_columns(head, rows, keys, target.width)):
        if number:
            target.print()
        names = [wrap(head[i], width) for i, width in zip(columns, widths, strict=True)]
        cells = [[_styled(wrap(row[i], width), starred_bold) for i, width in zip(columns, widths, strict=True)] for row in rows]
        texts = {name for i, name in zip(columns, names, strict=True) if head[i] in text_columns}
        target.print(build_table(names, cells, texts, title=title if not number else None))


def _styled(cell: str, starred_bold: bool) -> Text:
    return Text(cell, "bold" if starred_bold and "*" in cell else "")


def print_remark(target: Console, text: str) -> None:
    """Print a dim text below a table, as it is, broken between words only: paths, and commands in backticks, stay whole."""
    whole = re.sub(r"`[^`]*`", lambda command: command.group().replace(" ", "\0"), text)
    lines = textwrap.wrap(whole, target.width, break_long_words=False, break_on_hyphens=False)
    target.print("\n".join(lines).replace("\0", " "), style="dim", highlight=False, markup=False, soft_wrap=True)


def format_number(value: float | None, *beside: float | None, sign: str = "") -> str:
    """Three decimals below 100, one below 10,000, then none; an empty cell where there is no number.

    Args:
        value: the number.
        beside: numbers beside it in a row or column; the largest of all decides.
        sign: "+" for a change, which shows its sign.

    Examples:
        >>> format_number(0.5), format_number(37.842, 1116.8), format_number(-1.0861, 5277.6, sign="+")
        ('0.500', '37.8', '-1.1')
    """
    if value is None:
        return ""
    largest = max(abs(number) for number in (value, *beside) if number is not None)
    places = 0 if largest >= 10_000 else 3 if not largest >= 100 else 1
    return f"{value:{sign}.{places}f}"
