"""The whole story of a run: load, sample the original, unlearn, sample again, measure, write."""

from __future__ import annotations

import errno
import json
import math
import platform
import random
import re
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from unlearnbench import checkpoint, entries, files, pictures, results, team, tracking
from unlearnbench.algos.base import Examples
from unlearnbench.cache import Cache, digest
from unlearnbench.checkpoint import tensor_digest
from unlearnbench.compare import NEUTRAL
from unlearnbench.config import RunError, UserError, compose
from unlearnbench.data import Concept, Images, Prompt, open_image, read_captioned
from unlearnbench.journal import Journal
from unlearnbench.metrics.base import Evidence
from unlearnbench.models.base import TextToImage
from unlearnbench.models.memory import lacks_memory
from unlearnbench.models.pipeline import Pipeline
from unlearnbench.progress import Stopwatch, bar, console
from unlearnbench.results import Run, Value
from unlearnbench.sampling import Batch, Sampling, image_seed, painted, sample
from unlearnbench.sets import record
from unlearnbench.spec import Spec

PACKAGES = ("unlearnbench", "torch", "torchvision", "diffusers", "transformers", "hydra-core", "lpips", "torchmetrics", "numpy")
TRAINING_SEED = 1_000_003
LOCK = "run.lock"
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
                if log["status"] != "done" and not _differences(log["config"], _plain(spec)):
                    return path.parent
    try:
        return files.claim(folder, "images")
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be written ({error.strerror})") from error


def device_of(spec: Spec) -> torch.device:
    """The device that the settings ask for.

    Raises:
        UserError: it is unknown or absent.
    """
    if spec.device == "auto":
        return team.own_gpu(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if spec.device not in ("cpu", "cuda") and not spec.device.startswith("cuda:"):
        raise UserError(f"device={spec.device}: known: auto, cpu, cuda, cuda:<number>")
    if spec.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device={spec.device}: no CUDA device here; use device=cpu, or install a CUDA build of torch")
    return team.own_gpu(torch.device(spec.device))


def check(spec: Spec) -> list[str]:
    """Everything that would keep this run from working, one line each; loads no model.

    Raises:
        UserError: the prompts cannot be read.
    """
    lacks = [
        _torchvision_lacks(),
        spec.model.missing(),
        spec.algo.missing(spec.model),
        *(metric.missing(spec) for metric in spec.metrics.values()),
        tracking.missing(spec.tracker),
        team.missing(spec.training.processes, spec.algo.batch),
    ]
    splits = {prompt.split for prompt in prompts_of(spec)}
    for split, concept in spec.concept.by_split("forget").items():
        if split not in splits:
            lacks.append(f"concept.prompts={concept.prompts}: no forget prompt to measure")
    if len(spec.concept.stages()) > 1 and not spec.algo.lasting:
        repair = "forget them at once: concept.continual=false"
        lacks.append(f"algo={spec.algo.name} keeps nothing of a concept when it forgets the next; {repair}")
    device = device_of(spec)
    if isinstance(spec.model, Pipeline) and not any(lacks):
        lacks.append(lacks_memory(spec.model, spec.algo, device))
    folders = spec.training.forget_folder, spec.training.retain_folder
    captions = [None if folder is None else read_captioned(folder)[0] for folder in folders]
    if spec.algo.needs_anchors:
        lacks += [_anchors_lack(spec, stage, captions[0]) for stage in spec.concept.stages()]
    return list(dict.fromkeys(lack for lack in lacks if lack))


def _anchors_lack(spec: Spec, concept: Concept, captions: list[str] | None) -> str | None:
    asked = [p.text for p in _to_forget(concept)] if captions is None else captions
    if not asked or any(concept.substitute(text) != text for text in asked):
        return None
    repair = 'give what to paint instead, such as concept.anchor={"church": "house"}, or try algo=esd_x'
    return f"algo={spec.algo.name}: concept.anchor exchanges nothing in the forget prompts of {concept.name}; {repair}"


def _torchvision_lacks() -> str | None:
    """LPIPS and CLIP's image processor need torchvision's compiled operators, which load beside one build of torch only."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        repair = "install both from one index: pip install -U torch torchvision"
        return f"torchvision does not load beside torch {torch.__version__} ({error}); {repair}"
    return None


def prompts_of(spec: Spec) -> list[Prompt]:
    """The prompts that are measured: forget, paraphrase, and the retain splits."""
    asked = [p for p in spec.concept.load() if p.base in ("forget", "paraphrase")]
    return [p for p in [*asked, *spec.retain.load(spec.concept)] if p.use in ("", "measure")]


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
            device = device_of(spec)
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
    now = _log(spec, device, overrides)
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
        elif a != b and prefix + key not in NEUTRAL:
            found.append(f"{prefix}{key} {a}, now {b}")
    return found


def _plain(spec: Spec) -> dict[str, Any]:
    """The settings as they stand in run.json."""
    return json.loads(json.dumps(spec.config, default=str))


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


def _log(spec: Spec, device: torch.device, overrides: Sequence[str]) -> dict[str, Any]:
    return {
        "status": "started",
        "algo": spec.algo.name,
        "overrides": list(overrides),
        "command": " ".join(sys.argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "versions": _versions(),
        "git": _git_commit(),
        "prompts": digest([[asdict(p) for p in side] for side in (spec.concept.load(), spec.retain.load(spec.concept))]),
        "prompt_sets": record([*spec.concept.sources(), spec.retain.prompts, spec.retain.images]),
        "config": _plain(spec),
    }


def _work(spec: Spec, done: Run, device: torch.device, seconds: Stopwatch) -> None:
    log, folder, cache = done.log, done.folder, Cache(spec.cache, done.name)
    _seed(spec.seed)
    model = spec.model
    model.load(device)
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
    prompts = prompts_of(spec)
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
    settings = spec.config["algo"], spec.config["concept"], stage.name, spec.seed + len(finished)
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


def _to_forget(concept: Concept) -> list[Prompt]:
    """The forget prompts that train."""
    return [p for p in concept.load() if p.base == "forget" and p.use in ("", "train")]


def training_examples(
    spec: Spec, model: TextToImage, cache: Cache, fingerprint: str, concept: Concept | None = None
) -> tuple[Examples, Examples]:
    """The forget and retain examples: the user's folders, or images that the original samples from training prompts.

    Args:
        spec: the run's settings.
        model: the original.
        cache: where its images are kept.
        fingerprint: of the original.
        concept: what is forgotten, if not all that the run forgets.
    """
    concept = concept or spec.concept
    asked = _to_forget(concept)
    kept = [p for p in spec.retain.load(spec.concept) if p.use in ("", "train")]
    sides = []

    def paint(texts: list[str]) -> torch.Tensor:
        said: Counter[str] = Counter()
        seeds = []
        for text in texts:
            seeds.append(image_seed(TRAINING_SEED, Prompt(text), said[text]))
            said[text] += 1
        return _sampled_latents(model, texts, seeds, spec.sample, cache, fingerprint)

    for side, prompts, folder in (
        ("forget", asked, spec.training.forget_folder),
        ("retain", kept, spec.training.retain_folder),
    ):
        if folder is not None:
            texts, files = read_captioned(folder)
            if side == "forget" and concept is not spec.concept:
                chosen = [i for i, text in enumerate(texts) if concept.names(text)]
                if not chosen:
                    raise UserError(f"{folder}: {concept.name} has no image there; no caption says {', '.join(concept.words)}")
                texts, files = [texts[i] for i in chosen], [files[i] for i in chosen]
            latents = torch.cat([model.encode_images(torch.from_numpy(open_image(f, model.size))[None]) for f in files])
        else:
            if not prompts:
                raise UserError(f"no {side} prompt to train on; give rows with use=train (or an empty use)")
            texts = [p.text for _ in range(spec.training.per_prompt) for p in prompts]
            latents = paint(texts) if spec.algo.needs_images else torch.empty(0)
        anchors = [concept.substitute(t) for t in texts] if side == "forget" else texts
        others = paint(anchors) if side == "forget" and spec.algo.needs_anchor_images else torch.empty(0)
        sides.append(Examples(texts, anchors, latents.to(model.device), anchor_latents=others.to(model.device)))
    counts = Counter(p.split for p in asked)
    if spec.training.forget_folder is None and len(set(counts.values())) > 1:
        sides[0].weights = torch.tensor([1 / counts[p.split] for _ in range(spec.training.per_prompt) for p in asked])
    return sides[0], sides[1]


def _sampled_latents(
    model: TextToImage, texts: list[str], seeds: list[int], settings: Sampling, cache: Cache, fingerprint: str
) -> torch.Tensor:
    def make() -> dict[str, torch.Tensor]:
        parts, size = [], settings.batch
        cut = [(texts[i : i + size], seeds[i : i + size]) for i in range(0, len(texts), size)]
        with bar("sample training set", len(texts)) as shown:
            for images in painted(model, [Batch(*part, settings.steps, settings.guidance) for part in cut]):
                parts.append(model.encode_images(images).cpu())
                shown.advance(len(images))
        return {"latents": torch.cat(parts)}

    return cache.get("training", [fingerprint, texts, seeds, settings.steps, settings.guidance, model.size], make)["latents"]


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
    results.write_text(folder / "per_image.json", json.dumps(evidence.per_image, indent=1))
    stages = spec.concept.stages()
    for number, stage in enumerate(stages[:-1], 1):
        so_far = Images(folder / "images" / f"after-{number}-{stage.name}")
        evidence = Evidence(before.where(*{shot.split for shot in so_far}), so_far, spec, cache, device, {})
        values = [value for metric in spec.metrics.values() if metric.each_stage for value in metric.measure(evidence)]
        yield [replace(value, table=f"After {stage.name}, {number} of {len(stages)}") for value in values]


def measure(folder: str | Path, *overrides: str) -> Run:
    """Measure a finished run again from its images, with its own settings or with others; no model is loaded.

    Raises:
        UserError: it is no run, its images are not whole, or the settings ask for what is not there.
    """
    done = results.load_run(folder)
    spec = Spec.of(compose(*done.log["overrides"], *overrides))
    before, after = (Images(done.folder / "images" / side) for side in ("before", "after"))
    between = [Images(path) for path in sorted((done.folder / "images").glob("after-*"))]
    for images in (before, after, *between):
        damaged = [shot.file for shot in images if not images.intact(shot)]
        if damaged or not len(images):
            raise UserError(f"{images.folder}: {', '.join(damaged[:3]) or 'no image'} missing or changed since the run")
    lacks = [lack for metric in spec.metrics.values() if (lack := metric.missing(spec))]
    if lacks:
        raise UserError("\n".join(dict.fromkeys(lacks)))
    done.values = [value for value in done.values if value.table == "Cost"]
    done.log["config"]["metrics"] = spec.config["metrics"]
    measured = _measure(spec, before, after, Cache(spec.cache, done.name), device_of(spec), done.folder)
    done.values += [value for values in measured for value in values]
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
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU's memory is too small; try a smaller algo.batch, model.checkpointing=true or model.dtype=bf16"
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _git_commit() -> str | None:
    """The commit of the source tree that this package runs from, with "+" if it was changed since; None if installed."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    asked = [["git", "-C", str(root), "rev-parse", "HEAD"], ["git", "-C", str(root), "status", "--porcelain", "-uno"]]
    try:
        commit, changes = (
            subprocess.run(a, capture_output=True, text=True, check=True, timeout=10).stdout.strip() for a in asked
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changes else "")


def _peak_memory(device: torch.device) -> float:
    """Peak megabytes: of the GPU since unlearning began, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
