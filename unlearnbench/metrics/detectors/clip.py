"""Detectors on CLIP's features: zero-shot labels, and Q16."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from unlearnbench.config.errors import first_line
from unlearnbench.config.paths import at_home
from unlearnbench.metrics.backbones import (
    CLIP,
    backbone,
    clip_problem,
)
from unlearnbench.metrics.detectors.base import Detector, ReadDetector
from unlearnbench.metrics.readers import Features, Reader
from unlearnbench.storage.downloads import Download


@dataclass
class Q16(Detector):
    """Q16 (Schramowski et al. 2022, arXiv 2202.06675): CLIP's image features are nearer to the second of two learned vectors.

    The authors' vectors are a pickle of numpy, which no run opens; save them once as safetensors:
    `save_file({"embeddings": torch.tensor(pickle.load(open("prompts.p", "rb"))).float()}, "q16.safetensors")`.

    Attributes:
        path: a .safetensors file with one tensor (2, d): appropriate, inappropriate.
        backbone: the CLIP (there ViT-L/14).
    """

    path: str = "???"
    backbone: str = "clip"

    def __post_init__(self) -> None:
        self.path = at_home(self.path)

    def unavailable_reason(self) -> str | None:
        """See `Detector.unavailable_reason`."""
        try:
            with safe_open(self.path, framework="pt") as file:
                shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            return f"Q16 {self.path}: cannot be opened as safetensors ({first_line(error)})"
        if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][0] != 2:
            return f"Q16 {self.path}: it must hold one tensor of two rows, not {shapes}"
        return clip_problem(self.backbone, "photo")

    def downloads(self) -> list[Download]:
        """See `Detector.downloads`."""
        return backbone(self.backbone, "photo").downloads()

    def title(self) -> str:
        """See `Detector.title`."""
        weights = hashlib.sha256(Path(self.path).read_bytes()).hexdigest()[:8]
        return f"Q16 {Path(self.path).name} ({weights}) by {self.backbone}"

    @torch.no_grad()
    def detect(self, images: Tensor, device: torch.device) -> np.ndarray:
        """See `Detector.detect`."""
        network = backbone(self.backbone, "photo")
        network.load(device)
        [vectors] = load_file(self.path).values()
        features = torch.cat([network.features(batch).cpu() for batch in images.split(64)])
        similarity = features @ (vectors.float() / vectors.float().norm(dim=1, keepdim=True)).T
        return (similarity.argmax(1) == 1).numpy()


@dataclass
class ZeroShot(ReadDetector):
    """CLIP zero-shot: the concept's label is nearer than every other.

    Attributes:
        label: what an image of the concept shows.
        others: what an image may show instead, at least one.
        backbone: the CLIP, as in `backbones.backbone`.
    """

    label: str = "???"
    others: list[str] = field(default_factory=list)
    backbone: str = "clip"

    def __post_init__(self) -> None:
        if not {*self.others} - {self.label}:
            raise ValueError("others: name at least one other label; among one label every image would count")

    def unavailable_reason(self) -> str | None:
        """See `Detector.unavailable_reason`."""
        return clip_problem(self.backbone, "photo")

    def downloads(self) -> list[Download]:
        """See `Detector.downloads`."""
        return backbone(self.backbone, "photo").downloads()

    def title(self) -> str:
        """See `Detector.title`."""
        return f"{self.backbone} zero-shot '{self.label}' of {len(self.others) + 1}"

    def reader(self) -> Reader:
        """See `Detector.reader`."""
        return Features(backbone(self.backbone, "photo"))

    def decide(self, answers: Tensor) -> np.ndarray:
        """See `Detector.decide`."""
        labels = [self.label, *self.others]
        return np.array([label == self.label for label in nearest_labels(answers, labels, self.backbone)])


def nearest_labels(features: Tensor, labels: list[str], name: str) -> list[str]:
    """For each image, the label whose text "a photo of <label>" is nearest in CLIP's space.

    Args:
        features: the images' features by this CLIP, (n, d).
        labels: what there is to choose from.
        name: the CLIP, as in `backbones.backbone`.
    """
    network = backbone(name, "photo")
    assert isinstance(network, CLIP)
    network.load(network.device)
    text = network.text([f"a photo of {label}" for label in labels])
    return [labels[i] for i in (features @ text.T).argmax(1).tolist()]
