"""A finished run in TensorBoard or Weights & Biases too, by accelerate's trackers."""

from __future__ import annotations

import re
from importlib.util import find_spec

from unlearnbench.config.errors import UserError, suggest
from unlearnbench.reports.plots import read_losses
from unlearnbench.results.run import Run
from unlearnbench.results.settings import flatten

TRACKERS = ("tensorboard", "wandb")


def tracker_problem(name: str | None) -> str | None:
    """What the tracker lacks, with the repair; None if nothing, or if none is asked for.

    Raises:
        UserError: an unknown name.
    """
    if name is not None and name not in TRACKERS:
        raise UserError(f"tracker={name}: {suggest(name, TRACKERS)}")
    return f"tracker={name} needs its package: pip install 'unlearnbench[{name}]'" if name and find_spec(name) is None else None


def track(name: str, run: Run) -> None:
    """Log a run's settings, the loss of each step and the final numbers; TensorBoard's files go to its folder."""
    from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

    tracker: GeneralTracker = (
        TensorBoardTracker("tensorboard", run.folder) if name == "tensorboard" else WandBTracker("unlearnbench", name=run.name)
    )
    tracker.start()
    settings = flatten(run.log["config"]).items()
    tracker.store_init_configuration({k: v if isinstance(v, bool | int | float) else str(v) for k, v in settings})
    found = read_losses(run.folder)
    for step, loss in found:
        tracker.log({"train/loss": loss}, step=step)
    numbers = {re.sub(r"[^\w/.-]+", "_", f"{v.table}/{v.metric}/{v.split}"): v.unlearned for v in reversed(run.values)}
    tracker.log(numbers, step=found[-1][0] if found else 0)
    tracker.finish()
