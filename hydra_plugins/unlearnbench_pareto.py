"""Hydra's sweeper for two objectives at once; a sweeper must lie in this namespace, or Hydra does not accept it.

Hydra's own Optuna plugin (1.3.0) requires optuna < 3, and its file storage fails with SQLAlchemy 2; this one uses current
Optuna.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class ParetoSweeper(Sweeper):
    """Minimize forget accuracy and maximize integrity_norm on the retain prompts: Optuna's TPE for several objectives, seeded.

    The search varies every override with several values (a,b or range() or interval()). Without one it varies what
    conf/search/ lists for the algorithm, and the first trial has the present settings. A trial that fails has no values
    and is not repeated.

    Attributes:
        trials: number of runs.
        parallel: number of proposals at a time, for launchers that do several runs at once.
        seed: of the proposals.
    """

    config: DictConfig
    launcher: Launcher

    def __init__(self, trials: int, parallel: int, seed: int) -> None:
        self.trials, self.parallel, self.seed = trials, parallel, seed

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Check the requirements before any work."""
        from unlearnbench.config.errors import UserError

        for package in ("optuna", "matplotlib"):
            if find_spec(package) is None:
                raise UserError(f"hydra/sweeper=pareto needs {package}: pip install 'unlearnbench[sweep]'")
        for name, count in (("trials", self.trials), ("parallel", self.parallel)):
            if count < 1:
                raise UserError(f"hydra.sweeper.{name}: {count} is less than 1")
        for name in ("forget_accuracy", "integrity"):
            if name not in config.metrics:
                raise UserError(f"hydra/sweeper=pareto needs the metric {name}: metrics=quick has both objectives")
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> None:
        """Propose, launch and report trials until all are done."""
        import optuna

        from unlearnbench.sweeps.search_space import propose_value

        overrides = OverridesParser.create().parse_overrides(arguments)
        fixed = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
        space = {override.get_key_element(): domain(override) for override in overrides if override.is_sweep_override()}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(directions=["minimize", "maximize"], sampler=optuna.samplers.TPESampler(seed=self.seed))
        if not space:
            space = self._default_space({override.get_key_element() for override in overrides})
            present = {name: OmegaConf.select(self.config, name) for name in space}
            study.enqueue_trial({name: value for name, value in present.items() if is_within(space[name], value)})
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        for first in range(0, self.trials, self.parallel):
            trials = [study.ask() for _ in range(min(self.parallel, self.trials - first))]
            jobs = [[*fixed, *(f"{name}={propose_value(trial, name, of)}" for name, of in space.items())] for trial in trials]
            for trial, job in zip(trials, self.launcher.launch(jobs, initial_job_idx=first), strict=True):
                numbers = job.return_value or ()
                state = optuna.trial.TrialState.COMPLETE if len(numbers) == 2 else optuna.trial.TrialState.FAIL
                study.tell(trial, numbers if len(numbers) == 2 else None, state)

    def _default_space(self, given: set[str]) -> dict[str, Any]:
        """What conf/search/ lists for the algorithm, without the settings that the overrides give."""
        from unlearnbench.sweeps.search_space import search_space

        space = {f"algo.{name}": values for name, values in search_space(self.config.algo.name).items()}
        return {name: values for name, values in space.items() if name not in given}


def domain(override: Override) -> Any:
    """The values of an override with several values, in the form of `unlearnbench.sweeps.search_space.search_space`."""
    if not override.is_interval_sweep():
        return list(override.sweep_string_iterator())
    interval: Any = override.value()
    return {"low": interval.start, "high": interval.end, "log": "log" in interval.tags}


def is_within(values: Any, value: Any) -> bool:
    """Whether a value is one of the choices, or lies between the bounds."""
    return value in values if isinstance(values, list) else values["low"] <= value <= values["high"]
