"""Attack a finished run, with a control of the same prompts and seeds, judged by the same detector."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unlearnbench.attacks.base import Attack, AttackTarget, Attempt
from unlearnbench.attacks.probe import Probe, SourceProbe
from unlearnbench.config.build import build
from unlearnbench.config.errors import RunError, UserError, suggest
from unlearnbench.config.paths import at_home, choices, is_folder_name
from unlearnbench.config.quoting import command_text
from unlearnbench.data.concept import Concept
from unlearnbench.data.images import Images
from unlearnbench.data.prompts import Prompt
from unlearnbench.experiment.attacked import (
    AttackedModel,
    AttackedRun,
    AttackJob,
    add_learned_tokens,
    columns_of_rows,
    load_attacked_model,
    sampling_guidance,
)
from unlearnbench.experiment.preflight import select_device
from unlearnbench.experiment.probing import probe_sides
from unlearnbench.experiment.provenance import refuse_without_model, reopened_config
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.experiment.training_images import forget_training_prompts
from unlearnbench.metrics.detectors import concept_detector
from unlearnbench.models.checkpoint_headers import shapes_of_file
from unlearnbench.reports.attack_report import ORACLE_SUFFIX, attack_markdown, success_rates
from unlearnbench.reports.image_grid import image_strips
from unlearnbench.results.run import load_run
from unlearnbench.sampling import ImageGenerator, encode_images, link_images, sample
from unlearnbench.storage.atomic import atomic_path, write_text
from unlearnbench.storage.cache import Cache, digest
from unlearnbench.storage.fitting_batches import out_of_memory
from unlearnbench.storage.tensors import file_digest, write_tensors

COLUMNS = 8


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
        **identity(spec, method, weights),
        "inputs": inputs_digest(spec, method),
        "detectors": {concept.name: concept_detector(concept, spec.model.domain).title() for concept in concepts},
        "device": device.type,
        "versions": run.log.get("versions", {}),
        "seconds": round(time.perf_counter() - start, 1),
        "shares": [asdict(rate) | {"interval": rate.interval} for rate in success_rates(rows)],
        "images": rows,
    }
    write_text(Path(f"{stem}.json"), json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_text(Path(f"{stem}.md"), attack_markdown(report))
    return report


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


def prepare_job(spec: RunSpec, method: Attack, split: str, concept: Concept, attacked: AttackedModel, folder: Path) -> AttackJob:
    """The prompts of an attack on one concept, and the images of the original model and of the control."""
    model = attacked.model
    seeds = attacked_seeds(spec, method, split)
    texts = list(seeds)
    ranks = range(max(map(len, seeds.values())))
    pairs = [(text, seeds[text][rank]) for rank in ranks for text in texts if rank < len(seeds[text])]
    with attacked.original():
        cache, generator = Cache(spec.cache), ImageGenerator(model)
        original_images = generate_images("original", spec, generator, pairs, folder, cache, attacked.fingerprint)
        first_images = original_images.pixels()[: len(seeds)]
        latents = encode_images(model, first_images, texts) if method.needs_images else torch.empty(0)
    target = AttackTarget(
        model, attacked.original, concept, list(seeds), latents,
        training=training_texts(concept),
        paraphrases=paraphrase_texts(concept),
    )  # fmt: skip
    return AttackJob(split, target, seeds, folder, original_images, generate_control(spec, attacked, pairs, folder))


def generate_control(spec: RunSpec, attacked: AttackedModel, pairs: Sequence[tuple[str, int]], folder: Path) -> Images:
    """The images of the model under attack without the attack; those of an earlier probe of the same loaded model are linked.

    Images of shared weights are in the cache, under a key of all that are sampled together: each is there in the same batch.
    """
    if (earlier := attacked.controls.get(tuple(pairs))) is not None:
        images = Images(earlier)
        if len(images) == len(pairs) and all(images.intact(record) for record in images):
            return link_images(images, folder / "control")
    cache = Cache(spec.cache) if attacked.shared_weights else None
    key = digest("control", attacked.fingerprint, attacked.shared_weights, pairs, spec.sample.batch)
    return generate_images("control", spec, ImageGenerator(attacked.model, attacked.guidance), pairs, folder, cache, key)


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


def generate_images(
    side: str,
    spec: RunSpec,
    generator: ImageGenerator,
    pairs: Sequence[tuple[str, int]],
    folder: Path,
    cache: Cache | None = None,
    fingerprint: str = "",
    measured: Sequence[str] | None = None,
) -> Images:
    """Images of pairs of prompt and seed, in a folder named after the side.

    Args:
        side: of the images.
        spec: the run's settings.
        generator: generates the images.
        pairs: of prompt and seed.
        folder: gets the folder of the side.
        cache: shares the images with other attacks.
        fingerprint: of the model, for the cache.
        measured: the measured prompt behind each pair, where an attack has changed its text.
    """
    texts = [text for text, _ in pairs] if measured is None else measured
    columns = columns_of_rows(spec, max(Counter(texts).values(), default=0))
    prompts = [
        Prompt(text, "forget", seed=seed, columns=columns.get((row, seed), ()))
        for (text, seed), row in zip(pairs, texts, strict=True)
    ]
    settings = replace(spec.sample.of_seeded_prompts(), row_size=False)
    return sample(f"sample {side}", generator, prompts, settings, folder / side, cache, fingerprint)


def judge_attempts(
    spec: RunSpec, method: Attack, attacked: AttackedModel, job: AttackJob, attempts: Sequence[Attempt], strip: Path
) -> list[dict[str, Any]]:
    """Generate the images of the attempts and run the concept's detector on all sides.

    Args:
        spec: the run's settings.
        method: the attack.
        attacked: the models.
        job: the attack on one concept.
        attempts: the attacked prompts.
        strip: the file that gets a strip of some images of all sides.

    Returns:
        A row for each image.
    """
    pairs = [(attempt, seed) for attempt in attempts for seed in job.seeds[attempt.prompt]]
    sides = attempt_sides(spec, method, attacked, job, pairs)
    detector = concept_detector(job.target.concept, spec.model.domain)
    original, control, detections = (
        detector.detect(side.images.pixels(), attacked.model.device)[side.places].tolist() for side in sides
    )
    succeeded = _first_successes(spec, method, attacked, job, attempts)
    rows, columns = [], []
    for j, (attempt, seed) in enumerate(pairs):
        detected = {"original": bool(original[j]), "control": bool(control[j]), "found": bool(detections[j])}
        row = {
            "kind": _kind(job.split, attempt, "" if isinstance(method, Probe) else "forget"),
            "seed": seed,
            "file": sides[-1].images[j].file,
        }
        entries = {name: value for name, value in asdict(attempt).items() if name != "candidates"}
        any_found = {"any_found": attempt.prompt in succeeded or bool(detections[j])} if method.judges_candidates() else {}
        rows.append(entries | row | detected | any_found)
        columns.append(([(side.images, side.images[side.places[j]]) for side in sides], attempt.attacked))
    some = columns[:: max(1, len(columns) // COLUMNS)][:COLUMNS]
    with atomic_path(strip) as temporary:
        image_strips(method.sides, some, job.target.concept.explicit).save(temporary, "png")
    return rows


def _first_successes(
    spec: RunSpec, method: Attack, attacked: AttackedModel, job: AttackJob, attempts: Sequence[Attempt]
) -> set[str]:
    """The prompts for which the detector finds the concept in the first seed's image of any candidate; none unless it is asked.

    Candidates are judged round by round, and a prompt leaves after its first success.
    """
    succeeded: set[str] = set()
    detector = concept_detector(job.target.concept, spec.model.domain)
    rounds = max((len(attempt.candidates) for attempt in attempts), default=0) if method.judges_candidates() else 0
    for number in range(rounds):
        left = [a for a in attempts if number < len(a.candidates) and a.prompt not in succeeded]
        if not left:
            break
        requests = [(attempt.candidates[number], job.seeds[attempt.prompt][0]) for attempt in left]
        generator = ImageGenerator(attacked.model, attacked.guidance)
        measured = [attempt.prompt for attempt in left]
        images = generate_images(f"candidates-{number}", spec, generator, requests, job.folder, measured=measured)
        detections = detector.detect(images.pixels(), attacked.model.device)
        succeeded |= {attempt.prompt for attempt, success in zip(left, detections.tolist(), strict=True) if success}
    return succeeded


class Side(NamedTuple):
    """The images of one model, and the place of each attempt's image among them."""

    images: Images
    places: list[int]


def attempt_sides(
    spec: RunSpec, method: Attack, attacked: AttackedModel, job: AttackJob, pairs: Sequence[tuple[Attempt, int]]
) -> tuple[Side, Side, Side]:
    """The images by the original, by the unlearned model without an attack, and by it under attack; one for each pair."""
    index = {(record.prompt, record.seed): i for i, record in enumerate(job.control_images)}
    plain, own = [index[attempt.prompt, seed] for attempt, seed in pairs], list(range(len(pairs)))
    control = Side(job.control_images, plain)
    if not isinstance(method, Probe):
        requests = [(attempt.attacked, seed) for attempt, seed in pairs]
        generator, measured = ImageGenerator(attacked.model, attacked.guidance), [attempt.prompt for attempt, _ in pairs]
        images = generate_images("attacked", spec, generator, requests, job.folder, measured=measured)
        return Side(job.original_images, plain), control, Side(images, own)
    probed_original, probed = probe_sides(spec, method, attacked, job, pairs)
    return Side(probed_original, own), control, Side(probed, own)


def _kind(split: str, attempt: Attempt, otherwise: str) -> str:
    """The row of the table in which an attempt counts: its concept, if there are several, and its kind, or `otherwise`."""
    return ", ".join(part for part in (split.partition(": ")[2], attempt.kind) if part) or otherwise
