"""Hydra's submitit launchers, waiting for every job; a launcher must lie in this namespace, or Hydra does not accept it.

By themselves they stop waiting at the first job that is killed, although the others go on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

try:
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
except ImportError:  # without the extra `sweep` there is no job to wait for
    BaseSubmititLauncher = Launcher

log = logging.getLogger(__name__)
THEIRS = "hydra_plugins.hydra_submitit_launcher.submitit_launcher."


class AwaitEveryJob(Callback):
    """Replace a submitit launcher by the one here, whatever file of settings chose it."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Name the class here in the settings of the launcher."""
        path = str(config.hydra.launcher.get("_target_", ""))
        if path.startswith(THEIRS):
            config.hydra.launcher["_target_"] = f"{__name__}.{path.removeprefix(THEIRS)}"


class _SubmititLauncher(BaseSubmititLauncher):
    """Submits the jobs of a sweep as an array and waits for all of them."""

    params: dict[str, Any]
    config: DictConfig
    _EXECUTOR: str

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Submit the jobs and wait for them; a job that is killed counts as done, without a value, and is named at the end."""
        from submitit.core.utils import UncompletedJobError

        results, messages = [], []
        for job in self._submit(job_overrides, initial_job_idx):
            try:
                results.append(job.results()[0])
            except UncompletedJobError:
                messages.append(f"job {job.job_id} ended without an answer (state {job.state})")
                results.append(JobReturn(status=JobStatus.COMPLETED))
        for message in messages:
            log.warning(message)
        return results

    def _submit(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        """The jobs, started as the launcher of Hydra's plugin starts them."""
        import submitit
        from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

        common = OmegaConf.structured(BaseQueueConf).keys()
        settings = {name if name in common else f"{self._EXECUTOR}_{name}": value for name, value in self.params.items()}
        timeouts = f"{self._EXECUTOR}_max_num_timeout"
        at_start = {name: settings.pop(name) for name in (timeouts,) if name in settings}
        executor = submitit.AutoExecutor(settings.pop("submitit_folder"), cluster=self._EXECUTOR, **at_start)
        executor.update_parameters(**settings)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        arguments = [
            (list(overrides), "hydra.sweep.dir", number, f"job_id_for_{number}", Singleton.get_state())
            for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        return executor.map_array(self, *zip(*arguments, strict=True))


class LocalLauncher(_SubmititLauncher):
    """Each run a process on this machine."""

    _EXECUTOR = "local"


class SlurmLauncher(_SubmititLauncher):
    """Each run a job of a Slurm array."""

    _EXECUTOR = "slurm"
