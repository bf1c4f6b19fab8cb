"""Launchers of Hydra: how a sweep waits for all of its jobs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def all_jobs_awaited() -> Iterator[None]:
    """Let submitit's launchers wait for every job while the block runs: by themselves they stop at the first that is killed.

    At the end those that were killed are named, with the state that the cluster tells (OUT_OF_MEMORY, say).
    """
    try:
        from submitit.core.core import Job
        from submitit.core.utils import UncompletedJobError
    except ImportError:
        yield
        return
    from hydra.core.utils import JobReturn, JobStatus

    results, killed = Job.results, []

    def awaited(job: Job[Any]) -> list[Any]:
        try:
            return results(job)
        except UncompletedJobError:
            killed.append(f"job {job.job_id} ended without an answer (state {job.state})")
            return [JobReturn(status=JobStatus.COMPLETED)]

    Job.results = awaited  # type: ignore
    try:
        yield
    finally:
        Job.results = results  # type: ignore
        for told in killed:
            print(told, file=sys.stderr)
