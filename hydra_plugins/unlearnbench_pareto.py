"""Hydra's sweeper for two objectives at once; a sweeper must lie in this namespace, or Hydra does not take it.

Hydra's own Optuna plugin (1.3.0) asks for optuna < 3, which nobody may then have newer, and whose file storage fails with
SQLAlchemy 2; so this one asks the Optuna of today.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class ParetoSweeper(Sweeper):
    """Forget accuracy down, integrity_norm on the retain prompts up: Optuna's TPE for several objectives, seeded.

    Several values of a word (a,b or range() or interval()) are what varies; if no word has several, what conf/search/ says
    of the algorithm, and then the first trial is its present setting. A trial that fails has no values and is not repeated.

    Attributes:
        trials: how many runs.
        parallel: how many are proposed at a time, for launchers that do several at once.
        seed: of the proposals.
    """

    def __init__(self, trials: int, parallel: int, seed: int) -> None:
        self.trials, self.parallel, self.seed = trials, parallel, seed

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Check what is needed, before any work."""
        from unlearnbench.config.errors import UserError

        for package in ("optuna", "matplotlib"):
            if find_spec(package) is None:
                raise UserError(f"hydra/sweeper=pareto needs {package}: pip install 'unlearnbench[sweep]'")
        for name, count in (("trials", self.trials), ("parallel", self.parallel)):
            if count < 1:
                raise UserError(f"hydra.sweeper.{name}: {count} is less than 1")
        for name in ("forget_accuracy", "integrity"):
            if name not in config.metrics:
                raise UserError(f"hydra/sweeper=pareto needs the metric {name}: metrics=quick has what it needs")
        self.composed = config
        self.starter = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> None:
        """Ask Optuna, launch, tell Optuna, until all trials are done."""
        import optuna

        from unlearnbench.sweeps.search_space import propose_value, search_space

        words = OverridesParser.create().parse_overrides(arguments)
        fixed = [str(word.input_line) for word in words if not word.is_sweep_override()]
        among = {word.get_key_element(): values(word) for word in words if word.is_sweep_override()}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(directions=["minimize", "maximize"], sampler=optuna.samplers.TPESampler(seed=self.seed))
        if not among:
            given = {word.get_key_element() for word in words}
            own = {f"algo.{name}": of for name, of in search_space(self.composed.algo.name).items()}
            among = {name: of for name, of in own.items() if name not in given}
            present = {name: OmegaConf.select(self.composed, name) for name in among}
            study.enqueue_trial({name: value for name, value in present.items() if holds(among[name], value)})
        folder = Path(self.composed.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.composed, folder / "multirun.yaml")
        for first in range(0, self.trials, self.parallel):
            trials = [study.ask() for _ in range(min(self.parallel, self.trials - first))]
            jobs = [[*fixed, *(f"{name}={propose_value(trial, name, of)}" for name, of in among.items())] for trial in trials]
            for trial, job in zip(trials, self.starter.launch(jobs, initial_job_idx=first), strict=True):
                numbers = job.return_value or ()
                state = optuna.trial.TrialState.COMPLETE if len(numbers) == 2 else optuna.trial.TrialState.FAIL
                study.tell(trial, numbers if len(numbers) == 2 else None, state)


def values(word: Override) -> Any:
    """What a word with several values lets vary, in the form of `unlearnbench.sweeps.search_space.search_space`."""
    if not word.is_interval_sweep():
        return list(word.sweep_string_iterator())
    interval: Any = word.value()
    return {"low": interval.start, "high": interval.end, "log": "log" in interval.tags}


def holds(among: Any, value: Any) -> bool:
    """Whether a value lies within what may vary."""
    return value in among if isinstance(among, list) else among["low"] <= value <= among["high"]
