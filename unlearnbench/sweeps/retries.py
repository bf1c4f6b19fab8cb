"""Runs of a sweep whose process was killed: which wait, and when each is tried again."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from unlearnbench.results.run import load_run
from unlearnbench.storage.atomic import remove_path, write_text

LEFT_OUT = ".left_out"  # in a sweep's folder, for the launcher's processes: the names of runs, a line each


class KilledRunRetries:
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
        write_text(self.folder / LEFT_OUT, "\n".join(self._waiting + self._given_up))
        return True

    def end(self) -> None:
        """Nothing is left out any more."""
        remove_path(self.folder / LEFT_OUT)


def is_left_out(folder: Path) -> bool:
    """Does the sweep do without the run of this folder for now?"""
    with suppress(FileNotFoundError):
        return folder.name in (folder.parent / LEFT_OUT).read_text(encoding="utf-8").split("\n")
    return False
