"""Progress bars with the time left (a line now and then where there is no terminal), and a stopwatch."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from pathlib import Path

from rich.console import Console, ConsoleOptions
from rich.live import Live
from rich.text import Text

from unlearnbench.console.run_plan import Pace, PlannedStep, RunPlan

EVERY = 30  # seconds between two lines of a progress bar without a terminal
SHORTEST_BAR, LONGEST_BAR = 8, 30
SILENCE = 1.5  # seconds after which a command without a terminal says that it is starting
console = Console(stderr=True)
_file: ContextVar[Path | None] = ContextVar("_file", default=None)
_line: ContextVar[ProgressLine | None] = ContextVar("_line", default=None)
_part: ContextVar[tuple[float, float]] = ContextVar("_part", default=(0.0, 1.0))


@contextmanager
def progress_file(path: Path) -> Iterator[None]:
    """Let the progress bars in this block write their state to a file for another process; the file is removed at the end.

    The file is JSON: stage, done, total, and the seconds left, or null. In a run with planned steps `left` is that of the run,
    and step, steps, elapsed (seconds) and time (of the clock) stand beside it.
    """
    token = _file.set(path)
    try:
        yield
    finally:
        _file.reset(token)
        with suppress(PermissionError):  # of Windows, while another process reads it
            path.unlink(missing_ok=True)


class ProgressLine:
    """The line at the bottom of the terminal: the present step, its bar, the time left."""

    def __init__(self, title: str = "", plan: RunPlan | None = None) -> None:
        self.title, self.plan = title, plan
        self.bars: list[ProgressBar] = []
        self.last: ProgressBar | None = None
        self._start = time.monotonic()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """Render the line, no wider than the terminal."""
        bar = self.bars[-1] if self.bars else self.last
        if bar is None:
            yield Text(f"{self.title}  {format_duration(time.monotonic() - self._start)}", no_wrap=True, overflow="ellipsis")
        else:
            yield bar.render(options.max_width)


class ProgressBar:
    """One progress bar: call `advance` after each item, with a short remark such as the loss.

    Attributes:
        name: what is going on.
        size: the number of items of the next `advance`; `tick` counts fractions of them.
    """

    def __init__(self, line: ProgressLine, name: str, total: int | None, done: int) -> None:
        self.size, self.remark = 1, ""
        self._total, self._base = total, done
        self._pace = Pace(total or 1, done)
        self._plan = line.plan
        self._step = self._plan.enter(name) if self._plan else None
        self.name = (self._step and self._step.title) or name
        self._start = time.monotonic()
        self._last_write, self._last_line = -1.0, self._start
        self._write_file()

    def advance(self, steps: int = 1, remark: str | None = None) -> None:
        """Count items that are done."""
        self._base += steps
        self._pace.move(self._base)
        self._show(remark)

    def skip(self, steps: int) -> None:
        """Count items that took no work; the time left does not depend on them."""
        self._base += steps
        self._pace.skip(self._base - self._pace.done)
        self._show(None)

    def tick(self, fraction: float) -> None:
        """Count a fraction of the next `size` items; it never goes back."""
        done = min(self._base + min(fraction, 0.99) * self.size, self._total or 1)
        if done > self._pace.done:
            self._pace.move(done)
            self._show(None)

    def note(self, remark: str) -> None:
        """Change the remark."""
        self._show(remark)

    def finish(self) -> None:
        """Remember the pace for later steps of the run."""
        if self._plan and self._step:
            self._plan.finish(self._step, self._pace)

    def left(self) -> float | None:
        """Seconds left, of the run if its steps are planned, else of this bar; None if not known, or if it takes longer."""
        left = self._plan.left(self._step, self._pace) if self._plan else self._pace.left()
        return None if left is not None and left < 0.5 and self._pace.done < self._pace.total else left

    @property
    def heading(self) -> str:
        """The number of the step, and the name."""
        return ", ".join(filter(None, (self._step_text(), self.name)))

    def _step_text(self) -> str:
        return f"step {self._plan.number} of {len(self._plan.steps)}" if self._plan and self._plan.number else ""

    def _count(self) -> str:
        """How many items are done; the seconds so far where they cannot be counted."""
        if self._total is None:
            return format_duration(time.monotonic() - self._start)
        return f"{int(self._pace.done + 1e-6)}/{self._total}"

    def render(self, width: int) -> Text:
        """The bar as one line; a narrow terminal loses the remark first, then the bar, and never the time left."""
        left = self.left()
        ends = [self._count(), "" if left is None else f"{format_duration(left)} left"]
        start, end = "  ".join(filter(None, (self._step_text(), self.name))), "  ".join(filter(None, ends))
        room = width - len(end) - 2
        if len(start) > room:
            start = f"{start[: max(room - 1, 0)]}…"
        space = width - len(start) - len(end) - 4
        with_remark = space - len(self.remark) - 2
        length = 0 if self._total is None else min(with_remark if with_remark >= SHORTEST_BAR else space, LONGEST_BAR)
        length = length if length >= SHORTEST_BAR else 0
        filled = round(length * self._pace.done / self._pace.total)
        text = Text(no_wrap=True, overflow="crop").append(start).append("  " if length else "")
        text.append("━" * filled, "green").append("━" * (length - filled), "bright_black").append("  ").append(end)
        if self.remark and len(text) + 2 + len(self.remark) <= width:
            text.append(f"  {self.remark}", "dim")
        return text

    def _show(self, remark: str | None) -> None:
        if remark is not None:
            self.remark = remark
        self._write_file()
        self._print_line()

    def _print_line(self) -> None:
        """Print a line where there is no terminal, at most one in `EVERY` seconds."""
        now = time.monotonic()
        if not console.is_terminal and now - self._last_line >= EVERY and self._pace.done < self._pace.total:
            self._last_line = now
            count, left = self._count().replace("/", " of "), self.left()
            parts = [f"{self.heading}: {count}", left and f"{format_duration(left)} left", self.remark]
            console.print(", ".join(part for part in parts if part), highlight=False, markup=False, soft_wrap=True)

    def _write_file(self) -> None:
        """Write the progress file, at most once a second; a reader finds it complete."""
        path, now = _file.get(), time.monotonic()
        if path is not None and now - self._last_write >= 1:
            self._last_write = now
            done = int(self._pace.done + 1e-6)
            state = {"stage": self.name, "done": done, "total": self._pace.total, "left": self.left()}
            if self._plan:
                steps = {"step": self._plan.number, "steps": len(self._plan.steps)}
                state |= steps | {"elapsed": self._plan.elapsed, "time": time.time()}
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_text(json.dumps(state), encoding="utf-8")
            with suppress(PermissionError):  # of Windows, while another process reads it; the next one is a second away
                temporary.replace(path)


@contextmanager
def progress_line(title: str) -> Iterator[ProgressLine]:
    """Show one line for all progress bars in this block, and the title with the seconds before the first of them.

    Without a terminal the title is printed if no bar has begun after two seconds.
    """
    outer = _line.get()
    if outer is not None:
        yield outer
        return
    line = ProgressLine(title)
    token = _line.set(line)
    timer = threading.Timer(SILENCE, lambda: None if line.bars else console.print(title, highlight=False, markup=False))
    timer.daemon = True
    live = Live(line, console=console, transient=True, refresh_per_second=4, redirect_stdout=sys.stdout.isatty())
    try:
        if title and not console.is_terminal:
            timer.start()
        with live if console.is_terminal else nullcontext():
            yield line
    finally:
        timer.cancel()
        _line.reset(token)


@contextmanager
def planned_steps(steps: Sequence[PlannedStep]) -> Iterator[None]:
    """Let the progress bars of these names in this block say "step 2 of 5", and the time left in all steps."""
    with progress_line("") as line:
        earlier, line.plan = line.plan, RunPlan(steps)
        try:
            yield
        finally:
            line.plan = earlier


@contextmanager
def progress_bar(name: str, total: int | None, done: int = 0) -> Iterator[ProgressBar]:
    """Show a progress bar while the block runs; without a terminal, a line at the start and one now and then.

    Args:
        name: what is going on; if it is a planned step, the bar says its number.
        total: the number of items; None for something that cannot be counted.
        done: the number of items that are done already.
    """
    with progress_line("") as line:
        bar = ProgressBar(line, name, total, done)
        line.bars.append(bar)
        if not console.is_terminal:
            console.print(bar.heading + ("" if total is None else f": {total - done} to do"), highlight=False, markup=False)
        try:
            yield bar
            bar.finish()
        finally:
            line.bars.remove(bar)
            line.last = bar


def tick(fraction: float) -> None:
    """Count a fraction of the next items of the innermost progress bar; nothing happens without a bar.

    Args:
        fraction: 0 to 1, within the part that `part_of_step` sets.
    """
    line = _line.get()
    if line is not None and line.bars:
        start, end = _part.get()
        line.bars[-1].tick(start + (end - start) * fraction)


@contextmanager
def part_of_step(start: float, end: float) -> Iterator[None]:
    """Let every `tick` in this block count from `start` to `end` of what it would count."""
    outer_start, outer_end = _part.get()
    length = outer_end - outer_start
    token = _part.set((outer_start + length * start, outer_start + length * end))
    try:
        yield
    finally:
        _part.reset(token)


def note(remark: str) -> None:
    """Change the remark of the innermost progress bar; nothing happens without a bar."""
    line = _line.get()
    if line is not None and line.bars:
        line.bars[-1].note(remark)


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
