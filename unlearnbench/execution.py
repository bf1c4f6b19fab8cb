"""The whole story of a run: load, sample the original, unlearn, sample again, measure, write."""

from __future__ import annotations

import errno
import json
import math
import random
import re
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from unlearnbench import checkpoint, entries, files, pictures, results, team, tracking
from unlearnbench.algos.base import Examples
from unlearnbench.cache import Cache, digest
from unlearnbench.check import check, device_of
from unlearnbench.checkpoint import tensor_digest
from unlearnbench.compare import NEUTRAL, without_classes
from unlearnbench.config import RunError, UserError, compose
from unlearnbench.data import Concept, Images, Prompt
from unlearnbench.journal import Journal
from unlearnbench.metrics.base import Evidence
from unlearnbench.models.base import TextToImage
from unlearnbench.models.memory import lacks_memory
from unlearnbench.paired import per_image
from unlearnbench.progress import Stopwatch, bar, console
from unlearnbench.provenance import again, plain, provenance
from unlearnbench.results import Run, Value
from unlearnbench.sampling import out_of_memory, sample
from unlearnbench.spec import Spec
from unlearnbench.training import training_examples

LOCK = "run.lock"
CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")  # of Linux
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
    spec = Spec.of(config)
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    with own_folder(spec, Path("outputs") / f"{spec.algo.name}-{spec.concept.name}" / stamp) as folder:
        return execute(spec, folder, overrides)


def resume(folder: str | Path) -> Run:
    """Take up a run again that was killed or failed, with the settings in its run.json; a finished one is read.

    Raises:
        UserError: it is no run, or what it began with is no longer there.
        RunError: it failed again.
    """
    begun = results.load_run(folder)
    if begun.log["status"] == "done":
        return begun
    config = OmegaConf.create({**begun.log["config"], "resume": True})
    return execute(Spec.of(config), Path(folder), begun.log["overrides"])


@contextmanager
def own_folder(spec: Spec, folder: Path) -> Iterator[Path]:
    """A folder for one run, by `folder_for`; it is gone again if no run began in it."""
    own = folder_for(spec, folder)
    try:
        yield own
    finally:
        files.remove_empty(own / "images", own, own.parent)


def folder_for(spec: Spec, folder: Path) -> Path:
    """The newest unfinished run beside `folder` with the settings of `spec`, if `resume` asks for it; else one of its own.

    Two runs that begin in the same second get two folders: the second has -2 at its name.
    """
    if spec.resume:
        for path in sorted(folder.parent.glob("*/run.json"), reverse=True):
            with suppress(UserError):
                log = results.load_run(path.parent).log
                if log["status"] != "done" and not _differences(log["config"], plain(spec)):
                    return path.parent
    try:
        return files.claim(folder, "images")
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be written ({error.strerror})") from error


def execute(spec: Spec, folder: Path, overrides: Sequence[str] = ()) -> Run:
    """Do the run that `spec` describes and write it to `folder`, or what is still to do of it if `spec.resume` says so.

    Whenever the process is killed, the folder is one that can be taken up again, and the result is the same, bit for bit,
    on the same machine.

    Raises:
        UserError: before any work, something missing or wrong; nothing is written.
        RunError: the run failed under way; run.json says how.
    """
    lacks = check(spec)
    if lacks:
        raise UserError("\n".join(lacks))
    if (folder / "run.json").exists() and not spec.resume:
        goes_on = f"`unlearnbench resume {folder}` goes on with it"
        raise UserError(f"{folder}: holds a run already; choose another folder with hydra.run.dir=..., or {goes_on}")
    with ExitStack() as held:
        try:
            spec.cache.mkdir(parents=True, exist_ok=True)
            (folder / "images").mkdir(parents=True, exist_ok=True)
            device = device_of(spec.device)
            held.enter_context(FileLock(folder / LOCK, timeout=0))
            held.callback(files.remove, folder / LOCK)
            done = _opened(spec, folder, device, overrides)
            if done.log["status"] == "done":
                return done
            done.write()
        except Timeout as error:
            raise UserError(f"{folder}: its run is under way in another process") from error
        except OSError as error:
            raise UserError(f"{error.filename or folder}: cannot be written ({error.strerror})") from error
        console.print(f"{spec.algo.name} on {spec.concept.name}: writes to {folder}", highlight=False)
        _recorded(spec, done, device)
    if spec.tracker is not None:
        tracking.track(spec.tracker, done)
    return done


def _opened(spec: Spec, folder: Path, device: torch.device, overrides: Sequence[str]) -> Run:
    """A run's record: a new one, or that of an earlier try, which is taken up again."""
    now = provenance(spec, device, overrides)
    if not (folder / "run.json").exists():
        return Run(folder, now)
    done = results.load_run(folder)
    log = done.log
    if log["status"] == "done" or "started" not in log:
        return done if log["status"] == "done" else Run(folder, now)
    if others := _differences(log["config"], now["config"]):
        raise UserError(f"{folder}: its run began with other settings ({', '.join(others[:3])}); choose another folder")
    if log["prompts"] != now["prompts"]:
        raise UserError(f"{folder}: its run began with other prompts than the lists hold now; choose another folder")
    if others := _differences({k: log[k] for k in ("versions", "device")}, {k: now[k] for k in ("versions", "device")}):
        console.print(f"taken up again elsewhere, equal up to rounding: {', '.join(others)}", style="yellow", markup=False)
    for path in (folder, folder / "images"):
        files.remove_leftovers(path)
    files.remove(folder / "error.txt")
    log.pop("error", None)
    log |= {"status": "started", "resumed": [*log.get("resumed", []), now["started"]]}
    return Run(folder, log)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Where two trees of settings differ, as "algo.lr 1e-05, now 0.0001"; less those that leave the result as it is."""
    found = []
    for key in dict.fromkeys([*before, *now]):
        a, b = before.get(key), now.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b and prefix + key not in NEUTRAL and key != "_target_":
            found.append(f"{prefix}{key} {a}, now {b}")
    return found


def _recorded(spec: Spec, done: Run, device: torch.device) -> None:
    """Do the work; run.json says how it ended, and how many seconds its tries took."""
    log, seconds = done.log, Stopwatch(done.log.get("seconds", 0.0))
    try:
        _work(spec, done, device, seconds)
        log |= {"status": "done", "seconds": seconds()}
        tries = f"in {len(log['resumed']) + 1} tries" if "resumed" in log else ""
        done.values.append(Value("Cost", "total_seconds", "run", None, log["seconds"], "lower", 0, note=tries))
        _write_tables(done)
    except BaseException as error:
        log |= {"status": "error", "error": f"{type(error).__name__}: {error}", "seconds": seconds()}
        kept = done.folder / "error.txt"
        with suppress(OSError):
            done.write()
            results.write_text(kept, traceback.format_exc())
        if isinstance(error, UserError | RunError | KeyboardInterrupt):
            raise
        where = f" (the traceback is in {kept})" if kept.exists() else ""
        raise RunError(f"{_reason(error, done.folder)}{where}") from error


def _work(spec: Spec, done: Run, device: torch.device, seconds: Stopwatch) -> None:
    log, folder, cache = done.log, done.folder, Cache(spec.cache, done.name)
    _seed(spec.seed)
    with suppress(OSError):
        CLEAR.write_text("5")  # an earlier run of this process is not this one's peak
    model = spec.model
    model.load(device)
    if lack := lacks_memory(model, spec.algo, device):  # known once it is downloaded
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
    before = sample("sample original", model, prompts, spec.sample, folder / "images" / "before", cache, fingerprint)
    keep()
    _unlearn(spec, model, done, cache, prompts, seconds)
    if spec.save_pipeline and not (folder / "pipeline").exists():
        with files.beside(folder / "pipeline") as made:
            model.save_pipeline(made)
    keep()
    after = sample("sample unlearned", model, prompts, spec.sample, folder / "images" / "after")
    log |= {"cache": {"hits": cache.hits, "misses": cache.misses}, "images": {"before": len(before), "after": len(after)}}
    done.values += [Value("Cost", name, "unlearning", None, float(value), "lower", 0) for name, value in log["cost"].items()]
    with files.beside(folder / "grid.png") as made:
        explicit = [split for split, concept in spec.concept.by_split("forget").items() if concept.explicit]
        pictures.grid(before, after, blur=explicit).save(made, "png")
    _seed(spec.seed)
    for values in _measure(spec, before, after, cache, device, folder):
        done.values += values
        keep()
    if spec.cache_limit is not None:
        entries.remove(list(entries.over(spec.cache, entries.size_of(spec.cache_limit))))


def _seed(seed: int) -> None:
    """Set the global generators, which nothing here should use, so that they too are the same in a run taken up again."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _unlearn(spec: Spec, model: TextToImage, done: Run, cache: Cache, prompts: Sequence[Prompt], seconds: Stopwatch) -> None:
    """Forget, concept after concept if so set, and save what changed; between two of them sample what is forgotten so far.

    What an earlier try has forgotten, and saved whole, is loaded; a method that steers sampling saved nothing, and steers.
    """
    log, path, stages = done.log, done.folder / "weights.safetensors", spec.concept.stages()
    earlier = log.get("unlearned", [])
    saved = checkpoint.read_sealed(path, earlier[-1]["weights"]) if earlier and spec.algo.lasting else None
    finished = list(earlier) if saved else []
    todo = range(len(finished), len(stages))
    examples = {number: training_examples(spec, model, cache, log["fingerprint"], stages[number]) for number in todo}
    if saved:
        model.load_weights(path)
    names = list(saved[0]) if saved else []
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    for number, stage in enumerate(stages):
        if number in todo:
            journal = _journal(spec, done, stage, examples[number], finished)
            spec.algo.journal = journal if spec.algo.team is None else None  # a shared training keeps no state
            _seed(spec.seed + number)
            if spec.algo.team is not None:
                spec.algo.team.teach(team.Lesson(*examples[number], stage, spec.seed + number))
            names += spec.algo.unlearn(model, *examples[number], stage, spec.seed + number, journal)
            seconds.add(journal.restored)
            finished.append(_saved(model, done, names, journal))
            if earlier[number : number + 1] and earlier[number]["weights"] != finished[number]["weights"]:
                for made in (done.folder / "pipeline", *(done.folder / "images").glob("after*")):
                    files.remove(made)
            log |= {"unlearned": finished, "unlearning_seconds": finished[number]["seconds"], "seconds": seconds()}
            done.write()
            journal.close()
        if model.team is not None:
            model.team.change(path)
        later = {later.name for later in stages[number + 1 :]}
        if later and number + 1 >= len(finished):
            so_far = [p for p in prompts if p.split.partition(": ")[2] not in later]
            folder = done.folder / "images" / f"after-{number + 1}-{stage.name}"
            sample(f"sample after {stage.name}", model, so_far, spec.sample, folder)


def _journal(
    spec: Spec, done: Run, stage: Concept, examples: tuple[Examples, Examples], finished: list[dict[str, Any]]
) -> Journal:
    """The record of the training that forgets one concept, after those that are forgotten already."""
    settings = without_classes({part: spec.config[part] for part in ("algo", "concept")}), stage.name, spec.seed + len(finished)
    before = [entry["weights"] for entry in finished]
    key = digest(done.log["fingerprint"], settings, before, [side.digest() for side in examples])
    lines, seconds = (finished[-1]["lines"], finished[-1]["seconds"]) if finished else (0, 0.0)
    return Journal(done.folder, spec.checkpoint_every, key, lines, seconds)


def _saved(model: TextToImage, done: Run, names: Sequence[str], journal: Journal) -> dict[str, Any]:
    """Save what changed so far and what it cost; returns the entry in run.json by which it is known again."""
    took = journal.seconds()
    changed = {name: parameter for name, parameter in model.named_parameters() if name in set(names)}
    for name, parameter in changed.items():
        if not torch.isfinite(parameter).all():
            raise RunError(f"{name} is no longer finite after unlearning; try a smaller algo.lr")
    path = done.folder / "weights.safetensors"
    model.save_weights(path, list(changed))
    done.log["cost"] = {
        "seconds": took,
        "trained_parameters": sum(parameter.numel() for parameter in changed.values()),
        "saved_bytes": path.stat().st_size,
        "peak_memory_mb": _peak_memory(model.device),
    }
    return {"weights": tensor_digest(changed), "seconds": took, "lines": journal.lines}


def _measure(
    spec: Spec, before: Images, after: Images, cache: Cache, device: torch.device, folder: Path
) -> Iterator[list[Value]]:
    """The values of one metric after another; the distances of single images go to per_image.json at the end."""
    evidence = Evidence(before, after, spec, cache, device, {})
    with bar("measure", len(spec.metrics)) as shown:
        for name, metric in spec.metrics.items():
            values = [replace(value, unlearned=float(value.unlearned)) for value in metric.measure(evidence)]
            for value in values:
                if not math.isfinite(value.unlearned):
                    raise RunError(f"metrics.{name}: {value.metric} on {value.split} is not a finite number")
            yield values
            shown.advance(remark=name)
    results.write_text(folder / "per_image.json", json.dumps(per_image(folder) | evidence.per_image, indent=1))
    stages = spec.concept.stages()
    for number, stage in enumerate(stages[:-1], 1):
        so_far = Images(folder / "images" / f"after-{number}-{stage.name}")
        evidence = Evidence(before.where(*{shot.split for shot in so_far}), so_far, spec, cache, device, {})
        values = [value for metric in spec.metrics.values() if metric.each_stage for value in metric.measure(evidence)]
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
    done = results.load_run(folder)
    spec = Spec.of(again(done, overrides, ("metrics", "retain.images")))
    before, after = (Images(done.folder / "images" / side) for side in ("before", "after"))
    between = [Images(path) for path in sorted((done.folder / "images").glob("after-*"))]
    for images in (before, after, *between):
        damaged = [shot.file for shot in images if not images.intact(shot)]
        if damaged or not len(images):
            raise UserError(f"{images.folder}: {', '.join(damaged[:3]) or 'no image'} missing or changed since the run")
    lacks = [lack for metric in spec.metrics.values() if (lack := metric.missing(spec))]
    if lacks:
        raise UserError("\n".join(dict.fromkeys(lacks)))
    measured = _measure(spec, before, after, Cache(spec.cache, done.name), device_of(spec.device), done.folder)
    found = {value.place: value for values in measured for value in values}
    config, images = done.log["config"], spec.config["retain"]["images"]
    other_images = images != config["retain"]["images"]
    kept = [value for value in done.values if value.place in found or not (other_images and value.table == "FID")]
    done.values = [*(found.pop(value.place, value) for value in kept), *found.values()]
    config["metrics"] |= spec.config["metrics"]
    config["retain"]["images"] = images
    if overrides:
        done.log["measured"] = [*done.log.get("measured", []), list(overrides)]
    _write_tables(done)
    return done


def _write_tables(done: Run) -> None:
    order = results.tables(done)
    done.values.sort(key=lambda value: order.index(value.table))
    results.write_text(done.folder / "tables.md", results.markdown(done))
    results.write_text(done.folder / "tables.csv", results.as_csv(done))
    done.write()


def _reason(error: BaseException, folder: Path) -> str:
    codes = [getattr(error, "errno", None), *map(int, re.findall(r"os error (\d+)", str(error)))]  # the latter by safetensors
    if any(code in FULL for code in codes):
        return f"no space is left on the disk; free some, and `unlearnbench resume {folder}` goes on"
    if out_of_memory(error):
        return "the GPU's memory is too small; try a smaller algo.batch, model.checkpointing=true or model.dtype=bf16"
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"


def _peak_memory(device: torch.device) -> float:
    """Peak memory in 2^20 bytes: of the GPU since unlearning began; else of the process, on Linux since the run began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if found := re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text() if STATUS.exists() else ""):
        return int(found.group(1)) / 2**10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
