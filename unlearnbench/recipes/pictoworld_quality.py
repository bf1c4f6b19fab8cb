"""The quality of the embedded model and its evaluators, on held-out scenes and captions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from unlearnbench.console import progress_bar
from unlearnbench.pictoworld.captions import caption, parse
from unlearnbench.pictoworld.classifier import load_classifier, to_unit
from unlearnbench.pictoworld.render import ATTRIBUTES, Scene, render
from unlearnbench.pictoworld.scenes import SCENES, scene
from unlearnbench.recipes.quality import Score, clip_scores, embedded_model
from unlearnbench.sampling import Sampling, generate
from unlearnbench.worlds.pictoworld import WORLD

BARS = {"subject": 0.97, "color": 0.95, "background": 0.90, "style": 0.95}
CLASSIFIER_BAR = 0.99


def held_out(count: int) -> list[tuple[Scene, np.ndarray, str]]:
    """Scenes outside the training set, each with an image and a caption."""
    rng = np.random.default_rng(7)
    scenes = [scene(SCENES + i) for i in range(count)]
    return [(s, render(s, rng), caption(s, rng)) for s in scenes]


def captions(count: int) -> list[str]:
    """Captions that no training saw."""
    return [text for _, _, text in held_out(count)]


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
    return [
        *_pipeline(captions, seed),
        *_classifier([s for s, _, _ in world], images),
        *clip_scores(WORLD, parse, images, captions),
    ]


def _pipeline(captions: list[str], seed: int) -> Iterator[Score]:
    """The share of samples in which the classifier reads the attribute that the caption names."""
    model = embedded_model(WORLD).load(torch.device("cpu"))
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


def _read(images: Tensor) -> list[dict[str, str]]:
    classifier = load_classifier()
    return [reading for batch in images.split(128) for reading in classifier.read(to_unit(batch))]
