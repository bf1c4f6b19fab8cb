"""Log a finished run to TensorBoard or Weights & Biases, by accelerate's trackers."""

from __future__ import annotations

import logging
import re
from importlib.util import find_spec

from unlearnbench.config.errors import UserError, first_line, suggest
from unlearnbench.reports.plots import read_losses
from unlearnbench.results.run import Run
from unlearnbench.results.settings import flatten

logger = logging.getLogger(__name__)
TRACKERS = ("tensorboard", "wandb")


def tracker_problem(name: str | None) -> str | None:
    """Why the tracker is unavailable, with the repair; None if it is available, or no tracker is set.

    Raises:
        UserError: the name is unknown.
    """
    if name is not None and name not in TRACKERS:
        raise UserError(f"tracker={name}: {suggest(name, TRACKERS)}")
    is_missing = name is not None and find_spec(name) is None
    return f"tracker={name}: its package is not installed; pip install 'unlearnbench[{name}]'" if is_missing else None


def track(name: str, run: Run) -> None:
    """Log a finished run, or warn in one line why that failed, such as without a login: the run is complete without it."""
    try:
        _log_run(name, run)
    except Exception as error:
        kind = type(error).__name__
        logger.warning("tracker=%s: the run is done, but was not logged (%s: %s)", name, kind, first_line(error))


def _log_run(name: str, run: Run) -> None:
    """Log a run's settings, the loss of each step and the final values; TensorBoard's files go to the run's folder."""
    from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

    tracker: GeneralTracker = (
        TensorBoardTracker("tensorboard", run.folder) if name == "tensorboard" else WandBTracker("unlearnbench", name=run.name)
    )
    tracker.start()
    settings = flatten(run.log["config"]).items()
    tracker.store_init_configuration({k: v if isinstance(v, bool | int | float) else str(v) for k, v in settings})
    losses = read_losses(run.folder)
    for step, loss in losses:
        tracker.log({"train/loss": loss}, step=step)
    values = {re.sub(r"[^\w/.-]+", "_", f"{v.table}/{v.metric}/{v.split}"): v.unlearned for v in reversed(run.values)}
    tracker.log(values, step=losses[-1][0] if losses else 0)
    tracker.finish()
