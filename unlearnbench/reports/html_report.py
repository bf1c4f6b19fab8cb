"""Runs as one self-contained HTML file: numbers, plots, images sorted by damage, settings, commands."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from unlearnbench.__about__ import __version__
from unlearnbench.config.errors import UserError
from unlearnbench.console import progress_bar
from unlearnbench.console.tables import format_number
from unlearnbench.reports.attack_report import attack_head, attack_label, attack_remarks, attack_table, stored_attacks
from unlearnbench.reports.commands import repeating_commands
from unlearnbench.reports.comparison import compare
from unlearnbench.reports.depth_report import HEAD, depth_cells, stored_depth
from unlearnbench.reports.depth_report import REMARK as DEPTH_REMARK
from unlearnbench.reports.interference import REMARK, Matrix, matrices
from unlearnbench.reports.plots import SHADE, X_LABEL, read_losses
from unlearnbench.reports.report_images import ImagePair, RunImages, shared_prompts, sheet_url
from unlearnbench.reports.svg_plots import Axis, Curve, Histogram, histograms, loss_curve, planes
from unlearnbench.reports.tables import ARROWS, TABLE_HEAD, TABLES, table_names, table_remarks, table_rows
from unlearnbench.results.intervals import interval_text
from unlearnbench.results.metric_names import distinct_names, headline
from unlearnbench.results.run import Run, Value
from unlearnbench.results.settings import differing_settings, flatten
from unlearnbench.storage.atomic import write_text

TEMPLATE = Path(__file__).with_name("report.html.j2")
IMAGE_PAIRS = 12  # retain prompts and forget prompts shown of each run
IMAGE_PAIRS_IN_ALL = 96  # at most so many of all runs


@dataclass(frozen=True)
class RunDetails:
    """What the report shows of one run.

    Attributes:
        run: the run.
        label: its name in the report.
        command: the commands that run and measure it again, one a line.
        headline: its main numbers.
        tables: name, rows and remark of each table.
        distance: the distance that sorts the retain prompts; "" if none was measured.
        retain: pairs of images of retain prompts.
        forget: pairs of images of forget prompts.
        histograms: distances of the retain splits.
        loss: the training loss.
        missing: a sentence on missing images.
        attacks: name, head, rows and remarks of each attack and probe.
        depth: rows of the depth under probes; none if it was not measured.
        depth_sheet: images under the probes, as a data: URL; "" if there are none.
    """

    run: Run
    label: str
    command: str
    headline: list[Value]
    tables: list[tuple[str, list[list[str]], str]]
    distance: str
    retain: list[ImagePair]
    forget: list[ImagePair]
    histograms: tuple[Axis, list[Histogram]] | None
    loss: Curve | None
    missing: str
    attacks: list[tuple[str, tuple[str, ...], list[list[str]], list[str]]]
    depth: list[list[str]]
    depth_sheet: str


def write_report(runs: Sequence[Run], path: Path, images: int | None = None, unblur: bool = False) -> None:
    """Write the report.

    Args:
        runs: done, failed or unfinished.
        path: the file; an existing one is replaced.
        images: how many retain prompts and how many forget prompts to show of each run; None for 12, fewer of many runs.
        unblur: show the images of explicit prompts without a click.

    Raises:
        UserError: the file cannot be written.
    """
    count = max(2, min(IMAGE_PAIRS, IMAGE_PAIRS_IN_ALL // len(runs))) if images is None else images
    comparison = compare(runs).for_readers()
    labels = comparison.labels()
    details = []
    with progress_bar("report", len(runs)) as bar:
        for run, label in zip(runs, labels, strict=True):
            details.append(run_details(run, label, count, unblur))
            bar.advance(remark=label)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals |= {"number": format_number, "arrow": ARROWS, "head": TABLE_HEAD, "x_label": X_LABEL}
    environment.globals |= {"depth_head": HEAD, "depth_remark": DEPTH_REMARK}
    environment.globals |= {"distinct_names": distinct_names, "interval_text": interval_text}
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=runs[0].name if len(runs) == 1 else f"{', '.join(dict.fromkeys(run.concept for run in runs))}: {len(runs)} runs",
        time=time.strftime("%Y-%m-%d %H:%M"), version=__version__, comparison=comparison, labels=labels,
        original=comparison.originals, planes=planes(runs, labels), runs=details, settings=setting_rows(runs),
        matrices=interference_matrices(runs), matrix_remark=REMARK, shade=SHADE,
        environment=environment_rows(runs), shared=shared_prompts(runs, labels, unblur) if len(runs) > 1 and count else [],
        command=shlex.join(["unlearnbench", "report", *(str(run.folder) for run in runs), "-o", str(path)]),
    )  # fmt: skip
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def run_details(run: Run, label: str, count: int, unblur: bool) -> RunDetails:
    """Collect what the report shows of one run: of a failed run, or one without images, what there is."""
    images, depth = RunImages(run, unblur), stored_depth(run.folder)
    return RunDetails(
        run=run,
        label=label,
        command="\n".join(repeating_commands(run, str(run.folder))),
        headline=headline(run.values, TABLES),
        tables=[(name, rows, table_remarks(run, name)) for name in table_names(run)[1:] if (rows := table_rows(run, name))],
        distance=images.first_distance[0],
        retain=images.retain_pairs(count),
        forget=images.forget_pairs(count),
        histograms=histograms(images.distances_by_split()),
        loss=loss_curve(read_losses(run.folder)),
        missing=images.missing(),
        attacks=[(attack_label(a), attack_head(a), attack_table(a), attack_remarks(a)) for a in stored_attacks(run.folder)],
        depth=depth_cells(depth) if depth else [],
        depth_sheet=sheet_url(run.folder / "depth.png") if depth else "",
    )


def interference_matrices(runs: Sequence[Run]) -> list[Matrix]:
    """The matrices of interference of runs that have prompts of every concept; none if the runs differ in sampling."""
    try:
        return matrices(runs)
    except UserError:
        return []


def setting_rows(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The settings in which the runs differ, and those that only some of their algorithms have: name, value of each run."""
    flat = [flatten(run.log["config"]) for run in runs]
    partial = {key for settings in flat for key in settings if key.startswith("algo.") and not all(key in s for s in flat)}
    keys = sorted(key for key in {*differing_settings(flat), *partial} if key != "algo.name" and not key.endswith("_target_"))
    return [(key, [str(settings.get(key, "")) for settings in flat]) for key in keys]


def environment_rows(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Device, model, commit, versions and so on: name, and the value of each run, or one value if all that have it agree."""
    environments = [run_environment(run) for run in runs]
    rows = []
    for key in dict.fromkeys(key for environment in environments for key in environment):
        values = [environment.get(key, "") for environment in environments]
        distinct = {*values} - {""}
        rows.append((key, list(distinct) if len(distinct) == 1 else values))
    return rows


def run_environment(run: Run) -> dict[str, str]:
    """When, where and with what a run was done; what its log does not say is left out."""
    log = run.log
    commit = log.get("git") or ""
    environment = {
        "started": log.get("started", "")[:16].replace("T", " "),
        "seconds": f"{log['seconds']:.0f}" if "seconds" in log else "",
        "device": log.get("device"),
        "model": "images made elsewhere" if "images_from" in log else log["config"].get("model", {}).get("path"),
        "model's hash": log.get("fingerprint", "")[:12],
        "scheduler": log.get("scheduler"),
        "commit": commit[:12] + "+" * commit.endswith("+"),
        **log.get("versions", {}),
    }
    return {key: str(value) for key, value in environment.items() if value}
