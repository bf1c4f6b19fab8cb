"""The quality of an embedded world: scores with their intervals, and the page of the documentation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from unlearnbench.config.build import build
from unlearnbench.config.compose import compose
from unlearnbench.metrics.backbones import CLIP, backbone
from unlearnbench.models.embedded import EmbeddedModel
from unlearnbench.reports.image_grid import captioned_sheet
from unlearnbench.results.intervals import wilson_interval
from unlearnbench.sampling import generate
from unlearnbench.worlds import World


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


def embedded_model(world: World) -> EmbeddedModel:
    """A world's model with the settings of its file in conf/model/."""
    return build(compose(f"model={world.name}").model, EmbeddedModel, "model")


def weights_hash(world: World) -> str:
    """sha256 over the weight files of a world's network, CLIP and model, sorted by name."""
    total = hashlib.sha256()
    for path in sorted(world.weights.rglob("*.safetensors")):
        total.update(path.relative_to(world.weights).as_posix().encode() + path.read_bytes())
    return total.hexdigest()


def clip_scores(world: World, named: Callable[[str], object], images: Tensor, captions: Sequence[str]) -> list[Score]:
    """Whether the small CLIP picks an image's caption out of 32; a caption that names the same counts as correct.

    Args:
        world: the world of the CLIP.
        named: what a caption names.
        images: uint8 (n, 64, 64, 3).
        captions: that of each image.
    """
    network = backbone(world.clip, world.name)
    assert isinstance(network, CLIP)
    network.load(torch.device("cpu"))
    image_features = torch.cat([network.features(batch) for batch in images.split(64)])
    text_features = network.text(list(captions))
    right = total = 0
    for start in range(0, len(captions) - 31, 32):
        group = slice(start, start + 32)
        for i, j in enumerate((image_features[group] @ text_features[group].T).argmax(1).tolist()):
            right += named(captions[start + i]) == named(captions[start + j])
            total += 1
    own = F.cosine_similarity(image_features, text_features)
    others = F.cosine_similarity(image_features, text_features.roll(1, 0))
    nearer = Score("small CLIP, renders", "own caption nearer than another's", int((own > others).sum()), len(own))
    return [*([Score("small CLIP, renders", "caption among 32", right, total)] if total else []), nearer]


def caption_sheet(world: World, captions: Sequence[str], seed: int = 0) -> Image.Image:
    """One sample of the world's model for each caption, not selected, with the captions below."""
    model = embedded_model(world).load(torch.device("cpu"))
    images = generate(model, captions, range(seed, seed + len(captions)), model.steps, model.guidance)
    return captioned_sheet(list(images.numpy()), captions)


def quality_page(world: World, scores: Sequence[Score], command: str) -> str:
    """The scores as a markdown page, with how they were made."""
    rows = [
        f"| {s.part} | {s.what} | {100 * s.value:.1f} | {100 * s.interval[0]:.1f} to {100 * s.interval[1]:.1f} | {s.n} | "
        + ("" if s.bar is None else f">= {100 * s.bar:.0f}: {'met' if s.value >= s.bar else 'MISSED'}") + " |"
        for s in scores
        if s.n  # of few captions, none may name an attribute
    ]  # fmt: skip
    model = embedded_model(world)
    return "\n".join(
        [
            f"# Quality of {world.title}", "",
            f"Made by `{command}`: scenes outside the training set, one sample of each caption",
            f"({model.steps} DDIM steps, guidance {model.guidance}, seeds from 0), read by the shipped {world.judge}.",
            f"Weights: sha256 `{weights_hash(world)}`. Intervals: Wilson's.", "",
            "| part | attribute | right, % | 95 % interval | n | bar |", "|---|---|---|---|---|---|", *rows, "",
        ]
    )  # fmt: skip
