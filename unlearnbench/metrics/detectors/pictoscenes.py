"""The detector of Pictoscenes: a subject, a subject in a colour, or a style, wherever it is in the image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from unlearnbench.metrics.backbones import backbone
from unlearnbench.metrics.detectors.base import ReadDetector
from unlearnbench.metrics.readers import AttributeReader, Reader
from unlearnbench.pictoscenes.detector import OF_IMAGE, OF_SUBJECT, Detection, unpacked
from unlearnbench.worlds.pictoscenes import WORLD


@dataclass
class InScene(ReadDetector):
    """Pictoscenes' detector: one of the image's subjects is of this kind and colour, and the image of this style.

    Attributes:
        subject: a subject, or "" for any and for none.
        color: its colour, or "" for any.
        style: flat, sketch, van gogh, or "" for any.
    """

    subject: str = ""
    color: str = ""
    style: str = ""

    def __post_init__(self) -> None:
        for name, known in (("subject", OF_SUBJECT), ("color", OF_SUBJECT), ("style", OF_IMAGE)):
            if (value := getattr(self, name)) and value not in known[name]:
                raise ValueError(f"{name}: {value!r} is not one of {', '.join(known[name])}")
        if not (self.subject or self.style):
            raise ValueError("subject: name one, or a style")
        if self.color and not self.subject:
            raise ValueError("color: name the subject, too")

    def unavailable_reason(self) -> str | None:
        """See `Detector.unavailable_reason`."""
        return backbone("auto", "pictoscenes").unavailable_reason()

    def attributes(self) -> set[str]:
        """See `Detector.attributes`."""
        return {name for name in ("subject", "color", "style") if getattr(self, name)}

    def title(self) -> str:
        """See `Detector.title`."""
        return " ".join(["detector", *(f"{n}={getattr(self, n)}" for n in ("subject", "color", "style") if getattr(self, n))])

    def reader(self) -> Reader:
        """See `Detector.reader`."""
        return AttributeReader(WORLD)

    def decide(self, answers: Tensor) -> np.ndarray:
        """See `Detector.decide`."""
        return np.array([self._shows(whole, detections) for whole, detections in unpacked(answers)])

    def _shows(self, whole: dict[str, str], detections: list[Detection]) -> bool:
        return self.style in ("", whole["style"]) and (not self.subject or any(map(self.matches, detections)))

    def matches(self, one: Detection) -> bool:
        """Whether this subject of an image is the concept; no subject is a style."""
        return self.subject == one.attributes["subject"] and self.color in ("", one.attributes["color"])
