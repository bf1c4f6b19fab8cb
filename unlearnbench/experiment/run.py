"""One run from end to end: load, sample the original model, unlearn, sample again, measure, write."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from unlearnbench.algos.training import TrainingContext
from unlearnbench.config.compose import compose
from unlearnbench.config.errors import Interrupted, RunError, UserError, disk_is_full
from unlearnbench.config.overrides import override_texts
from unlearnbench.config.quoting import command_text
from unlearnbench.console import Stopwatch, console, planned_steps, progress_bar
from unlearnbench.data.images import Images
from unlearnbench.experiment.distributed import Processes
from unlearnbench.experiment.forget import (
    concepts_to_come,
    forget_concepts,
    saved_progress,
    seed_global_generators,
    unlearn_concept,
)
from unlearnbench.experiment.measure import measure_images, write_tables
from unlearnbench.experiment.memory import reset_peak_memory
from unlearnbench.experiment.preflight import download_missing, find_loaded_problems, find_problems, find_warnings, select_device
from unlearnbench.experiment.provenance import recorded_fetch
from unlearnbench.experiment.run_folder import Recorder, claimed_folder, locked_run
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.experiment.steps import run_steps
from unlearnbench.experiment.tracking import track
from unlearnbench.experiment.training_images import training_examples
from unlearnbench.metrics.devices import free_gpu
from unlearnbench.models.base import TextToImage
from unlearnbench.models.weights import load_weights
from unlearnbench.reports.image_grid import image_grid
from unlearnbench.results.run import Run, Value, load_run
from unlearnbench.sampling import sample
from unlearnbench.storage.atomic import atomic_path, remove_path, write_text
from unlearnbench.storage.cache import Cache
from unlearnbench.storage.cache_entries import entries_over, remove_entries
from unlearnbench.storage.fitting_batches import out_of_memory
from unlearnbench.storage.units import parse_size

logger = logging.getLogger(__name__)


def run(*overrides: str, config_dir: str | Path | None = None, **settings: Any) -> Run:
    """Do one run; returns its record.

    Args:
        overrides: as on the command line, such as "algo.lr=1e-4".
        config_dir: also use the yaml files in this folder, in groups as in conf/.
        settings: the same as overrides, such as `algo="uce"` or `sample={"prompts": 8}`.

    Examples:
        >>> run("experiment=smoke").find("integrity", "retain").n  # doctest: +SKIP
        8
        >>> run("algo.lr=1e-4", algo="esd_x", concept=["church", "nudity"], seed=3)  # doctest: +SKIP
        <Run esd_x on church+nudity: done, 32 values, outputs/esd_x-church+nudity/2026-07-01_12-00-00>

    Raises:
        UserError: an override is wrong, or something that it needs is missing.
        RunError: the run failed.
    """
    texts = override_texts(overrides, config_dir, settings)
    config = compose(*texts)
    spec = RunSpec.of(config)
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    with claimed_folder(spec, Path("outputs") / f"{spec.algo.name}-{spec.concept.name}" / stamp) as folder:
        return execute(spec, folder, texts)


def resume(folder: str | Path) -> Run:
    """Complete a run that was killed or failed, with the settings in its run.json; a finished run is only read.

    Raises:
        UserError: the folder holds no run, or what the run needs is no longer there.
        RunError: the run failed again.
    """
    record = load_run(folder)
    if record.log["status"] == "done":
        return record
    config = OmegaConf.create({**record.log["config"], "resume": True, "fetch": recorded_fetch(record)})
    return execute(RunSpec.of(config), Path(folder), record.log["overrides"])


def execute(spec: RunSpec, folder: Path, overrides: Sequence[str] = (), processes: Processes | None = None) -> Run:
    """Do the run that `spec` describes and write it to `folder`; with `spec.resume`, complete an unfinished run.

    Whenever the process is killed, the run can be resumed, and the result is the same, bit for bit, on the same machine.
    If there are several processes, the main one calls this, and the others `assist`.

    Args:
        spec: the run's settings.
        folder: the run's folder.
        overrides: for run.json.
        processes: all processes of the run; by default this one alone.

    Raises:
        UserError: something is missing or wrong; the folder is unchanged.
        RunError: the run failed; run.json says why.
    """
    exists = (folder / "run.json").exists()
    has_begun = exists and "started" in load_run(folder).log  # one that a sweep refused has not
    settings = () if has_begun else overrides
    if problems := find_problems(spec, settings):
        raise UserError("\n".join(problems))
    if exists and not spec.resume:
        repair = f"or complete it by {command_text('resume', folder)}"
        raise UserError(f"{folder}: already holds a run; choose another folder with hydra.run.dir=..., {repair}")
    if not exists and (others := [*folder.glob("*/run.json"), *folder.glob("*/*/run.json")]):
        reason = f"holds other runs, such as {others[0].parent}, which `unlearnbench show` would no longer find"
        raise UserError(f"{folder}: {reason}; choose a new folder with hydra.run.dir=...")
    download_missing(spec, settings)
    processes, device = processes or Processes(), select_device(spec.device)
    with locked_run(spec, folder, device, overrides) as record:
        if processes.from_main(record.log["status"] == "done"):
            return record
        console.print(f"{spec.algo.name} on {spec.concept.name}: writes to {folder}", highlight=False, soft_wrap=True)
        record.log["warnings"] = find_warnings(spec)
        for warning in record.log["warnings"]:
            logger.warning("%s", warning)
        with planned_steps(run_steps(spec)):
            _record_outcome(spec, record, device, processes)
        _trim_cache(spec)
    if spec.tracker is not None:
        track(spec.tracker, record)
    return record


def _trim_cache(spec: RunSpec) -> None:
    """Reduce the cache to the limit of the settings; what prevents it is a warning, for the run is done."""
    if spec.cache_limit is None:
        return
    try:
        remove_entries(list(entries_over(spec.cache, parse_size(spec.cache_limit))))
    except (UserError, OSError) as error:
        logger.warning("cache_limit=%s: the cache is not reduced: %s", spec.cache_limit, error)


def assist(spec: RunSpec, processes: Processes) -> None:
    """Take part in a run in all processes but the main one: the same steps as in `execute`, without records and metrics.

    Raises:
        RunError: another process has ended, or the training failed.
    """
    is_done = processes.from_main()
    if is_done:
        return
    seed_global_generators(spec.seed)
    model = spec.model.load(select_device(spec.device))
    processes.assist(model, None)  # images of the original model
    weights, first = processes.from_main()
    guidance = load_weights(model, weights) if first else None
    for number, stage in enumerate(spec.concept.unlearning_stages()):
        if number >= first:
            if spec.training.processes > 1:
                examples, context = processes.from_main(), processes.context(TrainingContext())
                unlearn_concept(spec, model, stage, number, examples, guidance, context)
            guidance = processes.from_main()
            load_weights(model, weights)
        if concepts_to_come(spec, number, first):
            processes.assist(model, guidance)
    processes.assist(model, guidance)


def _record_outcome(spec: RunSpec, record: Run, device: torch.device, processes: Processes) -> None:
    """Do the work; run.json says how it ended, and how many seconds all tries took."""
    recorder = Recorder(record, Stopwatch(record.log.get("seconds", 0.0)))
    try:
        unlearn_and_measure(spec, recorder, device, processes)
        record.log |= {"status": "done", "seconds": recorder.seconds()}
        note = f"in {len(record.log['resumed']) + 1} tries" if "resumed" in record.log else ""
        record.values.append(_cost("total_seconds", "run", record.log["seconds"], note))
        write_tables(record)
    except KeyboardInterrupt as error:
        with suppress(OSError):
            recorder.stop(status="interrupted")
        raise Interrupted(record.folder) from error
    except BaseException as error:
        if isinstance(error, UserError) and "fingerprint" not in record.log:  # refused before the first image
            remove_path(record.folder / "run.json")
            raise
        traceback_file = record.folder / "error.txt"
        with suppress(OSError):
            recorder.stop(status="error", error=f"{type(error).__name__}: {error}")
            write_text(traceback_file, traceback.format_exc())
        if isinstance(error, UserError | RunError):
            raise
        hint = f" (the traceback is in {traceback_file})" if traceback_file.exists() else ""
        raise RunError(f"{failure_text(error, record.folder, spec)}{hint}") from error


def unlearn_and_measure(spec: RunSpec, recorder: Recorder, device: torch.device, processes: Processes) -> None:
    """The work of a run: sample the original model, unlearn, sample again, measure."""
    run, folder, cache = recorder.run, recorder.folder, Cache(spec.cache, recorder.run.name)
    original_images, unlearned_images = _unlearn(spec, recorder, cache, device, processes)
    free_gpu(device)
    run.log |= {
        "cache": {"hits": cache.hits, "misses": cache.misses},
        "images": {"before": len(original_images), "after": len(unlearned_images)},
    }
    run.values += [_cost(name, "unlearning", float(value), spec.algo.cost_note) for name, value in run.log["cost"].items()]
    _write_grid(spec, original_images, unlearned_images, folder)
    seed_global_generators(spec.seed)
    for values in measure_images(spec, original_images, unlearned_images, cache, device, folder):
        run.values += values
        recorder.update()


def _unlearn(
    spec: RunSpec, recorder: Recorder, cache: Cache, device: torch.device, processes: Processes
) -> tuple[Images, Images]:
    """Unlearn, and save weights and pipeline; returns the images of the original and of the unlearned model."""
    seed_global_generators(spec.seed)
    reset_peak_memory()
    with progress_bar("load model", None):
        free_gpu(device)
        model = spec.model.load(device)
        recorder.update(**_original_entries(spec, model, recorder.run))
    prompts, progress, folder = spec.prompts(), saved_progress(spec, recorder), recorder.folder
    fingerprint = recorder.run.log["fingerprint"]
    with processes.generator(model) as generator:
        original_images = sample(
            "sample original", generator, prompts, spec.sample, folder / "images" / "before", cache, fingerprint
        )
        recorder.update()
        stages = spec.concept.unlearning_stages()[len(progress.entries) :]
        examples = [training_examples(spec, generator, cache, fingerprint, stage) for stage in stages]
    guidance = forget_concepts(spec, model, progress, examples, recorder, prompts, processes)
    if spec.save_pipeline and not (folder / "pipeline").exists():
        with atomic_path(folder / "pipeline") as temporary:
            model.save_pipeline(temporary)
    recorder.update()
    unchanged = guidance is None and recorder.run.log["cost"]["trained_parameters"] == 0
    shared = (cache, model.fingerprint()) if unchanged else ()  # an unchanged model has the same images, to the bit
    with processes.generator(model, guidance) as generator:
        unlearned_images = sample("sample unlearned", generator, prompts, spec.sample, folder / "images" / "after", *shared)
    return original_images, unlearned_images


def _original_entries(spec: RunSpec, model: TextToImage, run: Run) -> dict[str, Any]:
    """What run.json says of the original model.

    Raises:
        UserError: the model does not fit into the GPU's memory, or is another one than at an earlier try.
    """
    if problems := find_loaded_problems(spec, model):
        raise UserError("\n".join(problems))
    warnings = find_warnings(spec, model)
    for warning in warnings:
        if warning not in run.log.get("warnings", []):  # not known before the download
            logger.warning("%s", warning)
    fingerprint = model.fingerprint()
    if run.log.get("fingerprint", fingerprint) != fingerprint:
        reason = "the run began with another model, or on another kind of device"
        raise UserError(f"{run.folder}: {reason}; choose another folder")
    return {
        "warnings": warnings,
        "fingerprint": fingerprint,
        "scheduler": type(model.noise_scheduler).__name__,
        "scheduler_config": dict(model.noise_scheduler.config),
    }


def _write_grid(spec: RunSpec, original_images: Images, unlearned_images: Images, folder: Path) -> None:
    """Write grid.png, with the images of explicit concepts blurred."""
    explicit = [split for split, concept in spec.concept.concepts_by_split("forget").items() if concept.explicit]
    with atomic_path(folder / "grid.png") as temporary:
        image_grid(original_images, unlearned_images, blur=explicit).save(temporary, "png")


def _cost(metric: str, split: str, cost: float, note: str = "") -> Value:
    return Value(table="Cost", metric=metric, split=split, unlearned=cost, better="lower", n=0, note=note)


def failure_text(error: BaseException, folder: Path, spec: RunSpec) -> str:
    """One line that says why the run failed, with the repair where one is known."""
    if disk_is_full(error):
        return f"no space is left on the disk; free some and run {command_text('resume', folder)}"
    if out_of_memory(error):
        return f"the GPU's memory is too small; try {_less_memory(spec)}"
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"


def _less_memory(spec: RunSpec) -> str:
    """Settings by which a run takes less memory and that are not set yet."""
    model, algo = spec.model, spec.algo
    settings = ["a smaller algo.batch"] if "batch" not in algo.unread_settings and algo.batch > 1 else []
    settings += ["model.offload_text_encoders=true"] if len(model.parts) > 3 and not model.offload_text_encoders else []
    settings += [] if model.checkpointing else ["model.checkpointing=true"]
    settings += ["model.dtype=bf16"] if model.dtype == "fp32" else []
    *others, last = settings or ["a smaller model.size", "a smaller model"]
    return f"{', '.join(others)} or {last}" if others else last
