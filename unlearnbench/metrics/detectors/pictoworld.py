"""The detector of Pictoworld: an attribute that its classifier reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from unlearnbench.metrics.backbones import backbone
from unlearnbench.metrics.detectors.base import ReadDetector
from unlearnbench.metrics.readers import AttributeReader, Reader
from unlearnbench.pictoworld.render import ATTRIBUTES
from unlearnbench.worlds.pictoworld import WORLD, named_attributes


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
        return backbone("auto", "pictoworld").unavailable_reason()

    def attributes(self) -> set[str]:
        """See `Detector.attributes`."""
        return {self.attribute}

    def title(self) -> str:
        """See `Detector.title`."""
        return f"classifier {self.attribute}={self.value}"

    def reader(self) -> Reader:
        """See `Detector.reader`."""
        return AttributeReader(WORLD)

    def decide(self, answers: Tensor) -> np.ndarray:
        """See `Detector.decide`."""
        return np.array([reading[self.attribute] == self.value for reading in named_attributes(answers)])
