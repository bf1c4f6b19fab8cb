"""Attack a finished run, with a control of the same prompts and seeds, judged by the same detector."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from unlearnbench.attacks.base import Attack, AttackTarget, Attempt
from unlearnbench.config.errors import RunError
from unlearnbench.data.images import Images
from unlearnbench.experiment.attack_images import judge_attempts, prepare_job
from unlearnbench.experiment.attack_inputs import identity, inputs_digest, open_attack
from unlearnbench.experiment.attacked import (
    AttackedModel,
    AttackedRun,
    AttackJob,
    PromptsAndSeeds,
    add_learned_tokens,
    load_attacked_model,
    sampling_guidance,
)
from unlearnbench.experiment.preflight import select_device
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.metrics.detectors import concept_detector
from unlearnbench.models.checkpoint_headers import shapes_of_file
from unlearnbench.reports.attack_report import ORACLE_SUFFIX, attack_markdown, success_rates
from unlearnbench.results.run import load_run
from unlearnbench.storage.atomic import atomic_path, write_text
from unlearnbench.storage.fitting_batches import out_of_memory
from unlearnbench.storage.tensors import file_digest, write_tensors


def attack(folder: str | Path, *overrides: str) -> dict[str, Any]:
    """Attack a finished run; writes attack-<name>.json, .md, .png and a folder of images into the run's folder.

    The files of an earlier attack of this name stay until this one is complete.

    Args:
        folder: the run's folder.
        overrides: as on the command line; one is attack=<name>.

    Returns:
        The content of attack-<name>.json.

    Raises:
        UserError: the run cannot be attacked with these settings; the text says why.
        RunError: the GPU's memory is too small.
    """
    return attack_run(AttackedRun.of(load_run(folder)), overrides)


def attack_run(subject: AttackedRun, overrides: Sequence[str], attacked: AttackedModel | None = None) -> dict[str, Any]:
    """Attack the model of a run (see `attack`); a probe leaves the model as it was, so that several can share a loaded one."""
    run, weights = subject.run, subject.weights
    spec, method = open_attack(subject, overrides)
    start = time.perf_counter()
    device = select_device(spec.device)
    attacked = attacked or load_subject(subject, spec)
    settings = identity(spec, method, weights) | {"device": device.type, "versions": run.log.get("versions", {})}
    attacked.controls.update(_earlier_controls(subject, settings))
    stem = subject.stem(method)
    with atomic_path(stem) as temporary:
        rows, learned, jobs = _attack_concepts(spec, method, attacked, temporary, stem)
    for job in jobs:
        pairs = tuple((record.prompt, record.seed) for record in job.control_images)
        attacked.controls[pairs] = stem / job.control_images.folder.relative_to(temporary)
    if learned:
        write_tensors(Path(f"{stem}.safetensors"), learned)
    concepts = spec.concept.concepts_by_split("forget").values()
    report = {
        "attack": method.name,
        "run": run.name,
        "oracle": subject.suffix == ORACLE_SUFFIX,
        "words": list(overrides),
        **settings,
        "inputs": inputs_digest(spec, method),
        "detectors": {concept.name: concept_detector(concept, spec.model.domain).title() for concept in concepts},
        "seconds": round(time.perf_counter() - start, 1),
        "shares": [asdict(rate) | {"interval": rate.interval} for rate in success_rates(rows)],
        "images": rows,
    }
    write_text(Path(f"{stem}.json"), json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_text(Path(f"{stem}.md"), attack_markdown(report))
    return report


def _earlier_controls(subject: AttackedRun, expected: Mapping[str, Any]) -> dict[PromptsAndSeeds, Path]:
    """The folders of the images without an attack of earlier attacks on the same weights, sampled alike, by prompts and seeds."""
    controls = {}
    for path in sorted(subject.run.folder.glob(f"attack-*{subject.suffix}.json")):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue
        if all(report.get(key) == expected.get(key) for key in ("weights", "sample", "row_guidance", "device", "versions")):
            stem = path.with_suffix("")
            for folder in (stem / "control", *stem.glob("*/control")):
                images = Images(folder)
                controls[tuple((record.prompt, record.seed) for record in images)] = folder
    return controls


def load_subject(subject: AttackedRun, spec: RunSpec) -> AttackedModel:
    """Load the model of a run that is attacked, as it is sampled."""
    weights = subject.weights
    attacked = load_attacked_model(spec.model, weights, select_device(spec.device), subject.run)
    if subject.suffix:
        return attacked._replace(shared_weights=file_digest(weights))
    if not spec.algo.needs_examples and not shapes_of_file(weights):
        return attacked._replace(guidance=sampling_guidance(spec, attacked.model))
    return attacked


def _attack_concepts(
    spec: RunSpec, method: Attack, attacked: AttackedModel, folder: Path, stem: Path
) -> tuple[list[dict[str, Any]], dict[str, Tensor], list[AttackJob]]:
    """Attack every concept of the run.

    Args:
        spec: the run's settings.
        method: the attack.
        attacked: the models.
        folder: gets the images; in a folder for each concept if there are several.
        stem: the path of the image strip, without ".png", if there is one concept.

    Returns:
        A row for each image, the embeddings of learned tokens, and the jobs.
    """
    concepts = spec.concept.concepts_by_split("forget")
    several = len(concepts) > 1
    jobs = [
        prepare_job(spec, method, split, concept, attacked, folder / concept.name if several else folder)
        for split, concept in concepts.items()
    ]
    attempts = [find_attempts(method, job.target) for job in jobs]
    learned = {token: vector for job in jobs for token, vector in job.target.learned.items()}
    add_learned_tokens(attacked.model, learned)
    rows = []
    for job, attempts_of_job in zip(jobs, attempts, strict=True):
        strip = Path(f"{job.folder}.png") if several else Path(f"{stem}.png")
        rows += judge_attempts(spec, method, attacked, job, attempts_of_job, strip)
    return rows, learned, jobs


def find_attempts(method: Attack, target: AttackTarget) -> list[Attempt]:
    """The attempts of the attack on one concept.

    Raises:
        RunError: the GPU's memory is too small.
    """
    try:
        return method.find(target)
    except RuntimeError as error:
        if out_of_memory(error):
            repair = "try a smaller attack.batch" if method.shares_batch else "it needs a larger GPU"
            raise RunError(f"the GPU's memory is too small for the attack; {repair}") from error
        raise
