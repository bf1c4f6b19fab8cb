"""The detector of Pictoworld: an attribute that its classifier reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlearnbench.metrics.backbones import (
    PictoworldClassifier,
    backbone,
)
from unlearnbench.metrics.detectors.base import ReadDetector
from unlearnbench.metrics.readers import Reader
from unlearnbench.pictoworld.render import ATTRIBUTES


@dataclass
class Attribute(ReadDetector):
    """Pictoworld's classifier: an attribute has a certain value.

    Attributes:
        attribute: subject, color, background, size, position or style.
        value: its value.
    """

    attribute: str = "subject"
    value: str = "???"

    def __post_init__(self) -> None:
        if self.value not in ATTRIBUTES.get(self.attribute, ()):
            raise ValueError(f"value: {self.attribute}={self.value} is not an attribute of Pictoworld; known: {ATTRIBUTES}")

    def unavailable_reason(self) -> str | None:
        """See `Detector.unavailable_reason`."""
        return backbone("classifier", "pictoworld").unavailable_reason()

    def title(self) -> str:
        """See `Detector.title`."""
        return f"classifier {self.attribute}={self.value}"

    def reader(self) -> Reader:
        """See `Detector.reader`."""
        return AttributeReader()

    def decide(self, answers: Tensor) -> np.ndarray:
        """See `Detector.decide`."""
        return np.array([reading[self.attribute] == self.value for reading in named_attributes(answers)])


class AttributeReader(Reader):
    """The most likely value of every attribute by Pictoworld's classifier: its place in `ATTRIBUTES`, (n, attributes)."""

    kind = "attributes"

    def key(self) -> list[Any]:
        """See `Reader.key`."""
        return ["classifier", backbone("classifier", "pictoworld").version()]

    def read(self, images: Sequence[Tensor], device: torch.device) -> Tensor:
        """See `Reader.read`."""
        network = backbone("classifier", "pictoworld")
        assert isinstance(network, PictoworldClassifier)
        network.load(device)
        logits = network.model(network.pixels(images[0]))
        return torch.stack([logits[name].argmax(1) for name in ATTRIBUTES], dim=1)


def named_attributes(answers: Tensor) -> list[dict[str, str]]:
    """The value of every attribute of each image, from the answers of an `AttributeReader`."""
    return [{name: values[i] for (name, values), i in zip(ATTRIBUTES.items(), row, strict=True)} for row in answers.tolist()]
