"""Runs of a sweep whose process was killed: which are postponed, and when each gets another try."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from unlearnbench.results.run import load_run
from unlearnbench.storage.atomic import remove_path, write_text

LEFT_OUT = ".left_out"  # in a sweep's folder, for the processes of the launcher: the names of runs, a line each


class KilledRunRetries:
    """The runs that a sweep leaves out after a process of its launcher was killed, when joblib ends all others with it.

    The runs that were under way are postponed until the rest is done. Then each gets one try alone; a run that is killed
    again is given up, and its run.json says so.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._postponed: list[str] = []
        self._given_up: list[str] = []
        self._alone: str | None = None
        self.end()

    def try_again(self, killed: bool) -> bool:
        """Whether the sweep is to be started again after a try; `is_left_out` then tells which runs it leaves out.

        Args:
            killed: whether a process of the launcher was killed in that try.
        """
        if not killed and not self._postponed:
            return False
        runs = [load_run(path.parent) for path in sorted(self.folder.glob("*/run.json"))]
        unfinished = {run.folder.name: run for run in runs if run.log["status"] == "started"}
        if killed and self._alone in unfinished:
            run = unfinished[self._alone]
            run.log |= {"status": "error", "error": "its process was killed (out of memory?)"}
            run.write()
            self._given_up.append(self._alone)
        elif killed and self._alone is None:
            newly_unfinished = unfinished.keys() - self._postponed
            if not newly_unfinished:
                return False
            self._postponed += sorted(newly_unfinished)
        if self._alone is not None or not killed:
            if not self._postponed:
                return False
            self._alone = self._postponed.pop(0)
        write_text(self.folder / LEFT_OUT, "\n".join(self._postponed + self._given_up))
        return True

    def end(self) -> None:
        """Leave out no run any more."""
        remove_path(self.folder / LEFT_OUT)


def is_left_out(folder: Path) -> bool:
    """Whether the sweep leaves out the run of this folder for now."""
    with suppress(FileNotFoundError):
        return folder.name in (folder.parent / LEFT_OUT).read_text(encoding="utf-8").split("\n")
    return False
