"""The progress of a sweep's runs, read from their folders by the process that started them, whatever launcher runs them."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from rich.live import Live
from rich.table import Table
from rich.text import Text

from unlearnbench.console import format_duration, progress_file
from unlearnbench.console.tables import build_table, format_number, table_console
from unlearnbench.results.metric_names import NAMES
from unlearnbench.results.run import Run, load_run, natural_order
from unlearnbench.sweeps.hydra_settings import common_overrides, planned_runs

OBJECTIVES = (("forget_accuracy", "forget"), ("integrity_norm", "retain"))
SHORT_NAMES = ("detected", "integrity")  # of the objectives, in a narrow terminal
PROGRESS = ".progress.json"
TEXT_COLUMNS = ("run", "settings", "state", "stage")
WIDE_TABLE = 100  # the least width of a terminal for the whole names of the objectives
LONGEST_TEXT, SHORTEST_TEXT = 48, 6
NAMED_BY_FOLDER = ("algo=", "concept=", "hydra.", "resume=")
STATES = ("done", "failed", "interrupted", "stopped", "running")


@contextmanager
def redirected_to_log(folder: Path, command: Sequence[str]) -> Iterator[None]:
    """Do a run of a sweep: its output goes to log.txt, its progress bars to a file that `monitored` reads.

    Args:
        folder: the run's folder.
        command: the words of the command line for this run alone, for its run.json; the process may belong to a launcher.
    """
    argv = sys.argv
    with (folder / "log.txt").open("a", encoding="utf-8", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
        sys.argv = list(command)
        try:
            with progress_file(folder / PROGRESS):
                yield
        finally:
            sys.argv = argv


@dataclass(frozen=True)
class RunStatus:
    """The state of a run, as its files show it.

    Attributes:
        name: the name of its folder.
        state: running, done, failed, interrupted or stopped (see `Run.status`).
        numbers: forget accuracy and integrity_norm; None if not measured yet.
        seconds: the duration, once it has ended.
        error: why it failed.
        stage: the current stage, such as "unlearn".
        progress: steps done in that stage, such as "12/200".
        left: seconds left in the run.
        elapsed: seconds since it began.
        settings: its own settings in the sweep, such as "seed=0".
    """

    name: str
    state: str
    numbers: tuple[float | None, ...] = (None,) * len(OBJECTIVES)
    seconds: float | None = None
    error: str = ""
    stage: str = "starts"
    progress: str = ""
    left: float | None = None
    elapsed: float | None = None
    settings: str = ""


def objectives(run: Run) -> tuple[float | None, ...]:
    """Forget accuracy on forget prompts and integrity_norm on retain prompts; None if not measured."""
    values = {(value.metric, value.split): value.unlearned for value in run.values[::-1]}
    return tuple(values.get(objective) for objective in OBJECTIVES)


def read_status(folder: Path) -> RunStatus:
    """The state of the run in a folder."""
    if not (folder / "run.json").is_file():
        return RunStatus(folder.name, "running")
    run = load_run(folder)
    if (state := run.status) != "running":
        error = str(run.log.get("error", "")).partition("\n")[0] if state == "failed" else ""
        return RunStatus(folder.name, state, objectives(run), run.log.get("seconds"), error)
    try:
        bar = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return RunStatus(folder.name, "running", objectives(run))
    progress = f"{bar['done']:.0f}/{bar['total']:.0f}"
    stage = f"{bar['step']}/{bar['steps']} {bar['stage']}" if "step" in bar else bar["stage"]
    age = max(time.time() - bar.get("time", time.time()), 0.0)
    left = None if bar["left"] is None else max(bar["left"] - age, 0.0) if "time" in bar else bar["left"]
    return RunStatus(
        folder.name, "running", objectives(run), stage=stage, progress=progress, left=left, elapsed=bar.get("elapsed")
    )


class SweepMonitor:
    """Reads the runs in a sweep's folder; an unchanged run is not read again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.total: int | None = None
        self._common: set[str] | None = None
        self._ended: dict[Path, tuple[int, RunStatus]] = {}

    def read(self) -> list[RunStatus]:
        """Every run that has begun, in the order of their numbers."""
        self.total = self.total or planned_runs(self.folder)
        runs = []
        for log in self.folder.glob("*/log.txt"):
            path = log.with_name("run.json")
            changed = path.stat().st_mtime_ns if path.is_file() else 0
            ended = self._ended.get(path)
            run = ended[1] if ended and ended[0] == changed else self._with_settings(read_status(path.parent))
            if run.state not in ("running", "stopped"):
                self._ended[path] = changed, run
            runs.append(run)
        return sorted(runs, key=lambda run: natural_order(Path(run.name)))

    def _with_settings(self, run: RunStatus) -> RunStatus:
        """The run with those of its overrides that the sweep varies; its folder's name has algorithm and concept."""
        self._common = common_overrides(self.folder) if self._common is None else self._common
        with suppress(OSError, ValueError):
            overrides = json.loads((self.folder / run.name / "run.json").read_text(encoding="utf-8")).get("overrides", [])
            own = [text for text in overrides if self._common is not None and text not in self._common]
            return replace(run, settings=" ".join(text for text in own if not text.startswith(NAMED_BY_FOLDER)))
        return run

    def summary(self, runs: Sequence[RunStatus]) -> str:
        """One line about all runs.

        The time left is that of the runs under way, plus the mean duration of a run for each that waits, shared by those that
        run at the same time. A run that does not know its time left counts as half done. It is never less than a row's.
        """
        count = {state: sum(run.state == state for run in runs) for state in STATES}
        waiting = max((self.total or 0) - len(runs), 0)
        parts = [f"{number} {state}" for state, number in {**count, "waiting": waiting}.items() if number]
        left = _time_left(runs, waiting)
        if left is not None:
            parts.append(f"about {format_duration(left)} left")
        return f"of {self.total or '?'} runs: " + (", ".join(parts) or "none has begun")


def _time_left(runs: Sequence[RunStatus], waiting: int) -> float | None:
    """Seconds until the last run ends; None if no duration is known."""
    running = [run for run in runs if run.state == "running"]
    durations = [run.seconds for run in runs if run.state == "done" and run.seconds]
    durations = durations or [run.elapsed + run.left for run in running if run.elapsed is not None and run.left is not None]
    if not durations or not running:
        return None
    mean = sum(durations) / len(durations)
    left = [mean / 2 if run.left is None else run.left for run in running]
    return max((sum(left) + waiting * mean) / len(running), *(run.left or 0.0 for run in running))


def status_table(runs: Sequence[RunStatus], caption: str, height: int, width: int = 120) -> Table:
    """A table of the runs with at most `height` lines: first running ones, then failed ones, then the newest.

    Args:
        runs: all of them.
        caption: the line below the table.
        height: the largest number of lines.
        width: the width of the terminal; a narrow one cuts texts, never numbers.
    """
    rank = {"running": 0, "failed": 1, "interrupted": 1, "stopped": 1, "done": 2}
    by_rank = sorted(range(len(runs)), key=lambda i: (rank[runs[i].state], -i))
    shown = [runs[i] for i in sorted(by_rank[: max(height - 3, 1)])]
    names = SHORT_NAMES if width < WIDE_TABLE else [NAMES.get(metric, metric) for metric, _ in OBJECTIVES]
    head, rows = ["run", "settings", "state", "stage", "done", "left", *names], [_status_cells(run) for run in shown]
    if not any(run.settings for run in runs):
        head, rows = [head[0], *head[2:]], [[row[0], *row[2:]] for row in rows]
    return build_table(head, _cut_texts(head, rows, width), TEXT_COLUMNS, caption=caption)


def _cut_texts(head: Sequence[str], rows: Sequence[Sequence[str | Text]], width: int) -> list[list[str | Text]]:
    """The cells, with the stages, then the names and settings, cut so that the rest keeps its whole width."""
    limits = [min(max([len(name), *(len(row[i]) for row in rows)]), LONGEST_TEXT) for i, name in enumerate(head)]
    for name in ("stage", "run", "settings"):
        if name in head:
            i = head.index(name)
            limits[i] = max(limits[i] - max(sum(limits) + 2 * (len(head) - 1) - width, 0), SHORTEST_TEXT)
    return [[_cut(cell, limit) for cell, limit in zip(row, limits, strict=True)] for row in rows]


def _cut(cell: str | Text, limit: int) -> str | Text:
    return cell if len(cell) <= limit or isinstance(cell, Text) else f"{cell[: limit - 1]}…"


def _status_cells(run: RunStatus) -> list[str | Text]:
    """The cells of one run: its stage, the reason for its failure, or its duration."""
    stage = {"running": run.stage, "done": format_duration(run.seconds)}.get(run.state, run.error)
    state = Text(run.state, {"failed": "red", "interrupted": "yellow", "stopped": "yellow", "done": "green"}.get(run.state, ""))
    return [run.name, run.settings, state, stage, run.progress, format_duration(run.left), *map(format_number, run.numbers)]


def status_line(run: RunStatus) -> str:
    """The line about a run that began or ended."""
    if run.state == "running":
        return f"{run.name}: started" + (f" ({run.settings})" if run.settings else "")
    if run.state != "done":
        return f"{run.name}: {run.state}" + (f": {run.error}" if run.error else "")
    numbers = [
        f"{NAMES.get(metric, metric)} {format_number(x)}"
        for (metric, _), x in zip(OBJECTIVES, run.numbers, strict=True)
        if x is not None
    ]
    return f"{run.name}: " + ", ".join([f"done in {format_duration(run.seconds)}", *numbers])


@contextmanager
def monitored(folder: Path, every: float = 0.5) -> Iterator[None]:
    """Show the runs of a sweep while the block runs: a live table, or without a terminal a line at each change.

    Args:
        folder: the sweep's folder.
        every: seconds between two readings.
    """
    console, monitor, stop = table_console(), SweepMonitor(folder), threading.Event()
    live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
    states = {run.name: run.state for run in monitor.read()}

    def show() -> None:
        runs = monitor.read()
        if console.is_terminal:
            live.update(status_table(runs, monitor.summary(runs), console.height - 1, console.width), refresh=True)
            return
        changed = [run for run in runs if states.get(run.name) != run.state]
        for run in changed:
            console.print(Text(status_line(run)), soft_wrap=True)
        if any(run.state != "running" for run in changed):
            console.print(Text(monitor.summary(runs)), soft_wrap=True)
        states.update({run.name: run.state for run in changed})

    def show_until_stop() -> None:
        while not stop.wait(every):
            show()

    thread = threading.Thread(target=show_until_stop, daemon=True)
    with live if console.is_terminal else nullcontext():
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            show()
