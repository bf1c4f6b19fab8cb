"""What an attack on a run depends on, its settings, prompts and seeds; and the stored report of one that depends on the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from unlearnbench.attacks.base import Attack
from unlearnbench.attacks.probe import Probe, SourceProbe
from unlearnbench.config.build import build
from unlearnbench.config.errors import UserError, suggest
from unlearnbench.config.paths import at_home, choices, is_folder_name
from unlearnbench.config.quoting import command_text
from unlearnbench.data.concept import Concept
from unlearnbench.data.prompts import Prompt
from unlearnbench.experiment.attacked import AttackedRun
from unlearnbench.experiment.provenance import refuse_without_model, reopened_config
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.experiment.training_images import forget_training_prompts
from unlearnbench.metrics.detectors import concept_detector
from unlearnbench.models.checkpoint_headers import shapes_of_file
from unlearnbench.storage.cache import digest
from unlearnbench.storage.tensors import file_digest


def open_attack(subject: AttackedRun, overrides: Sequence[str]) -> tuple[RunSpec, Attack]:
    """The run's settings and the attack that the overrides choose, both checked.

    Raises:
        UserError: no attack is chosen, the run is not finished, or something is not available.
    """
    if not any(override.startswith("attack=") for override in overrides):
        raise UserError(f"name an attack: attack=...; {suggest('', choices('attack'))}")
    added = [f"+{override}" if override.startswith("attack=") else override for override in overrides]
    refuse_without_model(subject.run)
    run, weights = subject.run, subject.weights
    config = reopened_config(run, added, ("attack",), subject.finished)
    method = build(config.pop("attack"), Attack, "attack")
    if not is_folder_name(method.name):
        raise UserError(f"attack.name={method.name!r}: files are called by it; choose a name without a slash")
    spec = RunSpec.of(config)
    if not weights.is_file():
        raise UserError(f"{run.folder}: the run saved no weights.safetensors; finish it: {command_text('resume', run.folder)}")
    if method.needs_images and not isinstance(method, Probe) and not shapes_of_file(weights):
        reason = f"changes only sampling, or nothing, and attack={method.name} learns through the weights"
        raise UserError(f"{run.folder}: {run.log['algo']} {reason}; try attack=paraphrases or a probe")
    download = spec.model.download()
    refusal = download and download.problem(spec.fetch == "auto")
    problems = [spec.model.unavailable_reason(), refusal, method.unavailable_reason(spec.model)]
    problems += [
        concept_detector(concept, spec.model.domain).unavailable_reason()
        for concept in spec.concept.concepts_by_split("forget").values()
    ]
    if any(problems):
        raise UserError("\n".join(dict.fromkeys(problem for problem in problems if problem)))
    return spec, method


def identity(spec: RunSpec, method: Attack, weights: Path) -> dict[str, Any]:
    """Everything that the results depend on; attacks with equal identity have equal results.

    Two entries are there only where they are true, so that they make those reports of earlier versions outdated that they change:
    each row's own guidance scale, which probes did not follow, and training prompts in turn, in whose place were fewer images.
    """
    entries: dict[str, Any] = {
        "settings": asdict(method),
        "weights": file_digest(weights),
        "sample": {key: getattr(spec.sample, key) for key in ("seed", "steps", "guidance")},
    }
    if spec.sample.row_guidance:
        entries["row_guidance"] = True
    wanted = method.training_prompts()
    if wanted and _fewest_training_prompts(spec, method) < wanted:
        entries["prompts_in_turn"] = True
    return entries


def _fewest_training_prompts(spec: RunSpec, method: Attack) -> int:
    """The number of prompts of the concept with the fewest on which an attack can train."""
    concepts = spec.concept.concepts_by_split("forget").items()
    return min(len(training_texts(concept)) or len(attacked_rows(spec, method, split)) for split, concept in concepts)


def stored_report(subject: AttackedRun, overrides: Sequence[str]) -> dict[str, Any] | None:
    """The report of this attack on this run, if there is one with the same weights, settings, sampling and inputs.

    Reports of earlier versions have no digest of their inputs; of those, the prompts and seeds of the images must be the same.
    """
    spec, method = open_attack(subject, overrides)
    path = Path(f"{subject.stem(method)}.json")
    if not path.is_file():
        return None
    report = json.loads(path.read_text(encoding="utf-8"))
    expected = json.loads(json.dumps(identity(spec, method, subject.weights)))
    if {key: report.get(key) for key in expected} != expected:
        return None
    if "inputs" in report:
        return report if report["inputs"] == inputs_digest(spec, method) else None
    splits = spec.concept.concepts_by_split("forget")
    seeds = {(text, seed) for split in splits for text, own in attacked_seeds(spec, method, split).items() for seed in own}
    stored = {(row["prompt"], row["seed"]) for row in report.get("images", ())}
    is_same = stored == seeds if isinstance(method, Probe) else stored <= seeds  # an attack may leave out a prompt
    return report if is_same else None


def inputs_digest(spec: RunSpec, method: Attack) -> str:
    """A hash of what an attack reads from files: each concept's prompts with their seeds and guidance scales, and images."""
    parts: list[Any] = []
    for split, concept in spec.concept.concepts_by_split("forget").items():
        rows = attacked_rows(spec, method, split)
        scales = {text: [spec.sample.scale(row) for row in own] for text, own in rows.items()}
        parts.append([attacked_seeds(spec, method, split), scales, training_texts(concept), paraphrase_texts(concept)])
    if isinstance(method, SourceProbe) and method.images is not None:
        files = sorted(path for path in Path(at_home(method.images)).glob("*") if path.is_file())
        parts.append([[file.name, file_digest(file)] for file in files])
    return digest(*parts)


def attacked_rows(spec: RunSpec, method: Attack, split: str) -> dict[str, list[Prompt]]:
    """The measured rows of each prompt that an attack on one concept takes."""
    rows: dict[str, list[Prompt]] = {}
    for prompt in spec.sample.limit(spec.prompts()):
        if prompt.split == split:
            rows.setdefault(prompt.text, []).append(prompt)
    return dict(islice(rows.items(), method.prompts))


def attacked_seeds(spec: RunSpec, method: Attack, split: str) -> dict[str, list[int]]:
    """The seeds of the images of each prompt that an attack on one concept takes."""
    return {
        text: [spec.sample.image_seed(row, repeat) for repeat in range(method.per_prompt) for row in rows]
        for text, rows in attacked_rows(spec, method, split).items()
    }


def paraphrase_texts(concept: Concept) -> list[str]:
    """The measured paraphrases of a concept."""
    return [p.text for p in concept.load() if p.base == "paraphrase" and p.use in ("", "measure")]


def training_texts(concept: Concept) -> list[str]:
    """The forget prompts of a concept that an attack may train on."""
    return [prompt.text for prompt in forget_training_prompts(concept)]
