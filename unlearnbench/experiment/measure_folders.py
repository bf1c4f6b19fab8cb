"""Measure images that another program generated: two folders and a prompt file become a run without a model."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from unlearnbench.config.compose import compose
from unlearnbench.config.errors import UserError
from unlearnbench.config.paths import is_folder_name
from unlearnbench.console import Stopwatch, progress_bar
from unlearnbench.data.foreign_images import ImageRow, copy_images, image_size, match_images, split_counts
from unlearnbench.data.prompt_sets import load_prompts, prompt_set_versions
from unlearnbench.data.prompts import RETAIN_SPLITS, SPLITS
from unlearnbench.experiment.measure import fetch_for_metrics, measure_images, write_tables
from unlearnbench.experiment.preflight import select_device
from unlearnbench.experiment.provenance import environment, override_key, plain_config
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.reports.image_grid import image_grid
from unlearnbench.results.run import Run
from unlearnbench.storage.atomic import atomic_path, claim_folder, remove_empty_folders, remove_path
from unlearnbench.storage.cache import Cache, digest

logger = logging.getLogger(__name__)
RUN_ONLY = (
    "algo",
    "sample",
    "training",
    "save_pipeline",
    "tracker",
    "cache_limit",
    "seed",
    "checkpoint_every",
    "retain.prompts",
    "retain.splits",
)


def measure_folders(
    original: str | Path,
    unlearned: str | Path,
    prompts: str,
    *overrides: str,
    name: str | None = None,
    output: Path | None = None,
) -> Run:
    """Measure the images of two models that another program generated; no model is loaded.

    Args:
        original: a folder of the original model's images.
        unlearned: a folder of the unlearned model's images, under the same names.
        prompts: a prompt file or set, whose rows match the images (see `match_images`); a row without `split` is a forget prompt.
        overrides: as on the command line, of the concept, metrics, model.domain, retain.images, device and the cache; the domain
            is photo unless they say otherwise.
        name: the method's name in the tables; by default that of the folder of the unlearned model's images.
        output: the run's folder; by default outputs/<name>-<concept>/<time>.

    Raises:
        UserError: the images and the rows do not match, or a metric is not available; nothing is written.
    """
    for override in overrides:
        if any(f"{override_key(override)}.".startswith(f"{part}.") for part in RUN_ONLY):
            raise UserError(f"{override}: nothing is generated here, so it would change nothing; leave it out")
    if name is not None and not is_folder_name(name):
        raise UserError(f"--name {name!r}: the folder of the run is called by it; choose a name without a slash")
    seconds = Stopwatch()
    folders = Path(original), Path(unlearned)
    rows = match_images(*folders, load_prompts(prompts, "forget"), prompts)
    chosen = [override_key(override) for override in overrides]
    domain = () if {"model", "model.domain", "experiment"} & {*chosen} else ("model.domain=photo",)
    texts = [*domain, *overrides, f"model.size={image_size(rows)}", "algo=none"]
    spec = RunSpec.of(compose(*texts))
    _refuse_splits(spec, rows, prompts)
    warnings = [] if any(override_key(override).startswith("metrics") for override in overrides) else _leave_out(spec, rows)
    fetch_for_metrics(spec, [row.prompt for row in rows], has_model=False)
    device = select_device(spec.device)
    method = name or folders[1].resolve().name
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    folder = claim_folder(output or Path("outputs") / f"{method}-{spec.concept.name}" / stamp, "images")
    sources = {"original": str(original), "unlearned": str(unlearned), "prompts": prompts}
    log = {
        "status": "started",
        "algo": method,
        "overrides": list(texts),
        **environment(device),
        "images_from": sources,
        "warnings": warnings,
        "prompt_sets": prompt_set_versions([prompts, spec.retain.images]),
        "config": plain_config(spec),
    }
    return _measured(spec, rows, Run(folder, log), device, seconds)


def _measured(spec: RunSpec, rows: Sequence[ImageRow], run: Run, device: torch.device, seconds: Stopwatch) -> Run:
    """Copy the images into the run's folder, measure them and write the tables; a failure leaves no folder."""
    folder = run.folder
    try:
        with progress_bar("copy images", len(rows)) as progress:
            sides = copy_images(rows, folder / "images" / "before", folder / "images" / "after", progress.advance)
        run.log["fingerprint"] = digest("images made elsewhere", sides[0].key())
        run.log["images"] = {"before": len(sides[0]), "after": len(sides[1])}
        if any(row.prompt.base in ("forget", *RETAIN_SPLITS) for row in rows):
            with atomic_path(folder / "grid.png") as temporary:
                image_grid(*sides, blur=["forget"] if spec.concept.explicit else []).save(temporary, "png")
        for values in measure_images(spec, *sides, Cache(spec.cache, run.name), device, folder):
            run.values += values
    except BaseException:
        remove_path(folder)
        remove_empty_folders(folder.parent)
        raise
    run.log |= {"status": "done", "seconds": seconds()}
    write_tables(run)
    return run


def _leave_out(spec: RunSpec, rows: Sequence[ImageRow]) -> list[str]:
    """Leave out the metrics that have no number on these rows, such as integrity without retain prompts; returns what is said."""
    images = [row.prompt for row in rows]
    without = [name for name, metric in spec.metrics.items() if metric.sample_problem(spec.evaluation_setting, images)]
    if not without or len(without) == len(spec.metrics):
        return []
    for name in without:
        del spec.metrics[name], spec.config["metrics"][name]
    counts = ", ".join(f"{count} {split}" for split, count in split_counts(rows).items())
    warning = f"{', '.join(without)} left out: they have no number on {counts} images"
    logger.warning("%s", warning)
    return [warning]


def _refuse_splits(spec: RunSpec, rows: Sequence[ImageRow], source: str) -> None:
    """Check that the rows have splits that are measured, for a single concept.

    Raises:
        UserError: they have not.
    """
    if len(spec.concept.concepts_by_split("forget")) > 1:
        raise UserError(f"concept={spec.concept.name}: measure the images of one concept at a time")
    if not {row.prompt.base for row in rows} & {*SPLITS}:
        raise UserError(f"{source}: no row of the splits {', '.join(SPLITS)}")
