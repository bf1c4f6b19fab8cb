"""How the runs of a sweep stand, read from their folders by the process that started it, whatever launcher runs them."""

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
    """Do a run of a sweep: what it prints goes to log.txt, its bars to a file that `watched` reads.

    Args:
        folder: the run's.
        command: what does this one run, for its run.json; the process may be a launcher's.
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
    """A run from outside.

    Attributes:
        name: its folder's.
        state: running, done or failed.
        numbers: forget accuracy and integrity_norm, as far as they are measured.
        seconds: that it took, once it ended.
        error: why it failed.
        stage: what it is doing, such as "unlearn".
        share: how far it is with that, such as "12/200".
        left: seconds left of that stage.
    """

    name: str
    state: str
    numbers: tuple[float | None, ...] = (None,) * len(OBJECTIVES)
    seconds: float | None = None
    error: str = ""
    stage: str = "starts"
    share: str = ""
    left: float | None = None


def objectives(run: Run) -> tuple[float | None, ...]:
    """Forget accuracy on forget prompts and integrity_norm on retain prompts; None for what was not measured."""
    found = {(value.metric, value.split): value.unlearned for value in run.values[::-1]}
    return tuple(found.get(wanted) for wanted in OBJECTIVES)


def read_status(folder: Path) -> RunStatus:
    """How one run stands."""
    if not (folder / "run.json").is_file():
        return RunStatus(folder.name, "running")
    run = load_run(folder)
    if run.log["status"] != "started":
        state = "done" if run.log["status"] == "done" else "failed"
        return RunStatus(
            folder.name, state, objectives(run), run.log.get("seconds"), str(run.log.get("error", "")).partition("\n")[0]
        )
    try:
        told = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return RunStatus(folder.name, "running", objectives(run))
    share = f"{told['done']:.0f}/{told['total']:.0f}"
    return RunStatus(folder.name, "running", objectives(run), stage=told["stage"], share=share, left=told["left"])


class SweepMonitor:
    """Looks into a sweep's folder; a run that has not changed since is not read again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.total: int | None = None
        self._ended: dict[Path, tuple[int, RunStatus]] = {}

    def look(self) -> list[RunStatus]:
        """Every run that has begun, in the order of their numbers."""
        self.total = self.total or planned_runs(self.folder)
        found = []
        for log in self.folder.glob("*/log.txt"):
            path = log.with_name("run.json")
            changed = path.stat().st_mtime_ns if path.is_file() else 0
            before = self._ended.get(path)
            seen = before[1] if before and before[0] == changed else read_status(path.parent)
            if seen.state != "running":
                self._ended[path] = changed, seen
            found.append(seen)
        return sorted(found, key=lambda seen: natural_order(Path(seen.name)))

    def told(self, runs: Sequence[RunStatus]) -> str:
        """One line on all of them; time left: by the mean of those that are done, as though those that run were half done."""
        count = {state: sum(seen.state == state for seen in runs) for state in ("done", "failed", "running")}
        waiting = max((self.total or 0) - len(runs), 0)
        words = [f"{runs} {state}" for state, runs in {**count, "waiting": waiting}.items() if runs]
        took = [seen.seconds for seen in runs if seen.state == "done" and seen.seconds]
        if took and count["running"]:
            rest = sum(took) / len(took) * (waiting + count["running"] / 2) / count["running"]
            words.append(f"about {format_duration(rest)} left")
        return f"of {self.total or '?'} runs: " + (", ".join(words) or "none has begun")


def status_table(runs: Sequence[RunStatus], told: str, height: int) -> Table:
    """The runs as they stand, at most `height` lines: those that run, then those that failed, then the newest."""
    rank = {"running": 0, "failed": 1, "done": 2}
    by_rank = sorted(range(len(runs)), key=lambda i: (rank[runs[i].state], -i))
    rows = [_status_cells(runs[i]) for i in sorted(by_rank[: max(height - 3, 1)])]
    head = ("run", "state", "stage", "done", "left", *(metric for metric, _ in OBJECTIVES))
    return build_table(head, rows, ("run", "state", "stage"), caption=told, max_width=48)


def _status_cells(run: RunStatus) -> list[str | Text]:
    """The cells of one run: what it does, why it failed, or how long it took."""
    stage = {"failed": run.error, "done": format_duration(run.seconds)}.get(run.state, run.stage)
    state = Text(run.state, {"failed": "red", "done": "green"}.get(run.state, ""))
    return [run.name, state, stage, run.share, format_duration(run.left), *map(format_number, run.numbers)]


def status_line(seen: RunStatus) -> str:
    """What is printed of a run that began or ended."""
    if seen.state == "running":
        return f"{seen.name}: started"
    if seen.state == "failed":
        return f"{seen.name}: failed: {seen.error}"
    numbers = [f"{metric} {format_number(x)}" for (metric, _), x in zip(OBJECTIVES, seen.numbers, strict=True) if x is not None]
    return f"{seen.name}: " + ", ".join([f"done in {format_duration(seen.seconds)}", *numbers])


@contextmanager
def monitored(folder: Path, every: float = 0.5) -> Iterator[None]:
    """Show how the runs of a sweep stand while the block runs: a live table, or without a terminal a line at each change.

    Args:
        folder: the sweep's.
        every: seconds between two looks.
    """
    console, watch, over = table_console(), SweepMonitor(folder), threading.Event()
    live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
    states = {seen.name: seen.state for seen in watch.look()}

    def show() -> None:
        runs = watch.look()
        if console.is_terminal:
            live.update(status_table(runs, watch.told(runs), console.height - 1), refresh=True)
            return
        changed = [seen for seen in runs if states.get(seen.name) != seen.state]
        for seen in changed:
            console.print(Text(status_line(seen)), soft_wrap=True)
        if any(seen.state != "running" for seen in changed):
            console.print(Text(watch.told(runs)), soft_wrap=True)
        states.update({seen.name: seen.state for seen in changed})

    def keep_looking() -> None:
        while not over.wait(every):
            show()

    looking = threading.Thread(target=keep_looking, daemon=True)
    with live if console.is_terminal else nullcontext():
        looking.start()
        try:
            yield
        finally:
            over.set()
            looking.join()
            show()
