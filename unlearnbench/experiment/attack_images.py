"""The images of an attack and of its controls, and what the detector says of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from unlearnbench.attacks.base import Attack, AttackTarget, Attempt
from unlearnbench.attacks.probe import Probe
from unlearnbench.data.concept import Concept
from unlearnbench.data.images import Images
from unlearnbench.data.prompts import Prompt
from unlearnbench.experiment.attack_inputs import attacked_seeds, paraphrase_texts, training_texts
from unlearnbench.experiment.attacked import AttackedModel, AttackJob, columns_of_rows
from unlearnbench.experiment.probing import probe_sides
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.metrics.detectors import concept_detector
from unlearnbench.reports.image_grid import image_strips
from unlearnbench.sampling import ImageGenerator, encode_images, link_images, sample
from unlearnbench.storage.atomic import atomic_path
from unlearnbench.storage.cache import Cache, digest

COLUMNS = 8


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
