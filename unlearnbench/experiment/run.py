"""The whole story of a run: load, sample the original, unlearn, sample again, measure, write."""

from __future__ import annotations

import errno
import re
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from unlearnbench.config.compose import compose
from unlearnbench.config.errors import RunError, UserError
from unlearnbench.console import Stopwatch, console
from unlearnbench.experiment.distributed import Team, image_generator
from unlearnbench.experiment.forget import CLEAR, forget_concepts, seed_global_generators
from unlearnbench.experiment.measure import measure_images, write_tables
from unlearnbench.experiment.memory import memory_problem
from unlearnbench.experiment.preflight import find_problems, select_device
from unlearnbench.experiment.run_folder import LOCK, claimed_folder, open_run
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.experiment.tracking import track
from unlearnbench.reports.image_grid import image_grid
from unlearnbench.results.run import Run, Value, load_run
from unlearnbench.sampling import out_of_memory, sample
from unlearnbench.storage.atomic import atomic_path, remove_path, write_text
from unlearnbench.storage.cache import Cache
from unlearnbench.storage.cache_entries import entries_over, remove_entries
from unlearnbench.storage.units import parse_size

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def run(*overrides: str) -> Run:
    """Do one run, with the same words as on the command line; returns its numbers.

    Examples:
        >>> run("experiment=smoke").find("integrity", "retain").n  # doctest: +SKIP
        8

    Raises:
        UserError: something in the words, or missing for them, that the user can mend.
        RunError: the run failed under way.
    """
    config = compose(*overrides)
    spec = RunSpec.of(config)
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    with claimed_folder(spec, Path("outputs") / f"{spec.algo.name}-{spec.concept.name}" / stamp) as folder:
        return execute(spec, folder, overrides)


def resume(folder: str | Path) -> Run:
    """Take up a run again that was killed or failed, with the settings in its run.json; a finished one is read.

    Raises:
        UserError: it is no run, or what it began with is no longer there.
        RunError: it failed again.
    """
    begun = load_run(folder)
    if begun.log["status"] == "done":
        return begun
    config = OmegaConf.create({**begun.log["config"], "resume": True})
    return execute(RunSpec.of(config), Path(folder), begun.log["overrides"])


def execute(spec: RunSpec, folder: Path, overrides: Sequence[str] = (), team: Team | None = None) -> Run:
    """Do the run that `spec` describes and write it to `folder`, or what is still to do of it if `spec.resume` says so.

    Whenever the process is killed, the folder is one that can be taken up again, and the result is the same, bit for bit,
    on the same machine.

    Raises:
        UserError: before any work, something missing or wrong; nothing is written.
        RunError: the run failed under way; run.json says how.
    """
    lacks = find_problems(spec)
    if lacks:
        raise UserError("\n".join(lacks))
    if (folder / "run.json").exists() and not spec.resume:
        goes_on = f"`unlearnbench resume {folder}` goes on with it"
        raise UserError(f"{folder}: holds a run already; choose another folder with hydra.run.dir=..., or {goes_on}")
    with ExitStack() as held:
        try:
            spec.cache.mkdir(parents=True, exist_ok=True)
            (folder / "images").mkdir(parents=True, exist_ok=True)
            device = select_device(spec.device)
            held.enter_context(FileLock(folder / LOCK, timeout=0))
            held.callback(remove_path, folder / LOCK)
            done = open_run(spec, folder, device, overrides)
            if done.log["status"] == "done":
                return done
            done.write()
        except Timeout as error:
            raise UserError(f"{folder}: its run is under way in another process") from error
        except OSError as error:
            raise UserError(f"{error.filename or folder}: cannot be written ({error.strerror})") from error
        console.print(f"{spec.algo.name} on {spec.concept.name}: writes to {folder}", highlight=False)
        _recorded(spec, done, device, team)
    if spec.tracker is not None:
        track(spec.tracker, done)
    return done


def _recorded(spec: RunSpec, done: Run, device: torch.device, team: Team | None) -> None:
    """Do the work; run.json says how it ended, and how many seconds its tries took."""
    log, seconds = done.log, Stopwatch(done.log.get("seconds", 0.0))
    try:
        _work(spec, done, device, seconds, team)
        log |= {"status": "done", "seconds": seconds()}
        tries = f"in {len(log['resumed']) + 1} tries" if "resumed" in log else ""
        done.values.append(_cost("total_seconds", "run", log["seconds"], tries))
        write_tables(done)
    except BaseException as error:
        log |= {"status": "error", "error": f"{type(error).__name__}: {error}", "seconds": seconds()}
        kept = done.folder / "error.txt"
        with suppress(OSError):
            done.write()
            write_text(kept, traceback.format_exc())
        if isinstance(error, UserError | RunError | KeyboardInterrupt):
            raise
        where = f" (the traceback is in {kept})" if kept.exists() else ""
        raise RunError(f"{_reason(error, done.folder)}{where}") from error


def _cost(metric: str, split: str, cost: float, note: str = "") -> Value:
    return Value(table="Cost", metric=metric, split=split, unlearned=cost, better="lower", n=0, note=note)


def _work(spec: RunSpec, done: Run, device: torch.device, seconds: Stopwatch, team: Team | None) -> None:
    log, folder, cache = done.log, done.folder, Cache(spec.cache, done.name)
    seed_global_generators(spec.seed)
    with suppress(OSError):
        CLEAR.write_text("5")  # an earlier run of this process is not this one's peak
    model = spec.model.load(device)
    originals = image_generator(model, None, team)
    if lack := memory_problem(model, spec.algo, device):  # known once it is downloaded
        raise UserError(lack)
    fingerprint = model.fingerprint()
    if log.get("fingerprint", fingerprint) != fingerprint:
        raise UserError(f"{folder}: its run began with another model, or on another kind of device; choose another folder")
    log |= {
        "fingerprint": fingerprint,
        "scheduler": type(model.scheduler).__name__,
        "scheduler_config": dict(model.scheduler.config),
    }

    def keep() -> None:
        log["seconds"] = seconds()
        done.write()

    keep()
    prompts = spec.prompts()
    before = sample("sample original", originals, prompts, spec.sample, folder / "images" / "before", cache, fingerprint)
    keep()
    guidance = forget_concepts(spec, originals, done, cache, prompts, seconds, team)
    if spec.save_pipeline and not (folder / "pipeline").exists():
        with atomic_path(folder / "pipeline") as made:
            model.save_pipeline(made)
    keep()
    after = sample("sample unlearned", image_generator(model, guidance, team), prompts, spec.sample, folder / "images" / "after")
    log |= {"cache": {"hits": cache.hits, "misses": cache.misses}, "images": {"before": len(before), "after": len(after)}}
    done.values += [_cost(name, "unlearning", float(value)) for name, value in log["cost"].items()]
    with atomic_path(folder / "grid.png") as made:
        explicit = [split for split, concept in spec.concept.concepts_by_split("forget").items() if concept.explicit]
        image_grid(before, after, blur=explicit).save(made, "png")
    seed_global_generators(spec.seed)
    for values in measure_images(spec, before, after, cache, device, folder):
        done.values += values
        keep()
    if spec.cache_limit is not None:
        remove_entries(list(entries_over(spec.cache, parse_size(spec.cache_limit))))


def _reason(error: BaseException, folder: Path) -> str:
    codes = [getattr(error, "errno", None), *map(int, re.findall(r"os error (\d+)", str(error)))]  # the latter by safetensors
    if any(code in FULL for code in codes):
        return f"no space is left on the disk; free some, and `unlearnbench resume {folder}` goes on"
    if out_of_memory(error):
        return "the GPU's memory is too small; try a smaller algo.batch, model.checkpointing=true or model.dtype=bf16"
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"
