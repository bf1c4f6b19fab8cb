"""The record of a training: a line for each step, and the state from which it goes on after a kill."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from unlearnbench.console import Stopwatch, console
from unlearnbench.storage.atomic import remove_leftovers, remove_path, write_text
from unlearnbench.storage.training_state import load_training_state, save_training_state

if TYPE_CHECKING:
    from unlearnbench.algos.base import Unlearner


HEAD = "step,loss,seconds\n"
SHARE = 20


class Journal:
    """train.csv, and from time to time the state of training beside it, both such that a kill at any moment does no harm.

    A training that goes on from the state is equal, bit for bit, to one that was never stopped: the state is parameters,
    optimizer, generator and what the method says that it keeps (`Unlearner.state`); all else, such as what `begin` finds,
    is made again from the seed.
    """

    def __init__(self, folder: Path, every: float, key: str, lines: int = 0, seconds: float = 0.0) -> None:
        """Begin, or begin again.

        Args:
            folder: the run's.
            every: seconds between two writings of the state, longer where they would take over a twentieth of the time;
                0 for one after every step.
            key: all that the training depends on, as a hash: a state of another key is not taken.
            lines: the lines of train.csv that earlier concepts wrote.
            seconds: the time that they took.

        Attributes:
            seconds: of training, so far, in all tries.
            restored: of which earlier tries spent.
            lines: of train.csv, so far.
        """
        self.path = folder / "training.safetensors"
        self.seconds = Stopwatch(seconds)
        self.lines = lines
        self.restored = 0.0
        self._table, self._every, self._key, self._earlier = folder / "train.csv", every, key, lines
        self._due = self.seconds() + every
        self._open = False

    def __call__(self, step: int, loss: float) -> None:
        """One step is done."""
        self._cut(self._earlier)
        self.lines = self._earlier + step
        with self._table.open("a", encoding="utf-8") as file:
            file.write(f"{self.lines},{loss!r},{self.seconds()}\n")

    def _cut(self, lines: int) -> None:
        """Leave out the lines of an earlier try that are not part of this one; once."""
        if not self._open:
            there = self._table.read_text(encoding="utf-8").splitlines(keepends=True) if self._table.is_file() else []
            write_text(self._table, HEAD + "".join(there[1 : 1 + lines]))
            self._open = True

    def resume(
        self,
        method: Unlearner,
        parameters: Mapping[str, torch.Tensor],
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
    ) -> int:
        """Put the last state back in place; returns how many steps it had done, 0 if there is none to go on from."""
        found = load_training_state(self.path, parameters, optimizer, generator, self._key)
        if found is None:
            return 0
        note, kept = found
        device = next(iter(parameters.values())).device
        method.restore({name: value.to(device) for name, value in kept.items()})
        self.restored = note["seconds"] - self.seconds()
        self.seconds = Stopwatch(note["seconds"])
        self.lines = self._earlier + note["step"]
        self._due = self.seconds() + self._every
        self._cut(self._earlier + note["step"])
        console.print(f"training goes on after step {note['step']}", highlight=False)
        return note["step"]

    def keep(
        self,
        method: Unlearner,
        step: int,
        parameters: Mapping[str, torch.Tensor],
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
    ) -> None:
        """Write the state after so many steps, if it is time to and the method says what it keeps."""
        began = self.seconds()
        if began < self._due or (kept := method.state()) is None:
            return
        save_training_state(self.path, parameters, optimizer, generator, {"step": step, "seconds": began}, kept, self._key)
        took = self.seconds() - began
        self._due = self.seconds() + (max(self._every, SHARE * took) if self._every else 0)

    def close(self) -> None:
        """What was trained is saved: the state is of no more use."""
        self._cut(self._earlier)
        remove_path(self.path)
        remove_leftovers(self.path.parent, self.path.name)
