"""The steps of a run, and the time left in it, from all ticks so far."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PlannedStep:
    """A step of a run.

    Attributes:
        name: the name of its progress bar; its first word is its kind, such as "sample".
        work: how much there is to do, in passes of the denoiser for one image; 0 if nothing is known.
        title: what the progress bar shows; by default the name.
    """

    name: str
    work: float = 0.0
    title: str = ""

    @property
    def kind(self) -> str:
        """Steps of one kind work at one pace."""
        return self.name.partition(" ")[0]


class Pace:
    """Finished and remaining work of one progress bar, with the seconds that the finished part took.

    Attributes:
        total: the number of items.
        done: the finished items, fractions of the present one included.
    """

    def __init__(self, total: float, done: float) -> None:
        self.total, self.done = total, done
        self._skipped = done
        self._start = self._last = time.monotonic()

    def move(self, done: float) -> None:
        """Note the number of finished items."""
        self.done, self._last = done, time.monotonic()

    def skip(self, items: float) -> None:
        """Count items that took no work, such as those of a cache."""
        self.done, self._skipped = self.done + items, self._skipped + items

    @property
    def worked(self) -> float:
        """The items that took work."""
        return self.done - self._skipped

    @property
    def seconds(self) -> float:
        """The seconds from the start to the last tick."""
        return self._last - self._start

    def remaining(self) -> float | None:
        """Seconds left at the last tick, by the mean of all ticks; None before the first."""
        return self.seconds / self.worked * (self.total - self.done) if self.worked > 0 else None

    def left(self) -> float | None:
        """Seconds left now: they count down between two ticks."""
        remaining = self.remaining()
        return None if remaining is None else max(remaining - (time.monotonic() - self._last), 0.0)


class RunPlan:
    """The steps of a run: which one is under way, and how long all that remain will take.

    Attributes:
        steps: all steps, in order.
        number: the number of the present step, from 1; 0 before the first.
    """

    def __init__(self, steps: Sequence[PlannedStep]) -> None:
        self.steps, self.number = list(steps), 0
        self._finished = 0
        self._start = time.monotonic()
        self._work: dict[str, float] = {}
        self._seconds: dict[str, float] = {}

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._start

    def enter(self, name: str) -> PlannedStep | None:
        """Go on to the next unfinished step of this name; None if there is none."""
        first = max(self.number - 1, self._finished)
        for number, step in enumerate(self.steps[first:], first + 1):
            if step.name == name:
                self.number = number
                return step
        return None

    def finish(self, step: PlannedStep, pace: Pace) -> None:
        """Remember how fast a step was."""
        self._finished = self.number
        work, seconds = self._measured(step, pace)
        self._work[step.kind] = self._work.get(step.kind, 0.0) + work
        self._seconds[step.kind] = self._seconds.get(step.kind, 0.0) + seconds

    def left(self, step: PlannedStep | None, pace: Pace) -> float | None:
        """Seconds left in the present step and in all later ones, of which each works at the pace of its kind.

        A kind that has not been seen yet works at the mean pace of the others. None as long as no pace is known.

        Args:
            step: the present step; None if the plan does not hold it.
            pace: that of its progress bar.
        """
        own = pace.left()
        if own is None and not any(self._work.values()):
            return None
        work, seconds = dict(self._work), dict(self._seconds)
        if step is not None:
            measured = self._measured(step, pace)
            work[step.kind] = work.get(step.kind, 0.0) + measured[0]
            seconds[step.kind] = seconds.get(step.kind, 0.0) + measured[1]
        mean = sum(seconds.values()) / sum(work.values()) if sum(work.values()) else 0.0
        paces = {kind: seconds[kind] / work[kind] for kind in work if work[kind]}
        if own is None and step is not None:
            own = step.work * paces.get(step.kind, mean) * (1 - pace.done / max(pace.total, 1))
        return (own or 0.0) + sum(later.work * paces.get(later.kind, mean) for later in self.steps[self.number :])

    def _measured(self, step: PlannedStep, pace: Pace) -> tuple[float, float]:
        """The work done in a step, and its seconds; none if everything was skipped."""
        if not pace.worked or not step.work:
            return 0.0, 0.0
        return step.work * pace.worked / pace.total, pace.seconds
