"""The progress of a sweep's runs, read from their folders by the process that started them, whatever launcher runs them."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from rich.live import Live
from rich.table import Table
from rich.text import Text

from unlearnbench.console import build_table, format_duration, format_number, progress_file, table_console
from unlearnbench.results.run import Run, load_run, natural_order
from unlearnbench.sweeps.hydra_settings import planned_runs

OBJECTIVES = (("forget_accuracy", "forget"), ("integrity_norm", "retain"))
PROGRESS = ".progress.json"


@contextmanager
def redirected_to_log(folder: Path, command: str) -> Iterator[None]:
    """Do a run of a sweep: its output goes to log.txt, its progress bars to a file that `monitored` reads.

    Args:
        folder: the run's folder.
        command: the command line for this run alone, for its run.json; the process may belong to a launcher.
    """
    argv = sys.argv
    with (folder / "log.txt").open("a", encoding="utf-8", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
        sys.argv = command.split(" ")
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
        state: running, done or failed.
        numbers: forget accuracy and integrity_norm; None if not measured yet.
        seconds: the duration, once it has ended.
        error: why it failed.
        stage: the current stage, such as "unlearn".
        progress: steps done in that stage, such as "12/200".
        left: seconds left in that stage.
    """

    name: str
    state: str
    numbers: tuple[float | None, ...] = (None,) * len(OBJECTIVES)
    seconds: float | None = None
    error: str = ""
    stage: str = "starts"
    progress: str = ""
    left: float | None = None


def objectives(run: Run) -> tuple[float | None, ...]:
    """Forget accuracy on forget prompts and integrity_norm on retain prompts; None if not measured."""
    values = {(value.metric, value.split): value.unlearned for value in run.values[::-1]}
    return tuple(values.get(objective) for objective in OBJECTIVES)


def read_status(folder: Path) -> RunStatus:
    """The state of the run in a folder."""
    if not (folder / "run.json").is_file():
        return RunStatus(folder.name, "running")
    run = load_run(folder)
    if run.log["status"] != "started":
        state = "done" if run.log["status"] == "done" else "failed"
        error = str(run.log.get("error", "")).partition("\n")[0]
        return RunStatus(folder.name, state, objectives(run), run.log.get("seconds"), error)
    try:
        bar = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return RunStatus(folder.name, "running", objectives(run))
    progress = f"{bar['done']:.0f}/{bar['total']:.0f}"
    return RunStatus(folder.name, "running", objectives(run), stage=bar["stage"], progress=progress, left=bar["left"])


class SweepMonitor:
    """Reads the runs in a sweep's folder; an unchanged run is not read again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.total: int | None = None
        self._ended: dict[Path, tuple[int, RunStatus]] = {}

    def read(self) -> list[RunStatus]:
        """Every run that has begun, in the order of their numbers."""
        self.total = self.total or planned_runs(self.folder)
        runs = []
        for log in self.folder.glob("*/log.txt"):
            path = log.with_name("run.json")
            changed = path.stat().st_mtime_ns if path.is_file() else 0
            ended = self._ended.get(path)
            run = ended[1] if ended and ended[0] == changed else read_status(path.parent)
            if run.state != "running":
                self._ended[path] = changed, run
            runs.append(run)
        return sorted(runs, key=lambda run: natural_order(Path(run.name)))

    def summary(self, runs: Sequence[RunStatus]) -> str:
        """One line about all runs.

        The time left follows from the mean duration of the finished runs; runs under way count as half done.
        """
        count = {state: sum(run.state == state for run in runs) for state in ("done", "failed", "running")}
        waiting = max((self.total or 0) - len(runs), 0)
        parts = [f"{number} {state}" for state, number in {**count, "waiting": waiting}.items() if number]
        durations = [run.seconds for run in runs if run.state == "done" and run.seconds]
        if durations and count["running"]:
            left = sum(durations) / len(durations) * (waiting + count["running"] / 2) / count["running"]
            parts.append(f"about {format_duration(left)} left")
        return f"of {self.total or '?'} runs: " + (", ".join(parts) or "none has begun")


def status_table(runs: Sequence[RunStatus], caption: str, height: int) -> Table:
    """A table of the runs with at most `height` lines: first running ones, then failed ones, then the newest."""
    rank = {"running": 0, "failed": 1, "done": 2}
    by_rank = sorted(range(len(runs)), key=lambda i: (rank[runs[i].state], -i))
    rows = [_status_cells(runs[i]) for i in sorted(by_rank[: max(height - 3, 1)])]
    head = ("run", "state", "stage", "done", "left", *(metric for metric, _ in OBJECTIVES))
    return build_table(head, rows, ("run", "state", "stage"), caption=caption, max_width=48)


def _status_cells(run: RunStatus) -> list[str | Text]:
    """The cells of one run: its stage, the reason for its failure, or its duration."""
    stage = {"failed": run.error, "done": format_duration(run.seconds)}.get(run.state, run.stage)
    state = Text(run.state, {"failed": "red", "done": "green"}.get(run.state, ""))
    return [run.name, state, stage, run.progress, format_duration(run.left), *map(format_number, run.numbers)]


def status_line(run: RunStatus) -> str:
    """The line about a run that began or ended."""
    if run.state == "running":
        return f"{run.name}: started"
    if run.state == "failed":
        return f"{run.name}: failed: {run.error}"
    numbers = [f"{metric} {format_number(x)}" for (metric, _), x in zip(OBJECTIVES, run.numbers, strict=True) if x is not None]
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
            live.update(status_table(runs, monitor.summary(runs), console.height - 1), refresh=True)
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
