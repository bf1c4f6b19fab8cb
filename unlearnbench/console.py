"""Progress bars with the time left (a line now and then where there is no terminal), a stopwatch, and formatted numbers."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

WIDE = 160
EVERY = 30  # seconds between two lines of a progress bar without a terminal
console = Console(stderr=True)
_file: ContextVar[Path | None] = ContextVar("_file", default=None)


def table_console() -> Console:
    """A console for tables on stdout: as wide as the terminal, or as COLUMNS says; in a file or a pipe 160 characters."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDE)


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


def print_remark(target: Console, text: str, soft_wrap: bool = False) -> None:
    """Print a dim line below a table, as it is."""
    target.print(text, style="dim", highlight=False, markup=False, soft_wrap=soft_wrap)


@contextmanager
def progress_file(path: Path) -> Iterator[None]:
    """Let the progress bars in this block write their state to a file for another process; the file is removed at the end.

    The file is JSON: stage, done, total, and the seconds left of the stage, or null.
    """
    token = _file.set(path)
    try:
        yield
    finally:
        _file.reset(token)
        path.unlink(missing_ok=True)


class ProgressBar:
    """One progress bar: call `advance` after each step, with a short remark such as the loss."""

    def __init__(self, progress: Progress, name: str, total: int, done: int) -> None:
        self._progress = progress
        self._task = progress.add_task(name, total=total, completed=done, remark="")
        self._last_write, self._last_line = -1.0, time.monotonic()
        self._write_file()

    def advance(self, steps: int = 1, remark: str | None = None) -> None:
        """Count steps that are done."""
        self._progress.update(self._task, advance=steps)
        if remark is not None:
            self._progress.update(self._task, remark=remark)
        self._write_file()
        self._print_line()

    def _print_line(self) -> None:
        """Print a line where there is no terminal, at most one in `EVERY` seconds."""
        task, now = self._progress.tasks[self._task], time.monotonic()
        if not console.is_terminal and now - self._last_line >= EVERY and not task.finished:
            self._last_line = now
            left = task.time_remaining and f"{format_duration(task.time_remaining)} left"
            parts = [f"{task.description}: {task.completed:.0f} of {task.total:.0f}", left, task.fields["remark"]]
            console.print(", ".join(part for part in parts if part), highlight=False, markup=False, soft_wrap=True)

    def _write_file(self) -> None:
        """Write the progress file, at most once a second; a reader finds it complete."""
        path, task, now = _file.get(), self._progress.tasks[self._task], time.monotonic()
        if path is not None and now - self._last_write >= 1:
            self._last_write = now
            state = {"stage": task.description, "done": task.completed, "total": task.total, "left": task.time_remaining}
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_text(json.dumps(state), encoding="utf-8")
            temporary.replace(path)


@contextmanager
def progress_bar(name: str, total: int, done: int = 0) -> Iterator[ProgressBar]:
    """Show a progress bar while the block runs; without a terminal, a line at the start and one now and then."""
    columns = (
        TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[remark]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=False, disable=not console.is_terminal) as progress:
        bar = ProgressBar(progress, name, total, done)
        if not console.is_terminal:
            console.print(f"{name}: {total - done} to do", highlight=False)
        yield bar


def format_duration(seconds: float | None) -> str:
    """Hours, minutes and seconds.

    Examples:
        >>> format_duration(75), format_duration(7322.4), format_duration(None)
        ('1:15', '2:02:02', '')
    """
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


class Stopwatch:
    """Seconds of a monotonic clock, added to those of an earlier try."""

    def __init__(self, earlier: float = 0.0) -> None:
        self._start = time.perf_counter() - earlier

    def __call__(self) -> float:
        """Seconds so far."""
        return round(time.perf_counter() - self._start, 3)

    def add(self, seconds: float) -> None:
        """Add these seconds."""
        self._start -= seconds


def format_number(value: float | None) -> str:
    """Three decimals below 100, one below 10,000, then none; an empty cell where there is no number."""
    if value is None:
        return ""
    places = 0 if abs(value) >= 10_000 else 3 if abs(value) < 100 else 1
    return f"{value:.{places}f}"
