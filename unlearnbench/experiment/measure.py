"""Measure a run: at its end, or again later."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch

from unlearnbench.config.errors import RunError, UserError
from unlearnbench.console import progress_bar
from unlearnbench.data.images import Images
from unlearnbench.data.prompts import Prompt
from unlearnbench.experiment.depth import probe_run
from unlearnbench.experiment.downloads import fetch_all, left_out_metrics, missing_for_metrics, refused_downloads
from unlearnbench.experiment.preflight import metric_problems, metric_sample_problems, select_device
from unlearnbench.experiment.provenance import reopened_config
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.metrics.base import Metric, MetricInputs
from unlearnbench.reports.paired_test import per_image_distances
from unlearnbench.reports.tables import run_csv, run_markdown, table_names
from unlearnbench.results.run import Run, Value, load_run
from unlearnbench.storage.atomic import write_text
from unlearnbench.storage.cache import Cache
from unlearnbench.storage.lock import run_lock


def measure_images(
    spec: RunSpec, original_images: Images, unlearned_images: Images, cache: Cache, device: torch.device, folder: Path
) -> Iterator[list[Value]]:
    """Yield the values of one metric after another, then those of each stage; writes the distances of each image.

    Raises:
        RunError: a value is not finite.
    """
    inputs = MetricInputs(
        original_images.distinct(), unlearned_images.distinct(), spec.evaluation_setting, cache, device, {},
        lambda oracle, settings: probe_run(load_run(folder), oracle, settings, finished=False),
    )  # fmt: skip
    left_out = left_out_metrics(spec)
    metrics = {name: metric for name, metric in spec.metrics.items() if name not in left_out}
    with progress_bar("measure", len(metrics)) as progress:
        inputs.prepare(metrics.values())
        for name, metric in metrics.items():
            progress.note(name)
            yield _finite_values(name, metric, inputs)
            progress.advance()
    write_text(folder / "per_image.json", json.dumps(per_image_distances(folder) | inputs.per_image, indent=1))
    yield from _stage_values(spec, original_images, cache, device, folder)


def _finite_values(name: str, metric: Metric, inputs: MetricInputs) -> list[Value]:
    """The values of a metric.

    Raises:
        RunError: a number of theirs is not finite.
    """
    values = [replace(value, unlearned=float(value.unlearned)) for value in metric.measure(inputs)]
    for value in values:
        numbers = {"unlearned": value.unlearned, "original": value.original, "low": value.low, "high": value.high, **value.extras}
        for kind, number in numbers.items():
            if number is not None and not math.isfinite(number):
                where = "" if kind == "unlearned" else f", {kind}"
                raise RunError(f"metrics.{name}: {value.metric} on {value.split}{where} is not a finite number")
    return values


def _stage_values(
    spec: RunSpec, original_images: Images, cache: Cache, device: torch.device, folder: Path
) -> Iterator[list[Value]]:
    """The values of the images between two concepts, by the metrics that are measured after each stage.

    Raises:
        RunError: a value is not finite.
    """
    stages = spec.concept.unlearning_stages()
    for number, stage in enumerate(stages[:-1], 1):
        stage_images = Images(folder / "images" / f"after-{number}-{stage.name}").distinct()
        originals = original_images.distinct().where(*{record.split for record in stage_images})
        inputs = MetricInputs(originals, stage_images, spec.evaluation_setting, cache, device, {})
        metrics = {name: metric for name, metric in spec.metrics.items() if metric.each_stage}
        inputs.prepare(metrics.values())
        values = [value for name, metric in metrics.items() for value in _finite_values(name, metric, inputs)]
        yield [replace(value, table=f"After {stage.name}, {number} of {len(stages)}") for value in values]


def measure(folder: str | Path, *overrides: str) -> Run:
    """Measure a finished run again from its images, by its own metrics or by others; no model is loaded.

    A value that was measured before in another way, or with other real images, is replaced; the others stay.

    Args:
        folder: the run's folder.
        overrides: as on the command line, of `metrics`, `retain.images`, `device`, `fetch` and the cache; recorded in run.json.

    Raises:
        UserError: the run is not finished, its images are incomplete, a metric is not available, or another process is working
            on it, whose numbers these would replace.
    """
    load_run(folder)
    with run_lock(Path(folder)):
        return _measured_again(load_run(folder), overrides)


def _measured_again(run: Run, overrides: Sequence[str]) -> Run:
    spec = RunSpec.of(reopened_config(run, overrides, ("metrics", "retain.images")))
    original_images, unlearned_images = _intact_images(run)
    prompts = [
        Prompt(record.prompt, record.split, label=record.label, columns=tuple(record.columns.items()))
        for record in original_images.distinct()
    ]
    fetch_for_metrics(spec, prompts, has_model="images_from" not in run.log)
    cache, device = Cache(spec.cache, run.name), select_device(spec.device)
    measured = list(chain.from_iterable(measure_images(spec, original_images, unlearned_images, cache, device, run.folder)))
    config, real_images = run.log["config"], spec.config["retain"]["images"]
    run.values = _merged_values(run.values, measured, other_real_images=real_images != config["retain"]["images"])
    config["metrics"] |= spec.config["metrics"]
    config["retain"]["images"] = real_images
    if overrides:
        run.log["measured"] = [*run.log.get("measured", []), list(overrides)]
    write_tables(run)
    return run


def fetch_for_metrics(spec: RunSpec, images: Sequence[Prompt], has_model: bool = True) -> None:
    """Download what the metrics need.

    Args:
        spec: the settings.
        images: the prompt of each image of one model.
        has_model: whether the weights of the model are at hand; images made elsewhere come without.

    Raises:
        UserError: a metric cannot be measured on these images; the text has one line for each problem.
    """
    probing = [] if has_model else [name for name, metric in spec.metrics.items() if metric.probes_model]
    if probing:
        reason = "the images come without the weights of their model, which it probes"
        raise UserError("\n".join(f"metrics.{name}: {reason}; remove it with '~metrics.{name}'" for name in probing))
    downloads = missing_for_metrics(spec)
    problems = [*metric_problems(spec), *refused_downloads(spec, downloads), *metric_sample_problems(spec, images)]
    if any(problems):
        raise UserError("\n".join(dict.fromkeys(problem for problem in problems if problem)))
    fetch_all(downloads)


def _intact_images(run: Run) -> tuple[Images, Images]:
    """The images of the original and of the unlearned model.

    Raises:
        UserError: an image is missing or changed, of these or of a stage, or the index does not list it.
    """
    folder = run.folder / "images"
    original_images, unlearned_images, *stage_images = map(
        Images, [folder / "before", folder / "after", *sorted(folder.glob("after-*"))]
    )
    for images in (original_images, unlearned_images, *stage_images):
        damaged = [record.file for record in images if not images.intact(record)]
        if damaged or not len(images):
            raise UserError(f"{images.folder}: {', '.join(damaged[:3]) or 'no image'} missing or changed since the run")
    counts = run.log.get("images", {})
    for images, count in ((original_images, counts.get("before")), (unlearned_images, counts.get("after"))):
        if count is not None and len(images) != count:
            raise UserError(f"{images.folder}/index.jsonl: lists {len(images)} images, and the run made {count}; repeat the run")
    return original_images, unlearned_images


def _merged_values(earlier: Sequence[Value], measured: Sequence[Value], other_real_images: bool) -> list[Value]:
    """Earlier values, each replaced where it was measured again, then new ones; without FIDs of other real images."""
    by_place = {value.place: value for value in measured}
    retained = [value for value in earlier if value.place in by_place or not (other_real_images and value.table == "FID")]
    return [*(by_place.pop(value.place, value) for value in retained), *by_place.values()]


def write_tables(run: Run) -> None:
    """Write tables.md, tables.csv and metrics.json, with the values sorted by table."""
    order = table_names(run)
    run.values.sort(key=lambda value: order.index(value.table))
    write_text(run.folder / "tables.md", run_markdown(run))
    write_text(run.folder / "tables.csv", run_csv(run))
    run.write()
