"""What a run provides for a training: a line of train.csv for each step, and checkpoints from which it can be resumed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from unlearnbench.algos.state import restore_state, state_tensors
from unlearnbench.algos.training import Training, TrainingContext
from unlearnbench.console import Stopwatch, console
from unlearnbench.storage.atomic import remove_leftovers, remove_path, write_text
from unlearnbench.storage.training_state import load_training_state, save_training_state

HEAD = "step,loss,seconds\n"
SAVING_INTERVAL = 20  # times the duration of a save: checkpoints take at most a twentieth of the time


@dataclass
class Interrupt:
    """Whether Ctrl-C was pressed."""

    requested: bool = False


@contextmanager
def deferred_interrupt(interrupt: Interrupt) -> Iterator[None]:
    """Let Ctrl-C only set `interrupt.requested` in this block; a second one raises KeyboardInterrupt at once.

    Outside of the main thread, and where the program has its own handler, Ctrl-C works as before.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if interrupt.requested:
            raise KeyboardInterrupt
        interrupt.requested = True
        console.print("interrupted: the training is saved after this step; Ctrl-C again stops at once", highlight=False)

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class TrainingJournal(TrainingContext):
    """Writes train.csv, and checkpoints at intervals; the process can be killed at any moment.

    A resumed training is equal, bit for bit, to an uninterrupted one: the checkpoint holds the parameters, the optimizer,
    the generator and the method's State; `begin` computes everything else again from the seed.
    """

    def __init__(self, folder: Path, every: float, key: str, lines: int = 0, seconds: float = 0.0) -> None:
        """Start the journal of one training.

        Args:
            folder: the run's folder.
            every: seconds between two checkpoints, more if they would take over a twentieth of the time; 0 saves after every
                step.
            key: a hash of everything that the training depends on: a checkpoint with another key is not restored.
            lines: the lines of train.csv that earlier concepts wrote.
            seconds: the time that earlier concepts took.

        Attributes:
            seconds: the training time so far, in all tries.
            restored: the part of it that earlier tries spent.
            lines: the lines of train.csv so far.
            lora: the trained low-rank adapters by name, before they were merged; empty until the end, and without any.
        """
        self.path = folder / "training.safetensors"
        self.seconds = Stopwatch(seconds)
        self.lines = lines
        self.restored = 0.0
        self.lora: dict[str, Tensor] = {}
        self._table, self._every, self._key, self._earlier = folder / "train.csv", every, key, lines
        self._due = self.seconds() + every
        self._open = False
        self._interrupt = Interrupt()

    def log(self, step: int, loss: float) -> None:
        """See `TrainingContext.log`."""
        self._truncate(self._earlier)
        self.lines = self._earlier + step
        with self._table.open("a", encoding="utf-8") as file:
            file.write(f"{self.lines},{loss!r},{self.seconds()}\n")

    def _truncate(self, lines: int) -> None:
        """Cut train.csv to this number of lines, which drops those that an earlier try wrote after its checkpoint; only once."""
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
        self._truncate(self._earlier + note["step"])
        console.print(f"resume training after step {note['step']}", highlight=False)
        return note["step"]

    def save(self, training: Training, optimizer: torch.optim.Optimizer, step: int) -> None:
        """See `TrainingContext.save`."""
        start = self.seconds()
        if start < self._due and not self._interrupt.requested:
            return
        note, state = {"step": step, "seconds": start}, state_tensors(training.state)
        save_training_state(self.path, training.parameters, optimizer, training.generator, note, state, self._key)
        duration = self.seconds() - start
        self._due = self.seconds() + (max(self._every, SAVING_INTERVAL * duration) if self._every else 0)
        if self._interrupt.requested:
            raise KeyboardInterrupt

    def keep_lora(self, lora: dict[str, Tensor]) -> None:
        """See `TrainingContext.keep_lora`."""
        self.lora = lora

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """See `TrainingContext.interruptible`."""
        with deferred_interrupt(self._interrupt):
            yield

    def close(self) -> None:
        """Remove the checkpoint, after the weights are saved."""
        self._truncate(self._earlier)
        remove_path(self.path)
        remove_leftovers(self.path.parent, self.path.name)
