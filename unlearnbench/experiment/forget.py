"""The unlearning of a run: concept after concept, saved after each."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from unlearnbench.algos.continual import Constraint
from unlearnbench.algos.examples import Examples
from unlearnbench.algos.training import TrainingContext, Unlearned
from unlearnbench.config.errors import RunError
from unlearnbench.console import progress_bar
from unlearnbench.data.concept import Concept
from unlearnbench.data.prompts import Prompt
from unlearnbench.experiment.checkpointing import TrainingJournal
from unlearnbench.experiment.continual import ContinualStart
from unlearnbench.experiment.distributed import Processes
from unlearnbench.experiment.memory import peak_memory
from unlearnbench.experiment.run_folder import Recorder
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.models.base import SamplingGuidance, TextToImage
from unlearnbench.models.lora_file import save_lora_stage
from unlearnbench.models.weights import load_weights, save_weights
from unlearnbench.results.settings import without_classes
from unlearnbench.sampling import sample
from unlearnbench.storage.atomic import remove_path
from unlearnbench.storage.cache import digest
from unlearnbench.storage.tensors import read_hashed, tensor_digest

ExamplePair = tuple[Examples, Examples]  # to forget and to retain


def seed_global_generators(seed: int) -> None:
    """Seed the global generators, so that code of others that uses them gives the same results in a resumed run."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@dataclass(frozen=True)
class Progress:
    """What a run has unlearned so far.

    Attributes:
        entries: for each concept its entry in run.json: the hash of the weights, the seconds, the lines of train.csv.
        names: the parameters that changed.
        earlier: the entries of an earlier try, which this one may have to repeat.
        guidance: how the model is sampled from now on; None for plain sampling.
    """

    entries: list[dict[str, Any]]
    names: list[str]
    earlier: list[dict[str, Any]]
    guidance: SamplingGuidance | None = None


def saved_progress(spec: RunSpec, recorder: Recorder) -> Progress:
    """What an earlier try of the run has unlearned, if the saved weights are complete; its guidance is not loaded yet.

    A method whose work does not last, such as one that changes only sampling, always starts again.
    """
    earlier = recorder.run.log.get("unlearned", [])
    saved = read_hashed(recorder.weights, earlier[-1]["weights"]) if earlier and spec.algo.supports_sequential else None
    return Progress(earlier, list(saved[0]), earlier) if saved else Progress([], [], earlier)


def forget_concepts(
    spec: RunSpec,
    model: TextToImage,
    progress: Progress,
    examples: Sequence[ExamplePair],
    recorder: Recorder,
    prompts: Sequence[Prompt],
    processes: Processes,
) -> SamplingGuidance | None:
    """Unlearn one concept after another and save the weights after each; sample the images in between.

    Args:
        spec: the run's settings.
        model: the original model, which is changed.
        progress: what an earlier try has unlearned: its weights are loaded.
        examples: the training examples of the other concepts.
        recorder: writes run.json.
        prompts: those that are measured.
        processes: take part in sampling, and in training if the settings say so.

    Returns:
        How the model is sampled from now on; None for plain sampling.
    """
    first, start = len(progress.entries), ContinualStart.of(spec, model, recorder.folder)
    processes.from_main((recorder.weights.resolve(), first))
    if first:
        progress = replace(progress, guidance=load_weights(model, recorder.weights))
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    for number, stage in enumerate(spec.concept.unlearning_stages()):
        if number >= first:
            progress = _forget_concept(spec, model, stage, examples[number - first], progress, recorder, processes, start)
            processes.from_main(progress.guidance)
        if later := concepts_to_come(spec, number, first):
            stage_prompts = [prompt for prompt in prompts if prompt.split.partition(": ")[2] not in later]
            folder = recorder.folder / "images" / f"after-{number + 1}-{stage.name}"
            with processes.generator(model, progress.guidance) as generator:
                sample(f"sample after {stage.name}", generator, stage_prompts, spec.sample, folder)
    return progress.guidance


def concepts_to_come(spec: RunSpec, number: int, first: int) -> set[str]:
    """The concepts of later stages; empty if no images are sampled after this stage, because no weights of it remain.

    Args:
        spec: the run's settings.
        number: the stage, from 0.
        first: the first stage that this try unlearns.
    """
    return {later.name for later in spec.concept.unlearning_stages()[number + 1 :]} if number + 1 >= first else set()


def unlearn_concept(
    spec: RunSpec,
    model: TextToImage,
    stage: Concept,
    number: int,
    examples: ExamplePair,
    guidance: SamplingGuidance | None,
    context: TrainingContext,
    constraint: Constraint | None = None,
) -> Unlearned:
    """Unlearn the concept of one stage, with the stage's own seed."""
    seed = spec.seed + number
    seed_global_generators(seed)
    return spec.algo.unlearn(model, *examples, stage, seed, context, guidance, constraint)


def _forget_concept(
    spec: RunSpec,
    model: TextToImage,
    stage: Concept,
    examples: ExamplePair,
    progress: Progress,
    recorder: Recorder,
    processes: Processes,
    start: ContinualStart | None,
) -> Progress:
    """Unlearn the concept of the next stage and save it."""
    number = len(progress.entries)
    journal = _journal(spec, recorder, stage, examples, progress)
    context: TrainingContext = journal
    if spec.training.processes > 1:
        processes.from_main(examples)
        context = processes.context(journal)
    constraint = None if start is None else start.constraint()
    if start is not None:
        start.restore(model)
    with progress_bar("unlearn", None):
        changed, guidance = unlearn_concept(spec, model, stage, number, examples, progress.guidance, context, constraint)
    recorder.seconds.add(journal.restored)
    names = [*progress.names, *(changed if start is None else start.merge(model, changed, number))]
    entry, cost = _save(model, recorder, number, names, journal, guidance)
    if any(repeated["weights"] != entry["weights"] for repeated in progress.earlier[number : number + 1]):
        for outdated in (recorder.folder / "pipeline", *(recorder.folder / "images").glob("after*")):
            remove_path(outdated)
    entries = [*progress.entries, entry]
    recorder.update(cost=cost, unlearned=entries, unlearning_seconds=entry["seconds"])
    journal.close()
    return Progress(entries, names, progress.earlier, guidance)


def _journal(spec: RunSpec, recorder: Recorder, stage: Concept, examples: ExamplePair, progress: Progress) -> TrainingJournal:
    """The journal of the training that unlearns the next concept."""
    entries = progress.entries
    settings = without_classes({part: spec.config[part] for part in ("algo", "concept")}), stage.name, spec.seed + len(entries)
    weights = [entry["weights"] for entry in entries]
    key = digest(recorder.run.log["fingerprint"], settings, weights, [side.digest() for side in examples])
    lines, seconds = (entries[-1]["lines"], entries[-1]["seconds"]) if entries else (0, 0.0)
    return TrainingJournal(recorder.folder, spec.checkpoint_every, key, lines, seconds)


def _save(
    model: TextToImage,
    recorder: Recorder,
    number: int,
    names: Sequence[str],
    journal: TrainingJournal,
    guidance: SamplingGuidance | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Save the parameters that changed in stage `number`; returns the stage's entry in run.json, and the cost of unlearning.

    A low-rank adapter is saved beside them. It is then what trained and what has to be stored, so that the cost counts it
    and not the weights into which it was merged.

    Raises:
        RunError: a parameter is not finite.
    """
    seconds = journal.seconds()
    changed = {name: parameter for name, parameter in model.named_parameters() if name in set(names)}
    for name, parameter in changed.items():
        if not torch.isfinite(parameter).all():
            raise RunError(f"{name} is no longer finite after unlearning; try a smaller algo.lr")
    save_weights(model, recorder.weights, list(changed), guidance)
    path, trained = recorder.weights, sum(parameter.numel() for parameter in changed.values())
    if journal.lora and (adapter := save_lora_stage(recorder.lora, number, journal.lora, model.path)):
        path, trained = recorder.lora, adapter
    cost = {
        "seconds": seconds,
        "trained_parameters": trained,
        "saved_bytes": path.stat().st_size,
        "peak_memory_mb": peak_memory(model.device),
    }
    return {"weights": tensor_digest(changed), "seconds": seconds, "lines": journal.lines}, cost
