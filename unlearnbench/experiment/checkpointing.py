"""What a run provides for a training: a line of train.csv for each step, and a checkpoint to go on from after a kill."""

from __future__ import annotations

from pathlib import Path

import torch

from unlearnbench.algos.state import restore_state, state_tensors
from unlearnbench.algos.training import Training, TrainingContext
from unlearnbench.console import Stopwatch, console
from unlearnbench.storage.atomic import remove_leftovers, remove_path, write_text
from unlearnbench.storage.training_state import load_training_state, save_training_state

HEAD = "step,loss,seconds\n"
LARGEST_SHARE = 20  # a checkpoint takes at most a twentieth of the time


class TrainingJournal(TrainingContext):
    """train.csv, and a checkpoint beside it from time to time, both such that a kill at any moment does no harm.

    A training that goes on from the checkpoint is equal, bit for bit, to one that was never stopped: the checkpoint holds
    parameters, optimizer, generator and the method's State; all else is computed again from the seed by `begin`.
    """

    def __init__(self, folder: Path, every: float, key: str, lines: int = 0, seconds: float = 0.0) -> None:
        """Begin, or begin again.

        Args:
            folder: the run's.
            every: seconds between two checkpoints, longer where they would take over a twentieth of the time; 0 for one after
                every step.
            key: a hash of all that the training depends on: a checkpoint of another key is not restored.
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

    def log(self, step: int, loss: float) -> None:
        """See `TrainingContext.log`."""
        self._cut(self._earlier)
        self.lines = self._earlier + step
        with self._table.open("a", encoding="utf-8") as file:
            file.write(f"{self.lines},{loss!r},{self.seconds()}\n")

    def _cut(self, lines: int) -> None:
        """Drop the lines of an earlier try that are not part of this one; once."""
        if not self._open:
            rows = self._table.read_text(encoding="utf-8").splitlines(keepends=True) if self._table.is_file() else []
            write_text(self._table, HEAD + "".join(rows[1 : 1 + lines]))
            self._open = True

    def resume(self, training: Training, optimizer: torch.optim.Optimizer) -> int:
        """See `TrainingContext.resume`."""
        checkpoint = load_training_state(self.path, training.parameters, optimizer, training.generator, self._key)
        if checkpoint is None:
            return 0
        note, state = checkpoint
        restore_state(training.state, {name: value.to(training.model.device) for name, value in state.items()})
        self.restored = note["seconds"] - self.seconds()
        self.seconds = Stopwatch(note["seconds"])
        self.lines = self._earlier + note["step"]
        self._due = self.seconds() + self._every
        self._cut(self._earlier + note["step"])
        console.print(f"training goes on after step {note['step']}", highlight=False)
        return note["step"]

    def save(self, training: Training, optimizer: torch.optim.Optimizer, step: int) -> None:
        """See `TrainingContext.save`."""
        began = self.seconds()
        if began < self._due:
            return
        note, state = {"step": step, "seconds": began}, state_tensors(training.state)
        save_training_state(self.path, training.parameters, optimizer, training.generator, note, state, self._key)
        took = self.seconds() - began
        self._due = self.seconds() + (max(self._every, LARGEST_SHARE * took) if self._every else 0)

    def close(self) -> None:
        """What was trained is saved: the checkpoint is of no more use."""
        self._cut(self._earlier)
        remove_path(self.path)
        remove_leftovers(self.path.parent, self.path.name)
