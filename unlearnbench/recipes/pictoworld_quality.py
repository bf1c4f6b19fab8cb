"""The quality of the embedded model and its evaluators, on held-out scenes and captions."""

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
    """The share of correct answers, its 95 % interval (Wilson 1927) and, optionally, the bar that it should reach."""

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
    """Scenes outside the training set, each with an image and a caption."""
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
    images = torch.from_numpy(np.stack([image for _, image, _ in world]))
    captions = [text for _, _, text in world]
    return [*_pipeline(captions, seed), *_classifier([s for s, _, _ in world], images), *_clip(images, captions)]


def _pipeline(captions: list[str], seed: int) -> Iterator[Score]:
    """The share of samples in which the classifier reads the attribute that the caption names."""
    model = embedded_model().load(torch.device("cpu"))
    settings = Sampling()
    images = []
    with progress_bar("sample captions", len(captions)) as shown:
        for start in range(0, len(captions), settings.batch):
            texts = captions[start : start + settings.batch]
            seeds = list(range(seed + start, seed + start + len(texts)))
            images.append(generate(model, texts, seeds, model.steps, model.guidance))
            shown.advance(len(texts))
    readings = _read(torch.cat(images))
    named = [(parse(text), reading) for text, reading in zip(captions, readings, strict=True)]
    for name in ATTRIBUTES:
        pairs = [(attributes[name], reading[name]) for attributes, reading in named if name in attributes]
        right = sum(value == reading for value, reading in pairs)
        yield Score("pipeline, samples", name, right, len(pairs), BARS.get(name))
    right = sum(all(reading[name] == value for name, value in attributes.items()) for attributes, reading in named)
    yield Score("pipeline, samples", "all that the caption names", right, len(captions))


def _classifier(scenes: list[Scene], images: Tensor) -> Iterator[Score]:
    """The classifier on new renders; attributes that are not visible on a nude person do not count."""
    readings = _read(images)
    for name in ATTRIBUTES:
        pairs = [
            (getattr(s, name), reading[name])
            for s, reading in zip(scenes, readings, strict=True)
            if s.subject != "nude" or name not in ("color", "style")
        ]
        yield Score("classifier, renders", name, sum(a == b for a, b in pairs), len(pairs), CLASSIFIER_BAR)


def _clip(images: Tensor, captions: list[str]) -> Iterator[Score]:
    """Whether the small CLIP picks an image's caption out of 32; a caption that names the same attributes counts as correct."""
    network = backbone("clip-pictoworld", "pictoworld")
    assert isinstance(network, CLIP)
    network.load(torch.device("cpu"))
    image_features = torch.cat([network.features(batch) for batch in images.split(64)])
    text_features = network.text(captions)
    right = total = 0
    for start in range(0, len(captions) - 31, 32):
        group = slice(start, start + 32)
        for i, j in enumerate((image_features[group] @ text_features[group].T).argmax(1).tolist()):
            right += parse(captions[start + i]) == parse(captions[start + j])
            total += 1
    if total:
        yield Score("small CLIP, renders", "caption among 32", right, total)
    own = F.cosine_similarity(image_features, text_features)
    others = F.cosine_similarity(image_features, text_features.roll(1, 0))
    yield Score("small CLIP, renders", "own caption nearer than another's", int((own > others).sum()), len(own))


def _read(images: Tensor) -> list[dict[str, str]]:
    classifier = load_classifier()
    return [reading for batch in images.split(128) for reading in classifier.read(to_unit(batch))]


def weights_hash(folder: Path = WEIGHTS) -> str:
    """sha256 over the shipped weight files, sorted by name."""
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
