"""How good the embedded model and its evaluators are, on scenes and captions that no training saw."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unlearnbench.config.build import build
from unlearnbench.config.compose import compose
from unlearnbench.console import progress_bar
from unlearnbench.metrics.backbones import CLIP, backbone
from unlearnbench.models.pictoworld import Pictoworld
from unlearnbench.pictoworld.captions import caption, parse
from unlearnbench.pictoworld.classifier import WEIGHTS, load_classifier, to_unit
from unlearnbench.pictoworld.render import ATTRIBUTES, Scene, render
from unlearnbench.pictoworld.scenes import SCENES, scene
from unlearnbench.results.intervals import wilson_interval
from unlearnbench.sampling import Sampling, generate

BARS = {"subject": 0.97, "color": 0.95, "background": 0.90, "style": 0.95}
CLASSIFIER_BAR = 0.99


@dataclass(frozen=True)
class Score:
    """A share of n answers that are right, its 95 % interval (Wilson 1927), and the bar it should pass, if there is one."""

    part: str
    what: str
    right: int
    n: int
    bar: float | None = None

    @property
    def value(self) -> float:
        """The share."""
        return self.right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval, 95 %."""
        return wilson_interval(self.right, self.n)


def embedded_model() -> Pictoworld:
    """The embedded model with the settings of conf/model/pictoworld.yaml."""
    return build(compose("model=pictoworld").model, Pictoworld, "model")


def held_out(count: int) -> list[tuple[Scene, np.ndarray, str]]:
    """Scenes beyond the training set's, each with a picture and a caption."""
    rng = np.random.default_rng(7)
    scenes = [scene(SCENES + i) for i in range(count)]
    return [(s, render(s, rng), caption(s, rng)) for s in scenes]


@torch.no_grad()
def measure_quality(count: int = 1000, seed: int = 0) -> list[Score]:
    """Measure the pipeline, the classifier and the small CLIP.

    Args:
        count: held-out captions, one image each.
        seed: of sampling.
    """
    world = held_out(count)
    pictures = torch.from_numpy(np.stack([picture for _, picture, _ in world]))
    captions = [text for _, _, text in world]
    return [*_pipeline(captions, seed), *_classifier([s for s, _, _ in world], pictures), *_clip(pictures, captions)]


def _pipeline(captions: list[str], seed: int) -> Iterator[Score]:
    """Of the attributes that a caption names, how many the classifier reads in the sample."""
    model = embedded_model().load(torch.device("cpu"))
    settings = Sampling()
    images = []
    with progress_bar("sample captions", len(captions)) as shown:
        for start in range(0, len(captions), settings.batch):
            texts = captions[start : start + settings.batch]
            seeds = list(range(seed + start, seed + start + len(texts)))
            images.append(generate(model, texts, seeds, model.steps, model.guidance))
            shown.advance(len(texts))
    read = _read(torch.cat(images))
    for name in ATTRIBUTES:
        asked = [(parse(text)[name], seen[name]) for text, seen in zip(captions, read, strict=True) if name in parse(text)]
        right = sum(wanted == seen for wanted, seen in asked)
        yield Score("pipeline, samples", name, right, len(asked), BARS.get(name))
    right = sum(all(seen[k] == v for k, v in parse(text).items()) for text, seen in zip(captions, read, strict=True))
    yield Score("pipeline, samples", "all that the caption names", right, len(captions))


def _classifier(scenes: list[Scene], pictures: Tensor) -> Iterator[Score]:
    """The classifier on fresh renders; what a nude person's picture cannot show does not count."""
    read = _read(pictures)
    for name in ATTRIBUTES:
        pairs = [
            (getattr(s, name), r[name])
            for s, r in zip(scenes, read, strict=True)
            if s.subject != "nude" or name not in ("color", "style")
        ]
        yield Score("classifier, renders", name, sum(a == b for a, b in pairs), len(pairs), CLASSIFIER_BAR)


def _clip(pictures: Tensor, captions: list[str]) -> Iterator[Score]:
    """Whether the small CLIP picks a picture's caption out of 32, those that name the same attributes counted as right."""
    network = backbone("clip-pictoworld", "pictoworld")
    assert isinstance(network, CLIP)
    network.load(torch.device("cpu"))
    image = torch.cat([network.features(batch) for batch in pictures.split(64)])
    text = network.text(captions)
    right = total = 0
    for start in range(0, len(captions) - 31, 32):
        group = slice(start, start + 32)
        for i, j in enumerate((image[group] @ text[group].T).argmax(1).tolist()):
            right += parse(captions[start + i]) == parse(captions[start + j])
            total += 1
    if total:
        yield Score("small CLIP, renders", "caption among 32", right, total)
    pairs = F.cosine_similarity(image, text)
    others = F.cosine_similarity(image, text.roll(1, 0))
    yield Score("small CLIP, renders", "own caption nearer than another's", int((pairs > others).sum()), len(pairs))


def _read(pictures: Tensor) -> list[dict[str, str]]:
    judge = load_classifier()
    return [answer for batch in pictures.split(128) for answer in judge.read(to_unit(batch))]


def weights_hash(folder: Path = WEIGHTS) -> str:
    """sha256 over the shipped weight files, in the order of their names."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        total.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return total.hexdigest()


def quality_table(scores: list[Score]) -> str:
    """The scores as a markdown page."""
    rows = [
        f"| {s.part} | {s.what} | {100 * s.value:.1f} | {100 * s.interval[0]:.1f} to {100 * s.interval[1]:.1f} | {s.n} | "
        + ("" if s.bar is None else f">= {100 * s.bar:.0f}: {'met' if s.value >= s.bar else 'MISSED'}") + " |"
        for s in scores
    ]  # fmt: skip
    model = embedded_model()
    return "\n".join(
        [
            "# Quality of the embedded world", "",
            "Made by `make world-quality`: scenes and captions that no training saw, one sample a caption",
            f"({model.steps} DDIM steps, guidance {model.guidance}, seeds from 0), read by the shipped classifier.",
            f"Weights: sha256 `{weights_hash()}`.", "",
            "| part | attribute | right, % | 95 % interval | n | bar |", "|---|---|---|---|---|---|", *rows, "",
        ]
    )  # fmt: skip
