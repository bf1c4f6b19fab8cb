"""The metrics of a run, when it is made and again later."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from unlearnbench.config.errors import RunError, UserError
from unlearnbench.console import progress_bar
from unlearnbench.data.images import Images
from unlearnbench.experiment.preflight import select_device
from unlearnbench.experiment.provenance import reopened_config
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.metrics.base import MetricInputs
from unlearnbench.reports.paired_test import per_image_distances
from unlearnbench.reports.tables import run_csv, run_markdown, table_names
from unlearnbench.results.run import Run, Value, load_run
from unlearnbench.storage.atomic import write_text
from unlearnbench.storage.cache import Cache


def measure_images(
    spec: RunSpec, before: Images, after: Images, cache: Cache, device: torch.device, folder: Path
) -> Iterator[list[Value]]:
    """The values of one metric after another; the distances of single images go to per_image.json at the end."""
    setting = spec.evaluation_setting
    inputs = MetricInputs(before, after, setting, cache, device, {})
    with progress_bar("measure", len(spec.metrics)) as shown:
        for name, metric in spec.metrics.items():
            values = [replace(value, unlearned=float(value.unlearned)) for value in metric.measure(inputs)]
            for value in values:
                if not math.isfinite(value.unlearned):
                    raise RunError(f"metrics.{name}: {value.metric} on {value.split} is not a finite number")
            yield values
            shown.advance(remark=name)
    write_text(folder / "per_image.json", json.dumps(per_image_distances(folder) | inputs.per_image, indent=1))
    stages = spec.concept.unlearning_stages()
    for number, stage in enumerate(stages[:-1], 1):
        so_far = Images(folder / "images" / f"after-{number}-{stage.name}")
        original = before.where(*{record.split for record in so_far})
        inputs = MetricInputs(original, so_far, setting, cache, device, {})
        values = [value for metric in spec.metrics.values() if metric.each_stage for value in metric.measure(inputs)]
        yield [replace(value, table=f"After {stage.name}, {number} of {len(stages)}") for value in values]


def measure(folder: str | Path, *overrides: str) -> Run:
    """Measure a finished run again from its images, by its own metrics or by others; no model is loaded.

    A number that was measured before in another way, or of other real images, is replaced; the others stay.

    Args:
        folder: the run's.
        overrides: as on the command line, of `metrics`, `retain.images`, `device` and the cache; run.json keeps them.

    Raises:
        UserError: it is no finished run, its images are not whole, or the settings ask for what is not there.
    """
    done = load_run(folder)
    spec = RunSpec.of(reopened_config(done, overrides, ("metrics", "retain.images")))
    before, after = (Images(done.folder / "images" / side) for side in ("before", "after"))
    between = [Images(path) for path in sorted((done.folder / "images").glob("after-*"))]
    for images in (before, after, *between):
        damaged = [shot.file for shot in images if not images.intact(shot)]
        if damaged or not len(images):
            raise UserError(f"{images.folder}: {', '.join(damaged[:3]) or 'no image'} missing or changed since the run")
    setting = spec.evaluation_setting
    problems = [problem for metric in spec.metrics.values() if (problem := metric.unavailable_reason(setting))]
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    measured = measure_images(spec, before, after, Cache(spec.cache, done.name), select_device(spec.device), done.folder)
    found = {value.place: value for values in measured for value in values}
    config, images = done.log["config"], spec.config["retain"]["images"]
    other_images = images != config["retain"]["images"]
    kept = [value for value in done.values if value.place in found or not (other_images and value.table == "FID")]
    done.values = [*(found.pop(value.place, value) for value in kept), *found.values()]
    config["metrics"] |= spec.config["metrics"]
    config["retain"]["images"] = images
    if overrides:
        done.log["measured"] = [*done.log.get("measured", []), list(overrides)]
    write_tables(done)
    return done


def write_tables(done: Run) -> None:
    """Write tables.md, tables.csv and metrics.json."""
    order = table_names(done)
    done.values.sort(key=lambda value: order.index(value.table))
    write_text(done.folder / "tables.md", run_markdown(done))
    write_text(done.folder / "tables.csv", run_csv(done))
    done.write()
