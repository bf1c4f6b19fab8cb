"""Attack a finished run, with a control of the same prompts and seeds, judged by the same detector."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unlearnbench.algos.examples import Examples
from unlearnbench.attacks.base import Attack, AttackTarget, Attempt
from unlearnbench.attacks.probe import Probe, SourceProbe
from unlearnbench.config.build import build
from unlearnbench.config.errors import RunError, UserError, suggest
from unlearnbench.config.paths import at_home, choices
from unlearnbench.data.concept import Concept
from unlearnbench.data.images import Images
from unlearnbench.data.prompts import Prompt
from unlearnbench.experiment.preflight import select_device
from unlearnbench.experiment.probing import ProbeGenerator, Sources, encode_sources, folder_sources, probe_images
from unlearnbench.experiment.provenance import refuse_without_model, reopened_config
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.metrics.detectors import concept_detector
from unlearnbench.models.base import SamplingGuidance, TextToImage
from unlearnbench.models.frozen import Frozen
from unlearnbench.models.vocabulary import token_embedding
from unlearnbench.models.weights import install_saved_adapters, load_weights
from unlearnbench.reports.attack_report import attack_markdown, success_rates
from unlearnbench.reports.image_grid import image_strips
from unlearnbench.results.run import Run, load_run
from unlearnbench.sampling import ImageGenerator, encode_images, out_of_memory, sample
from unlearnbench.storage.atomic import atomic_path, write_text
from unlearnbench.storage.cache import Cache, digest
from unlearnbench.storage.tensors import read_tensors, tensor_digest, write_tensors

COLUMNS = 8


@dataclass(frozen=True)
class AttackedRun:
    """The run whose model is attacked.

    Attributes:
        run: the run.
        weights: the weights over the original's; by default the run's own.
        suffix: of the names of the files and the folder with the results.
        finished: whether the run has to be finished; a run that measures itself is not yet.
    """

    run: Run
    weights: Path
    suffix: str = ""
    finished: bool = True

    @classmethod
    def of(cls, run: Run) -> AttackedRun:
        """A finished run with its own weights."""
        return cls(run, run.folder / "weights.safetensors")

    def stem(self, method: Attack) -> Path:
        """The path of the results, without the suffixes of files."""
        return self.run.folder / f"attack-{method.name}{self.suffix}"


@dataclass
class AttackJob:
    """The attack on one concept.

    Attributes:
        split: the split of the concept's forget prompts.
        target: the models, and what the attack may know of them.
        seeds: the seeds of each attacked prompt's images.
        folder: gets a folder of images for each side: original, control and attacked.
        original_images: images of the prompts by the original model.
        control_images: images of the same prompts and seeds by the unlearned model.
    """

    split: str
    target: AttackTarget
    seeds: dict[str, list[int]]
    folder: Path
    original_images: Images
    control_images: Images


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


def attack_run(subject: AttackedRun, overrides: Sequence[str]) -> dict[str, Any]:
    """Attack the model of a run (see `attack`)."""
    run, weights = subject.run, subject.weights
    spec, method = open_attack(subject, overrides)
    start = time.perf_counter()
    device = select_device(spec.device)
    attacked = load_attacked_model(spec.model, weights, device, run)
    if subject.suffix:
        attacked = attacked._replace(shared_weights=hashlib.sha256(weights.read_bytes()).hexdigest())
    elif not spec.algo.needs_examples and not read_tensors(weights)[0]:
        attacked = attacked._replace(guidance=sampling_guidance(spec, attacked.model))
    stem = subject.stem(method)
    with atomic_path(stem) as temporary:
        rows, learned = _attack_concepts(spec, method, attacked, temporary, stem)
    if learned:
        write_tensors(Path(f"{stem}.safetensors"), learned)
    concepts = spec.concept.concepts_by_split("forget").values()
    report = {
        "attack": method.name,
        "run": run.name,
        "words": list(overrides),
        **identity(spec, method, weights),
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


def _attack_concepts(
    spec: RunSpec, method: Attack, attacked: AttackedModel, folder: Path, stem: Path
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Attack every concept of the run.

    Args:
        spec: the run's settings.
        method: the attack.
        attacked: the models.
        folder: gets the images; in a folder for each concept if there are several.
        stem: the path of the image strip, without ".png", if there is one concept.

    Returns:
        A row for each image, and the embeddings of learned tokens.
    """
    concepts = spec.concept.concepts_by_split("forget")
    several = len(concepts) > 1
    jobs = [
        prepare_job(spec, method, split, concept, attacked, folder / concept.name if several else folder)
        for split, concept in concepts.items()
    ]
    attempts = [_attempts(method, job.target) for job in jobs]
    learned = {token: vector for job in jobs for token, vector in job.target.learned.items()}
    add_learned_tokens(attacked.model, learned)
    rows = []
    for job, attempts_of_job in zip(jobs, attempts, strict=True):
        strip = Path(f"{job.folder}.png") if several else Path(f"{stem}.png")
        rows += judge_attempts(spec, method, attacked, job, attempts_of_job, strip)
    return rows, learned


def _attempts(method: Attack, target: AttackTarget) -> list[Attempt]:
    try:
        return method.find(target)
    except RuntimeError as error:
        if out_of_memory(error):
            raise RunError("the GPU's memory is too small for the attack; try a smaller attack.batch") from error
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
    spec = RunSpec.of(config)
    if not weights.is_file():
        raise UserError(f"{run.folder}: the run saved no weights.safetensors; finish it: unlearnbench resume {run.folder}")
    if method.needs_images and not isinstance(method, Probe) and not read_tensors(weights)[0]:
        reason = f"changes only sampling, or nothing, and attack={method.name} learns through the weights"
        raise UserError(f"{run.folder}: {run.log['algo']} {reason}; try attack=paraphrases or a probe")
    download = spec.model.download()
    problems = [spec.model.unavailable_reason(), download and download.problem(), method.unavailable_reason(spec.model)]
    problems += [
        concept_detector(concept, spec.model.domain).unavailable_reason()
        for concept in spec.concept.concepts_by_split("forget").values()
    ]
    if any(problems):
        raise UserError("\n".join(dict.fromkeys(problem for problem in problems if problem)))
    return spec, method


def identity(spec: RunSpec, method: Attack, weights: Path) -> dict[str, Any]:
    """Everything that the results depend on; attacks with equal identity have equal results."""
    return {
        "settings": asdict(method),
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "sample": {key: getattr(spec.sample, key) for key in ("seed", "steps", "guidance")},
    }


def stored_report(subject: AttackedRun, overrides: Sequence[str]) -> dict[str, Any] | None:
    """The report of this attack on this run, if there is one with the same weights, settings and sampling."""
    spec, method = open_attack(subject, overrides)
    path = Path(f"{subject.stem(method)}.json")
    if not path.is_file():
        return None
    report = json.loads(path.read_text(encoding="utf-8"))
    expected = json.loads(json.dumps(identity(spec, method, subject.weights)))
    return report if {key: report.get(key) for key in expected} == expected else None


class AttackedModel(NamedTuple):
    """The model under attack.

    Attributes:
        model: the unlearned model.
        guidance: how it is sampled.
        original: the original's values of what changed.
        fingerprint: the original's.
        shared_weights: the hash of weights that several runs are compared with, whose images the cache stores; else "".
    """

    model: TextToImage
    guidance: SamplingGuidance | None
    original: Frozen
    fingerprint: str
    shared_weights: str = ""


def load_attacked_model(settings: TextToImage, weights: Path, device: torch.device, run: Run) -> AttackedModel:
    """Load a run's original model and its saved weights.

    Raises:
        UserError: the original model is another one than in the run.
    """
    model = settings.load(device)
    fingerprint = model.fingerprint()
    same_device = run.log["device"].startswith("cpu") == (device.type == "cpu")
    if same_device and fingerprint != run.log["fingerprint"]:
        raise UserError(f"{run.folder}: model {model.path} has changed since the run; repeat the run")
    saved = read_tensors(weights)[0]
    install_saved_adapters(model, saved)
    changed = {name: parameter for name, parameter in model.named_parameters() if name in saved}
    for parameter in changed.values():
        parameter.data = parameter.data.float()
    original = Frozen(model, changed)
    return AttackedModel(model, load_weights(model, weights), original, fingerprint)


def sampling_guidance(spec: RunSpec, model: TextToImage) -> SamplingGuidance | None:
    """The guidance of a method that changes only sampling, for which a file of weights has no place."""
    nothing = Examples([], [], torch.empty(0))
    return spec.algo.unlearn(model, nothing, nothing, spec.concept, spec.seed).guidance


def prepare_job(spec: RunSpec, method: Attack, split: str, concept: Concept, attacked: AttackedModel, folder: Path) -> AttackJob:
    """The prompts of an attack on one concept, and the images of the original model and of the control."""
    model, concept_prompts = attacked.model, concept.load()
    rows = [p for p in spec.sample.limit(spec.prompts()) if p.split == split]
    texts = list(dict.fromkeys(p.text for p in rows))[: method.prompts]
    seeds = {
        text: [spec.sample.image_seed(p, repeat) for repeat in range(method.per_prompt) for p in rows if p.text == text]
        for text in texts
    }
    ranks = range(max(map(len, seeds.values())))
    pairs = [(text, seeds[text][rank]) for rank in ranks for text in texts if rank < len(seeds[text])]
    with attacked.original():
        cache, generator = Cache(spec.cache), ImageGenerator(model)
        original_images = generate_images("original", spec, generator, pairs, folder, cache, attacked.fingerprint)
        first_images = original_images.pixels()[: len(seeds)]
        latents = encode_images(model, first_images, texts) if method.needs_images else torch.empty(0)
    target = AttackTarget(
        model, attacked.original, concept, list(seeds), latents,
        training=[p.text for p in concept_prompts if p.base == "forget" and p.use in ("", "train")],
        paraphrases=[p.text for p in concept_prompts if p.base == "paraphrase" and p.use in ("", "measure")],
    )  # fmt: skip
    control_images = generate_images("control", spec, ImageGenerator(model, attacked.guidance), pairs, folder)
    return AttackJob(split, target, seeds, folder, original_images, control_images)


def generate_images(
    side: str,
    spec: RunSpec,
    generator: ImageGenerator,
    pairs: Sequence[tuple[str, int]],
    folder: Path,
    cache: Cache | None = None,
    fingerprint: str = "",
) -> Images:
    """Images of pairs of prompt and seed, in a folder named after the side."""
    columns = _columns_by_seed(spec) if spec.sample.row_guidance else {}
    prompts = [Prompt(text, "forget", seed=seed, columns=columns.get(seed, ())) for text, seed in pairs]
    settings = replace(spec.sample.of_seeded_prompts(), row_size=False)
    return sample(f"sample {side}", generator, prompts, settings, folder / side, cache, fingerprint)


def _columns_by_seed(spec: RunSpec) -> dict[int, tuple[tuple[str, str], ...]]:
    """The other columns of the measured rows, by the seeds of their images: an attacked prompt has its row's guidance scale."""
    rows = [p for p in spec.prompts() if p.columns]
    return {spec.sample.image_seed(p, repeat): p.columns for p in rows for repeat in range(spec.sample.per_prompt)}


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
        images = generate_images(f"candidates-{number}", spec, generator, requests, job.folder)
        found = detector.detect(images.pixels(), attacked.model.device)
        succeeded |= {attempt.prompt for attempt, success in zip(left, found.tolist(), strict=True) if success}
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
        images = generate_images("attacked", spec, ImageGenerator(attacked.model, attacked.guidance), requests, job.folder)
        return Side(job.original_images, plain), control, Side(images, own)
    sources = probe_sources(spec, method, attacked.model, job)
    probed = {side: Images(job.folder / side, []) for side in ("original-probed", "attacked")}
    shared, target = Cache(spec.cache), job.target
    settings = {key: value for key, value in asdict(method).items() if key not in ("prompts", "per_prompt")}
    for number, kind in enumerate(method.kinds()):
        of_kind = [(attempt, seed) for attempt, seed in pairs if attempt.kind == kind]
        original, unlearned = (
            ProbeGenerator(attacked.model, guidance, attacked.original, method, kind, sources, is_original)
            for guidance, is_original in ((None, True), (attacked.guidance, False))
        )
        parts = [
            attacked.fingerprint,
            target.training or target.prompts,
            target.concept.anchor,
            settings,
            kind,
            tensor_digest({f"{prompt} {seed}": x for (prompt, seed), x in sources.items()}),
        ]
        keys = [digest(*parts, weights) for weights in ("", attacked.shared_weights)]
        part, caches = f"kind-{number}", (shared, shared if attacked.shared_weights else None)
        with attacked.original():
            probe_images("original", original, of_kind, probed["original-probed"], part, spec.sample, caches[0], keys[0])
        probe_images("unlearned", unlearned, of_kind, probed["attacked"], part, spec.sample, caches[1], keys[1])
    return Side(probed["original-probed"], own), control, Side(probed["attacked"], own)


def probe_sources(spec: RunSpec, method: Probe, model: TextToImage, job: AttackJob) -> Sources:
    """The latents that a probe starts from, by prompt and seed; empty if it needs none.

    Raises:
        UserError: the folder of images has none, or one cannot be read.
    """
    if not isinstance(method, SourceProbe):
        return {}
    if method.images is None:
        return encode_sources(model, job.original_images, spec.sample.batch)
    return folder_sources(model, Path(at_home(method.images)), [(r.prompt, r.seed) for r in job.original_images])


def _kind(split: str, attempt: Attempt, otherwise: str) -> str:
    """The row of the table in which an attempt counts: its concept, if there are several, and its kind, or `otherwise`."""
    return ", ".join(part for part in (split.partition(": ")[2], attempt.kind) if part) or otherwise


def add_learned_tokens(model: Any, learned: dict[str, Tensor]) -> None:
    """Add learned tokens to the tokenizer and the text encoder's embeddings."""
    if learned:
        model.tokenizer.add_tokens(list(learned), special_tokens=True)
        with torch.random.fork_rng():
            model.text_encoder.resize_token_embeddings(len(model.tokenizer), mean_resizing=False)
        ids = model.tokenizer.convert_tokens_to_ids(list(learned))
        with torch.no_grad():
            token_embedding(model).weight[ids] = torch.stack(list(learned.values())).to(token_embedding(model).weight)
