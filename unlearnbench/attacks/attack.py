"""Attack a finished run: its own model, a control of the same prompts and seeds, the same detector."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from unlearnbench import checkpoint, files, pictures, results
from unlearnbench.attacks.base import Attack, Attempt, Victim
from unlearnbench.cache import Cache
from unlearnbench.check import device_of
from unlearnbench.config import RunError, UserError, build, choices, suggest
from unlearnbench.data import Concept, Images, Prompt
from unlearnbench.forms import as_markdown
from unlearnbench.intervals import wilson
from unlearnbench.metrics.forget_accuracy import detector
from unlearnbench.models.base import Frozen, TextToImage
from unlearnbench.models.words import embedding
from unlearnbench.progress import screen
from unlearnbench.provenance import again
from unlearnbench.results import Run
from unlearnbench.sampling import image_seed, out_of_memory, sample
from unlearnbench.spec import Spec

HEAD = ("on", "n", "original", "no attack", "attacked", "95 % interval", "brought back")
COLUMNS = 8


@dataclass(frozen=True)
class Share:
    """How often the detector finds the concept, over the images of one kind of attempt.

    Attributes:
        kind: which attempts.
        n: images of each side.
        original: found in the original's images of the prompts.
        control: found in the unlearned model's images of the same prompts and seeds.
        attacked: found in its images of the attacked prompts, with the same seeds.
        back: found there, of the images whose control shows nothing: n - control.
    """

    kind: str
    n: int
    original: int
    control: int
    attacked: int
    back: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the share that is found under attack."""
        return wilson(self.attacked, self.n)

    def cells(self) -> list[str]:
        """The row of the table, under `HEAD`."""
        shares = [f"{found / self.n:.3f}" for found in (self.original, self.control, self.attacked)]
        silent = self.n - self.control
        return [self.kind, str(self.n), *shares, "{:.3f}..{:.3f}".format(*self.interval), f"{self.back} of {silent}"]


@dataclass
class Aim:
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
    victim: Victim
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
    done = results.load_run(folder)
    spec, method = opened(done, words)
    weights = done.folder / "weights.safetensors"
    began = time.perf_counter()
    device = device_of(spec.device)
    original, fingerprint = loaded(spec.model, weights, device, done)
    stem = done.folder / f"attack-{method.name}"
    several = spec.concept.by_split("forget")
    with files.beside(stem) as made:
        aims = [
            aimed(spec, method, split, concept, original, fingerprint, made / concept.name if len(several) > 1 else made)
            for split, concept in several.items()
        ]
        attempts = [_found(method, aim.victim) for aim in aims]
        learned = {token: vector for aim in aims for token, vector in aim.victim.learned.items()}
        learn(spec.model, learned)
        rows = []
        for aim, some in zip(aims, attempts, strict=True):
            picture = Path(f"{aim.folder}.png") if len(several) > 1 else Path(f"{stem}.png")
            rows += judged(spec, aim, some, picture)
    if learned:
        checkpoint.write_atomically(Path(f"{stem}.safetensors"), learned)
    report = {
        "attack": method.name,
        "run": done.name,
        "words": list(words),
        **identity(spec, method, weights),
        "detectors": {concept.name: detector(concept, spec.model.domain).title() for concept in several.values()},
        "device": device.type,
        "versions": done.log.get("versions", {}),
        "seconds": round(time.perf_counter() - began, 1),
        "shares": [asdict(share) | {"interval": share.interval} for share in counted(rows)],
        "images": rows,
    }
    results.write_text(Path(f"{stem}.json"), json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    results.write_text(Path(f"{stem}.md"), markdown(report))
    return report


def _found(method: Attack, victim: Victim) -> list[Attempt]:
    try:
        return method.find(victim)
    except RuntimeError as error:
        if out_of_memory(error):
            raise RunError("the GPU's memory is too small for the attack; try a smaller attack.batch") from error
        raise


def opened(done: Run, words: Sequence[str]) -> tuple[Spec, Attack]:
    """The run's settings and the attack that the words choose, both checked.

    Raises:
        UserError: the words name no attack, the run leaves no weights, or something is missing.
    """
    if not any(word.startswith("attack=") for word in words):
        raise UserError(f"name an attack: attack=...; {suggest('', choices('attack'))}")
    config = again(done, [f"+{word}" if word.startswith("attack=") else word for word in words], ("attack",))
    method = build(config.pop("attack"), Attack, "attack")
    spec = Spec.of(config)
    weights = done.folder / "weights.safetensors"
    if not weights.is_file() or not checkpoint.read(weights)[0]:
        raise UserError(
            f"{done.folder}: {done.log['algo']} leaves no weights to attack; it changes how the model samples, or nothing"
        )
    lacks = [spec.model.missing(), method.missing(spec.model)]
    lacks += [detector(concept, spec.model.domain).missing() for concept in spec.concept.by_split("forget").values()]
    if any(lacks):
        raise UserError("\n".join(dict.fromkeys(lack for lack in lacks if lack)))
    return spec, method


def identity(spec: Spec, method: Attack, weights: Path) -> dict[str, Any]:
    """What the numbers depend on: two attacks with the same need be done once."""
    return {
        "settings": asdict(method),
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "sample": {key: getattr(spec.sample, key) for key in ("seed", "steps", "guidance")},
    }


def loaded(model: TextToImage, weights: Path, device: torch.device, done: Run) -> tuple[Frozen, str]:
    """Load the run's model and put its saved weights over it; returns the original, and its fingerprint.

    Raises:
        UserError: the original is not the one that the run unlearned.
    """
    model.load(device)
    fingerprint = model.fingerprint()
    same_device = done.log["device"].startswith("cpu") == (device.type == "cpu")
    if same_device and fingerprint != done.log["fingerprint"]:
        raise UserError(f"{done.folder}: model {model.path} is no longer the one that this run unlearned; run it again")
    saved = checkpoint.read(weights)[0]
    model.make_room(saved)
    changed = {name: parameter for name, parameter in model.named_parameters() if name in saved}
    for parameter in changed.values():
        parameter.data = parameter.data.float()
    original = Frozen(model, changed)
    model.load_weights(weights)
    return original, fingerprint


def aimed(spec: Spec, method: Attack, split: str, concept: Concept, original: Frozen, fingerprint: str, folder: Path) -> Aim:
    """What an attack on one concept starts from: its prompts, and the images of the original and of the control."""
    model, others = spec.model, concept.load()
    texts = list({p.text: p for p in spec.sample.limit(spec.prompts()) if p.split == split}.values())[: method.prompts]
    seeds = {p.text: [image_seed(spec.sample.seed, p, r) for r in range(method.per_prompt)] for p in texts}
    asked = [(text, seeds[text][r]) for r in range(method.per_prompt) for text in seeds]
    with original():
        before = painted("original", spec, asked, folder, Cache(spec.cache), fingerprint)
        latents = model.encode_images(before.pixels()[: len(seeds)]) if method.needs_images else torch.empty(0)
    victim = Victim(
        model, original, concept, list(seeds), latents,
        training=[p.text for p in others if p.base == "forget" and p.use in ("", "train")],
        paraphrases=[p.text for p in others if p.base == "paraphrase" and p.use in ("", "measure")],
    )  # fmt: skip
    return Aim(split, victim, seeds, folder, before, painted("control", spec, asked, folder))


def painted(
    side: str, spec: Spec, asked: Sequence[tuple[str, int]], folder: Path, cache: Cache | None = None, fingerprint: str = ""
) -> Images:
    """The model's images of these prompts and seeds."""
    settings = replace(spec.sample, seed=0, per_prompt=1, prompts=None)
    prompts = [Prompt(text, "forget", seed=seed) for text, seed in asked]
    return sample(f"sample {side}", spec.model, prompts, settings, folder / side, cache, fingerprint)


def judged(spec: Spec, aim: Aim, attempts: Sequence[Attempt], picture: Path) -> list[dict[str, Any]]:
    """Paint what is asked, let the concept's detector look at all sides; a row for each image, and a picture of some."""
    asked = [(attempt, seed) for attempt in attempts for seed in aim.seeds[attempt.prompt]]
    attacked = painted("attacked", spec, [(attempt.attacked, seed) for attempt, seed in asked], aim.folder)
    judge = detector(aim.victim.concept, spec.model.domain)
    before, control, found = (judge.found(side.pixels(), spec.model.device) for side in (aim.original, aim.control, attacked))
    at = {(shot.prompt, shot.seed): i for i, shot in enumerate(aim.control)}
    rows, columns = [], []
    for j, (attempt, seed) in enumerate(asked):
        i = at[attempt.prompt, seed]
        verdicts = {"original": bool(before[i]), "control": bool(control[i]), "found": bool(found[j])}
        rows.append(asdict(attempt) | {"kind": _kind(aim.split, attempt), "seed": seed, "file": attacked[j].file} | verdicts)
        shots = (aim.original, aim.original[i]), (aim.control, aim.control[i]), (attacked, attacked[j])
        columns.append((shots, attempt.attacked))
    some = columns[:: max(1, len(columns) // COLUMNS)][:COLUMNS]
    strips = pictures.strips(("original", "no attack", "attacked"), some, aim.victim.concept.explicit)
    with files.beside(picture) as made:
        strips.save(made, "png")
    return rows


def _kind(split: str, attempt: Attempt) -> str:
    """The row in which an attempt counts: its concept, where there are several, and its kind."""
    return ", ".join(part for part in (split.partition(": ")[2], attempt.kind) if part) or "forget"


def learn(model: Any, learned: dict[str, torch.Tensor]) -> None:
    """Add learned tokens to the tokenizer and the text encoder's embeddings."""
    if learned:
        model.tokenizer.add_tokens(list(learned), special_tokens=True)
        with torch.random.fork_rng():
            model.text_encoder.resize_token_embeddings(len(model.tokenizer), mean_resizing=False)
        ids = model.tokenizer.convert_tokens_to_ids(list(learned))
        with torch.no_grad():
            embedding(model).weight[ids] = torch.stack(list(learned.values())).to(embedding(model).weight)


def counted(rows: Sequence[dict[str, Any]]) -> list[Share]:
    """The shares of each kind, in the order in which they come."""
    shares = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        some = [row for row in rows if row["kind"] == kind]
        original, control, attacked = (sum(row[side] for row in some) for side in ("original", "control", "found"))
        back = sum(row["found"] and not row["control"] for row in some)
        shares.append(Share(kind, len(some), original, control, attacked, back))
    return shares


def table(report: dict[str, Any]) -> list[list[str]]:
    """The rows of a report's table, under `HEAD`."""
    shares = [Share(**{key: value for key, value in share.items() if key != "interval"}) for share in report["shares"]]
    return [share.cells() for share in shares]


def told(report: dict[str, Any]) -> list[str]:
    """What stands under the table: what judged, the objective, and what made it."""
    goals = [(row["first"], row["last"]) for row in report["images"] if row["first"] is not None]
    lines = [f"by {'; '.join(dict.fromkeys(report['detectors'].values()))}"]
    if goals:
        first, last = (sum(ends) / len(goals) for ends in zip(*goals, strict=True))
        lines.append(f"the attack's objective, mean: {first:.4g} at its start, {last:.4g} at its end")
    settings = ", ".join(f"{key} {value}" for key, value in report["settings"].items() if key not in ("name", "kinds"))
    made = ", ".join(f"{key} {value}" for key, value in report["sample"].items())
    return [*lines, f"{settings}; sampling: {made}; {report['device']}, {report['seconds']} s"]


def markdown(report: dict[str, Any]) -> str:
    """A report as markdown."""
    return "\n".join([f"# {report['attack']} against {report['run']}", "", as_markdown(HEAD, table(report)), *told(report), ""])


def show(report: dict[str, Any]) -> None:
    """Print a report."""
    console = screen()
    shown = Table(
        title=f"{report['attack']} against {report['run']}", title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    for name in HEAD:
        shown.add_column(name, justify="left" if name in ("on", "95 % interval") else "right", no_wrap=True)
    for row in table(report):
        shown.add_row(*row)
    console.print(shown)
    for line in told(report):
        console.print(line, style="dim", highlight=False, markup=False)
