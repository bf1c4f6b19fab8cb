"""Attack a finished run: its own model, a control of the same prompts and seeds, the same detector."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from unlearnbench.attacks.base import Attack, AttackTarget, Attempt
from unlearnbench.config.build import build
from unlearnbench.config.errors import RunError, UserError, suggest
from unlearnbench.config.paths import choices
from unlearnbench.data.concept import Concept
from unlearnbench.data.images import Images
from unlearnbench.data.prompts import Prompt, image_seed
from unlearnbench.experiment.preflight import select_device
from unlearnbench.experiment.provenance import reopened_config
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.metrics.detectors import concept_detector
from unlearnbench.models.base import SamplingGuidance, TextToImage
from unlearnbench.models.frozen import Frozen
from unlearnbench.models.vocabulary import token_embedding
from unlearnbench.models.weights import install_saved_adapters, load_weights
from unlearnbench.reports.attack_report import attack_markdown, success_rates
from unlearnbench.reports.image_grid import image_strips
from unlearnbench.results.run import Run, load_run
from unlearnbench.sampling import ImageGenerator, out_of_memory, sample
from unlearnbench.storage.atomic import atomic_path, write_text
from unlearnbench.storage.cache import Cache
from unlearnbench.storage.tensors import read_tensors, write_tensors

COLUMNS = 8


@dataclass
class AttackJob:
    """One concept under attack: its victim, where its images go, and the images of the original and of the control.

    Attributes:
        split: of its forget prompts.
        victim: the models and what the attack may know.
        seeds: of each attacked prompt's images.
        folder: gets a folder of images for each side.
        original: the original's images of the prompts.
        control: the unlearned model's, of the same prompts and seeds.
    """

    split: str
    victim: AttackTarget
    seeds: dict[str, list[int]]
    folder: Path
    original: Images
    control: Images


def attack(folder: str | Path, *words: str) -> dict[str, Any]:
    """Attack a finished run; writes attack-<name>.json, .md, .png and a folder of images beside its other files.

    What an earlier such attack wrote stays until this one is done.

    Args:
        folder: the run's.
        words: as on the command line; one is attack=<name>.

    Returns:
        What attack-<name>.json holds.

    Raises:
        UserError: the run cannot be attacked so; the text says why.
    """
    done = load_run(folder)
    spec, method = open_attack(done, words)
    weights = done.folder / "weights.safetensors"
    began = time.perf_counter()
    device = select_device(spec.device)
    attacked = load_attacked_model(spec.model, weights, device, done)
    stem = done.folder / f"attack-{method.name}"
    several = spec.concept.concepts_by_split("forget")
    with atomic_path(stem) as made:
        aims = [
            prepare_job(spec, method, split, concept, attacked, made / concept.name if len(several) > 1 else made)
            for split, concept in several.items()
        ]
        attempts = [_found(method, aim.victim) for aim in aims]
        learned = {token: vector for aim in aims for token, vector in aim.victim.learned.items()}
        add_learned_tokens(attacked.model, learned)
        rows = []
        for aim, some in zip(aims, attempts, strict=True):
            picture = Path(f"{aim.folder}.png") if len(several) > 1 else Path(f"{stem}.png")
            rows += judge_attempts(spec, attacked, aim, some, picture)
    if learned:
        write_tensors(Path(f"{stem}.safetensors"), learned)
    report = {
        "attack": method.name,
        "run": done.name,
        "words": list(words),
        **identity(spec, method, weights),
        "detectors": {concept.name: concept_detector(concept, spec.model.domain).title() for concept in several.values()},
        "device": device.type,
        "versions": done.log.get("versions", {}),
        "seconds": round(time.perf_counter() - began, 1),
        "shares": [asdict(share) | {"interval": share.interval} for share in success_rates(rows)],
        "images": rows,
    }
    write_text(Path(f"{stem}.json"), json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_text(Path(f"{stem}.md"), attack_markdown(report))
    return report


def _found(method: Attack, victim: AttackTarget) -> list[Attempt]:
    try:
        return method.find(victim)
    except RuntimeError as error:
        if out_of_memory(error):
            raise RunError("the GPU's memory is too small for the attack; try a smaller attack.batch") from error
        raise


def open_attack(done: Run, words: Sequence[str]) -> tuple[RunSpec, Attack]:
    """The run's settings and the attack that the words choose, both checked.

    Raises:
        UserError: the words name no attack, the run leaves no weights, or something is missing.
    """
    if not any(word.startswith("attack=") for word in words):
        raise UserError(f"name an attack: attack=...; {suggest('', choices('attack'))}")
    config = reopened_config(done, [f"+{word}" if word.startswith("attack=") else word for word in words], ("attack",))
    method = build(config.pop("attack"), Attack, "attack")
    spec = RunSpec.of(config)
    weights = done.folder / "weights.safetensors"
    if not weights.is_file() or not read_tensors(weights)[0]:
        raise UserError(
            f"{done.folder}: {done.log['algo']} leaves no weights to attack; it changes how the model samples, or nothing"
        )
    lacks = [spec.model.unavailable_reason(), method.unavailable_reason(spec.model)]
    lacks += [
        concept_detector(concept, spec.model.domain).unavailable_reason()
        for concept in spec.concept.concepts_by_split("forget").values()
    ]
    if any(lacks):
        raise UserError("\n".join(dict.fromkeys(lack for lack in lacks if lack)))
    return spec, method


def identity(spec: RunSpec, method: Attack, weights: Path) -> dict[str, Any]:
    """What the numbers depend on: two attacks with the same need be done once."""
    return {
        "settings": asdict(method),
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "sample": {key: getattr(spec.sample, key) for key in ("seed", "steps", "guidance")},
    }


class AttackedModel(NamedTuple):
    """The unlearned model of a run: loaded, with what guides its sampling, beside the original and the original's fingerprint."""

    model: TextToImage
    guidance: SamplingGuidance | None
    original: Frozen
    fingerprint: str


def load_attacked_model(settings: TextToImage, weights: Path, device: torch.device, done: Run) -> AttackedModel:
    """Load a run's model and put its saved weights over it.

    Raises:
        UserError: the original is not the one that the run unlearned.
    """
    model = settings.load(device)
    fingerprint = model.fingerprint()
    same_device = done.log["device"].startswith("cpu") == (device.type == "cpu")
    if same_device and fingerprint != done.log["fingerprint"]:
        raise UserError(f"{done.folder}: model {model.path} is no longer the one that this run unlearned; run it again")
    saved = read_tensors(weights)[0]
    install_saved_adapters(model, saved)
    changed = {name: parameter for name, parameter in model.named_parameters() if name in saved}
    for parameter in changed.values():
        parameter.data = parameter.data.float()
    original = Frozen(model, changed)
    return AttackedModel(model, load_weights(model, weights), original, fingerprint)


def prepare_job(spec: RunSpec, method: Attack, split: str, concept: Concept, attacked: AttackedModel, folder: Path) -> AttackJob:
    """What an attack on one concept starts from: its prompts, and the images of the original and of the control."""
    model, others = attacked.model, concept.load()
    texts = list({p.text: p for p in spec.sample.limit(spec.prompts()) if p.split == split}.values())[: method.prompts]
    seeds = {p.text: [image_seed(spec.sample.seed, p, r) for r in range(method.per_prompt)] for p in texts}
    asked = [(text, seeds[text][r]) for r in range(method.per_prompt) for text in seeds]
    with attacked.original():
        before = generate_images("original", spec, ImageGenerator(model), asked, folder, Cache(spec.cache), attacked.fingerprint)
        latents = model.encode_images(before.pixels()[: len(seeds)]) if method.needs_images else torch.empty(0)
    victim = AttackTarget(
        model, attacked.original, concept, list(seeds), latents,
        training=[p.text for p in others if p.base == "forget" and p.use in ("", "train")],
        paraphrases=[p.text for p in others if p.base == "paraphrase" and p.use in ("", "measure")],
    )  # fmt: skip
    unlearned = ImageGenerator(model, attacked.guidance)
    return AttackJob(split, victim, seeds, folder, before, generate_images("control", spec, unlearned, asked, folder))


def generate_images(
    side: str,
    spec: RunSpec,
    images_of: ImageGenerator,
    asked: Sequence[tuple[str, int]],
    folder: Path,
    cache: Cache | None = None,
    fingerprint: str = "",
) -> Images:
    """Images of these prompts and seeds, in a folder named after the side."""
    settings = replace(spec.sample, seed=0, per_prompt=1, prompts=None)
    prompts = [Prompt(text, "forget", seed=seed) for text, seed in asked]
    return sample(f"sample {side}", images_of, prompts, settings, folder / side, cache, fingerprint)


def judge_attempts(
    spec: RunSpec, model: AttackedModel, aim: AttackJob, attempts: Sequence[Attempt], picture: Path
) -> list[dict[str, Any]]:
    """Paint what is asked, let the concept's detector look at all sides; a row for each image, and a picture of some."""
    asked = [(attempt, seed) for attempt in attempts for seed in aim.seeds[attempt.prompt]]
    images_of = ImageGenerator(model.model, model.guidance)
    attacked = generate_images("attacked", spec, images_of, [(attempt.attacked, seed) for attempt, seed in asked], aim.folder)
    judge = concept_detector(aim.victim.concept, spec.model.domain)
    before, control, found = (judge.detect(side.pixels(), model.model.device) for side in (aim.original, aim.control, attacked))
    at = {(shot.prompt, shot.seed): i for i, shot in enumerate(aim.control)}
    rows, columns = [], []
    for j, (attempt, seed) in enumerate(asked):
        i = at[attempt.prompt, seed]
        verdicts = {"original": bool(before[i]), "control": bool(control[i]), "found": bool(found[j])}
        rows.append(asdict(attempt) | {"kind": _kind(aim.split, attempt), "seed": seed, "file": attacked[j].file} | verdicts)
        shots = (aim.original, aim.original[i]), (aim.control, aim.control[i]), (attacked, attacked[j])
        columns.append((shots, attempt.attacked))
    some = columns[:: max(1, len(columns) // COLUMNS)][:COLUMNS]
    strips = image_strips(("original", "no attack", "attacked"), some, aim.victim.concept.explicit)
    with atomic_path(picture) as made:
        strips.save(made, "png")
    return rows


def _kind(split: str, attempt: Attempt) -> str:
    """The row in which an attempt counts: its concept, where there are several, and its kind."""
    return ", ".join(part for part in (split.partition(": ")[2], attempt.kind) if part) or "forget"


def add_learned_tokens(model: Any, learned: dict[str, torch.Tensor]) -> None:
    """Add learned tokens to the tokenizer and the text encoder's embeddings."""
    if learned:
        model.tokenizer.add_tokens(list(learned), special_tokens=True)
        with torch.random.fork_rng():
            model.text_encoder.resize_token_embeddings(len(model.tokenizer), mean_resizing=False)
        ids = model.tokenizer.convert_tokens_to_ids(list(learned))
        with torch.no_grad():
            token_embedding(model).weight[ids] = torch.stack(list(learned.values())).to(token_embedding(model).weight)
