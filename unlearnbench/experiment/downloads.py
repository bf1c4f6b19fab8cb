"""What a run needs from the network: what is missing on this machine, why it cannot be had, and its download."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from unlearnbench.config.errors import UserError
from unlearnbench.console import console
from unlearnbench.data.prompt_sets import sets_to_download
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.storage.downloads import Download, fetch


def prompt_sources(spec: RunSpec) -> list[str | None]:
    """The names of all files and sets of prompts and of real images that the user's settings name."""
    return [*spec.concept.prompt_sources(), spec.retain.prompts, *spec.retain.measured, spec.retain.images]


def missing_sets(spec: RunSpec) -> list[Download]:
    """The prompt sets that the run reads and that are not on this machine; asks nobody."""
    return [download for missing_set in sets_to_download(prompt_sources(spec)) if (download := missing_set.download())]


def missing_downloads(spec: RunSpec) -> list[Download]:
    """What the run needs, is not on this machine and may be on the network, each once; without that of metrics left out."""
    left_out = left_out_metrics(spec)
    return _distinct(
        [*missing_sets(spec), *_of_model(spec), *spec.algo.downloads(), *_of_metrics(spec, set(spec.metrics) - set(left_out))]
    )


def missing_for_metrics(spec: RunSpec) -> list[Download]:
    """What the metrics need and is not on this machine, each once; no model, and none of the metrics that are left out."""
    return _distinct(_of_metrics(spec, set(spec.metrics) - set(left_out_metrics(spec))))


def refused_downloads(spec: RunSpec, downloads: Sequence[Download] | None = None) -> list[str]:
    """Why what is missing cannot be had, one line each; by default of all that the run needs."""
    missing = missing_downloads(spec) if downloads is None else downloads
    problems = (download.problem(spec.fetch == "auto") for download in missing)
    return [problem for problem in problems if problem]


def left_out_metrics(spec: RunSpec) -> dict[str, str]:
    """The metrics that the run goes without, and why: what they need cannot be had, and no setting names it."""
    setting, reasons = spec.evaluation_setting, {}
    for name, metric in spec.metrics.items():
        if metric.may_be_left_out(setting):
            downloads = metric.downloads(setting)
            problems = [problem for download in downloads if (problem := download.problem(spec.fetch == "auto"))]
            if not downloads and (reason := metric.unavailable_reason(setting)):
                problems.append(reason)
            if problems:
                reasons[name] = problems[0]
    return reasons


def fetch_all(downloads: Sequence[Download]) -> None:
    """Say what is downloaded and how large it is, then download it.

    Raises:
        UserError: a download failed or was cut.
    """
    for download in downloads:
        console.print(f"downloads {download.line()}", highlight=False, markup=False, soft_wrap=True)
    fetch(downloads)


def _of_model(spec: RunSpec) -> list[Download]:
    with suppress(UserError):  # a damaged file, which `find_problems` reports
        return [download] if (download := spec.model.download()) else []
    return []


def _of_metrics(spec: RunSpec, names: Iterable[str]) -> list[Download]:
    downloads: list[Download] = []
    for name in sorted(names):
        with suppress(UserError):  # a wrong setting, which `find_problems` reports
            downloads += spec.metrics[name].downloads(spec.evaluation_setting)
    return downloads


def _distinct(downloads: Iterable[Download]) -> list[Download]:
    return list({download.what: download for download in downloads}.values())
