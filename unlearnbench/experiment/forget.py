"""The unlearning of a run: concept after concept, saved after each."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unlearnbench.algos.examples import Examples
from unlearnbench.algos.training import TrainingContext
from unlearnbench.config.errors import RunError
from unlearnbench.console import Stopwatch
from unlearnbench.data.concept import Concept
from unlearnbench.data.prompts import Prompt
from unlearnbench.experiment.checkpointing import TrainingJournal
from unlearnbench.experiment.distributed import Lesson, Team, image_generator
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.experiment.training_images import training_examples
from unlearnbench.models.base import SamplingGuidance, TextToImage
from unlearnbench.models.weights import load_weights, save_weights
from unlearnbench.results.run import Run
from unlearnbench.results.settings import without_classes
from unlearnbench.sampling import ImageGenerator, sample
from unlearnbench.storage.atomic import remove_path
from unlearnbench.storage.cache import Cache, digest
from unlearnbench.storage.tensors import read_hashed, tensor_digest

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")  # of Linux


def seed_global_generators(seed: int) -> None:
    """Set the global generators, which nothing here should use, so that they too are the same in a run taken up again."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def forget_concepts(
    spec: RunSpec,
    images_of: ImageGenerator,
    done: Run,
    cache: Cache,
    prompts: Sequence[Prompt],
    seconds: Stopwatch,
    team: Team | None,
) -> SamplingGuidance | None:
    """Forget, concept after concept if so set, and save what changed; between two of them sample what is forgotten so far.

    What an earlier try has forgotten, and saved whole, is loaded; a method that changes sampling alone saved nothing.

    Returns:
        How the model is sampled from now on, if not plainly.
    """
    model, log, path, stages = images_of.model, done.log, done.folder / "weights.safetensors", spec.concept.unlearning_stages()
    earlier = log.get("unlearned", [])
    saved = read_hashed(path, earlier[-1]["weights"]) if earlier and spec.algo.supports_sequential else None
    finished = list(earlier) if saved else []
    todo = range(len(finished), len(stages))
    examples = {number: training_examples(spec, images_of, cache, log["fingerprint"], stages[number]) for number in todo}
    guidance = load_weights(model, path) if saved else None
    names = list(saved[0]) if saved else []
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    for number, stage in enumerate(stages):
        if number in todo:
            journal = _journal(spec, done, stage, examples[number], finished)
            seed_global_generators(spec.seed + number)
            shared = team is not None and spec.training.processes > 1
            context: TrainingContext = team.context(journal) if team is not None and shared else journal
            if team is not None and shared:
                team.teach(Lesson(*examples[number], stage, spec.seed + number))
            changed, guidance = spec.algo.unlearn(model, *examples[number], stage, spec.seed + number, context, guidance)
            names += changed
            seconds.add(journal.restored)
            finished.append(_saved(model, done, names, journal, guidance))
            if earlier[number : number + 1] and earlier[number]["weights"] != finished[number]["weights"]:
                for outdated in (done.folder / "pipeline", *(done.folder / "images").glob("after*")):
                    remove_path(outdated)
            log |= {"unlearned": finished, "unlearning_seconds": finished[number]["seconds"], "seconds": seconds()}
            done.write()
            journal.close()
        if team is not None:
            team.change(path, guidance)
        later = {later.name for later in stages[number + 1 :]}
        if later and number + 1 >= len(finished):
            so_far = [p for p in prompts if p.split.partition(": ")[2] not in later]
            folder = done.folder / "images" / f"after-{number + 1}-{stage.name}"
            sample(f"sample after {stage.name}", image_generator(model, guidance, team), so_far, spec.sample, folder)
    return guidance


def _journal(
    spec: RunSpec, done: Run, stage: Concept, examples: tuple[Examples, Examples], finished: list[dict[str, Any]]
) -> TrainingJournal:
    """The record of the training that forgets one concept, after those that are forgotten already."""
    settings = without_classes({part: spec.config[part] for part in ("algo", "concept")}), stage.name, spec.seed + len(finished)
    before = [entry["weights"] for entry in finished]
    key = digest(done.log["fingerprint"], settings, before, [side.digest() for side in examples])
    lines, seconds = (finished[-1]["lines"], finished[-1]["seconds"]) if finished else (0, 0.0)
    return TrainingJournal(done.folder, spec.checkpoint_every, key, lines, seconds)


def _saved(
    model: TextToImage, done: Run, names: Sequence[str], journal: TrainingJournal, guidance: SamplingGuidance | None
) -> dict[str, Any]:
    """Save what changed so far and what it cost; returns the entry in run.json by which it is known again."""
    took = journal.seconds()
    changed = {name: parameter for name, parameter in model.named_parameters() if name in set(names)}
    for name, parameter in changed.items():
        if not torch.isfinite(parameter).all():
            raise RunError(f"{name} is no longer finite after unlearning; try a smaller algo.lr")
    path = done.folder / "weights.safetensors"
    save_weights(model, path, list(changed), guidance)
    done.log["cost"] = {
        "seconds": took,
        "trained_parameters": sum(parameter.numel() for parameter in changed.values()),
        "saved_bytes": path.stat().st_size,
        "peak_memory_mb": _peak_memory(model.device),
    }
    return {"weights": tensor_digest(changed), "seconds": took, "lines": journal.lines}


def _peak_memory(device: torch.device) -> float:
    """Peak memory in 2^20 bytes: of the GPU since unlearning began; else of the process, on Linux since the run began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if found := re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text() if STATUS.exists() else ""):
        return int(found.group(1)) / 2**10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
