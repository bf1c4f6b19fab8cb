"""How the runs of a sweep stand, read from their folders by the process that started it, whatever launcher runs them."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from unlearnbench import files
from unlearnbench.progress import clock, screen, told_in
from unlearnbench.results import Run, by_number, load_run, number

OBJECTIVES = (("forget_accuracy", "forget"), ("integrity_norm", "retain"))
PROGRESS = ".progress.json"
LEFT_OUT = ".left_out"  # in a sweep's folder, for the launcher's processes: the names of runs, a line each


@contextmanager
def quietly(folder: Path, command: str) -> Iterator[None]:
    """Do a run of a sweep: what it prints goes to log.txt, its bars to a file that `watched` reads.

    Args:
        folder: the run's.
        command: what does this one run, for its run.json; the process may be a launcher's.
    """
    argv = sys.argv
    with (folder / "log.txt").open("a", encoding="utf-8", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
        sys.argv = command.split(" ")
        try:
            with told_in(folder / PROGRESS):
                yield
        finally:
            sys.argv = argv


@dataclass(frozen=True)
class Seen:
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


def look(folder: Path) -> Seen:
    """How one run stands."""
    if not (folder / "run.json").is_file():
        return Seen(folder.name, "running")
    run = load_run(folder)
    if run.log["status"] != "started":
        state = "done" if run.log["status"] == "done" else "failed"
        return Seen(folder.name, state, objectives(run), run.log.get("seconds"), str(run.log.get("error", "")).partition("\n")[0])
    try:
        told = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Seen(folder.name, "running", objectives(run))
    share = f"{told['done']:.0f}/{told['total']:.0f}"
    return Seen(folder.name, "running", objectives(run), stage=told["stage"], share=share, left=told["left"])


class Patience:
    """Which runs a sweep does without when a process of its launcher is killed, and joblib then ends all others with it.

    Those that were under way wait until the rest is done, and then have a try each, alone: one that is killed again is
    given up, and its run.json says so.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._waiting: list[str] = []
        self._given_up: list[str] = []
        self._alone: str | None = None
        self.end()

    def again(self, killed: bool) -> bool:
        """Whether another try of the sweep is to follow one that ended so; `left_out` then knows what it does without."""
        if not killed and not self._waiting:
            return False
        runs = [load_run(path.parent) for path in sorted(self.folder.glob("*/run.json"))]
        started = {run.folder.name: run for run in runs if run.log["status"] == "started"}
        if killed and self._alone in started:
            run = started[self._alone]
            run.log |= {"status": "error", "error": "its process was killed (out of memory?)"}
            run.write()
            self._given_up.append(self._alone)
        elif killed and self._alone is None:
            others = started.keys() - self._waiting
            if not others:
                return False
            self._waiting += sorted(others)
        if self._alone is not None or not killed:
            if not self._waiting:
                return False
            self._alone = self._waiting.pop(0)
        files.write_text(self.folder / LEFT_OUT, "\n".join(self._waiting + self._given_up))
        return True

    def end(self) -> None:
        """Nothing is left out any more."""
        files.remove(self.folder / LEFT_OUT)


@contextmanager
def all_awaited() -> Iterator[None]:
    """Let submitit's launchers wait for every job while the block runs: by themselves they stop at the first that is killed.

    At the end those that were killed are named, with the state that the cluster tells (OUT_OF_MEMORY, say).
    """
    try:
        from submitit.core.core import Job
        from submitit.core.utils import UncompletedJobError
    except ImportError:
        yield
        return
    from hydra.core.utils import JobReturn, JobStatus

    results, killed = Job.results, []

    def awaited(job: Job[Any]) -> list[Any]:
        try:
            return results(job)
        except UncompletedJobError:
            killed.append(f"job {job.job_id} ended without an answer (state {job.state})")
            return [JobReturn(status=JobStatus.COMPLETED)]

    Job.results = awaited  # type: ignore
    try:
        yield
    finally:
        Job.results = results  # type: ignore
        for told in killed:
            print(told, file=sys.stderr)


def left_out(folder: Path) -> bool:
    """Does the sweep do without the run of this folder for now?"""
    with suppress(FileNotFoundError):
        return folder.name in (folder.parent / LEFT_OUT).read_text(encoding="utf-8").split("\n")
    return False


def settings(folder: Path) -> Any:
    """Hydra's own settings of the sweep in this folder, as it wrote them there; None if it has not yet."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = folder / "multirun.yaml"
    with suppress(OSError, YAMLError, OmegaConfBaseException):  # not there, or not written to its end
        found = OmegaConf.load(path)
        if OmegaConf.select(found, "hydra.runtime.choices") is not None:
            return found.hydra
    return None


def given_folders(hydra: Any) -> list[str]:
    """The folders of yaml files that --config-dir added, by Hydra's own settings."""
    return [source.path for source in hydra.runtime.config_sources if "command-line" in source.provider]


def words_of(folder: Path) -> list[str] | None:
    """The words that go on with the sweep in this folder, less resume=true; None if no sweep began there."""
    hydra = settings(folder)
    if hydra is None:
        return None
    own = [word for word in hydra.overrides.hydra if not word.startswith(("hydra.mode=", "hydra.sweep.dir="))]
    task = [word for word in hydra.overrides.task if not word.startswith("resume=")]
    return ["-m", *(f"--config-dir={path}" for path in given_folders(hydra)), *own, *task, f"hydra.sweep.dir={folder}"]


def planned(folder: Path) -> int | None:
    """How many runs the sweep in this folder is to have; None if that is not known yet."""
    hydra = settings(folder)
    if hydra is None or "trials" in hydra.sweeper:
        return hydra and hydra.sweeper.trials
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    words = [*(f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()), *hydra.overrides.task]
    return len(BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), None)[0])


class Watch:
    """Looks into a sweep's folder; a run that has not changed since is not read again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.total: int | None = None
        self._ended: dict[Path, tuple[int, Seen]] = {}

    def look(self) -> list[Seen]:
        """Every run that has begun, in the order of their numbers."""
        self.total = self.total or planned(self.folder)
        found = []
        for log in self.folder.glob("*/log.txt"):
            path = log.with_name("run.json")
            changed = path.stat().st_mtime_ns if path.is_file() else 0
            before = self._ended.get(path)
            seen = before[1] if before and before[0] == changed else look(path.parent)
            if seen.state != "running":
                self._ended[path] = changed, seen
            found.append(seen)
        return sorted(found, key=lambda seen: by_number(Path(seen.name)))

    def told(self, runs: Sequence[Seen]) -> str:
        """One line on all of them; time left: by the mean of those that are done, as though those that run were half done."""
        count = {state: sum(seen.state == state for seen in runs) for state in ("done", "failed", "running")}
        waiting = max((self.total or 0) - len(runs), 0)
        words = [f"{runs} {state}" for state, runs in {**count, "waiting": waiting}.items() if runs]
        took = [seen.seconds for seen in runs if seen.state == "done" and seen.seconds]
        if took and count["running"]:
            rest = sum(took) / len(took) * (waiting + count["running"] / 2) / count["running"]
            words.append(f"about {clock(rest)} left")
        return f"of {self.total or '?'} runs: " + (", ".join(words) or "none has begun")


def table(runs: Sequence[Seen], told: str, height: int) -> Table:
    """The runs as they stand, at most `height` lines: those that run, then those that failed, then the newest."""
    made = Table(box=None, pad_edge=False, caption=told, caption_justify="left")
    for name in ("run", "state", "stage", "done", "left", *(metric for metric, _ in OBJECTIVES)):
        made.add_column(name, justify="left" if name in ("run", "state", "stage") else "right", no_wrap=True, max_width=48)
    rank = {"running": 0, "failed": 1, "done": 2}
    shown = sorted(range(len(runs)), key=lambda i: (rank[runs[i].state], -i))[: max(height - 3, 1)]
    for seen in (runs[i] for i in sorted(shown)):
        stage = seen.error if seen.state == "failed" else clock(seen.seconds) if seen.state == "done" else seen.stage
        state = Text(seen.state, {"failed": "red", "done": "green"}.get(seen.state, ""))
        rest = [stage, seen.share, clock(seen.left), *map(number, seen.numbers)]
        made.add_row(Text(seen.name), state, *map(Text, rest))
    return made


def line(seen: Seen) -> str:
    """What is printed of a run that began or ended."""
    if seen.state == "running":
        return f"{seen.name}: started"
    if seen.state == "failed":
        return f"{seen.name}: failed: {seen.error}"
    numbers = [f"{metric} {number(x)}" for (metric, _), x in zip(OBJECTIVES, seen.numbers, strict=True) if x is not None]
    return f"{seen.name}: " + ", ".join([f"done in {clock(seen.seconds)}", *numbers])


@contextmanager
def watched(folder: Path, every: float = 0.5) -> Iterator[None]:
    """Show how the runs of a sweep stand while the block runs: a live table, or without a terminal a line at each change.

    Args:
        folder: the sweep's.
        every: seconds between two looks.
    """
    console, watch, over = screen(), Watch(folder), threading.Event()
    live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
    states = {seen.name: seen.state for seen in watch.look()}

    def show() -> None:
        runs = watch.look()
        if console.is_terminal:
            live.update(table(runs, watch.told(runs), console.height - 1), refresh=True)
            return
        changed = [seen for seen in runs if states.get(seen.name) != seen.state]
        for seen in changed:
            console.print(Text(line(seen)), soft_wrap=True)
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
