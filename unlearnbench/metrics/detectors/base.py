"""What every detector is: a yes or no for each image, from what its network answered."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlearnbench.metrics.readers import BATCH, Reader
from unlearnbench.storage.cache import digest
from unlearnbench.storage.downloads import Download
from unlearnbench.storage.fitting_batches import FittingBatches


@dataclass
class Detector(ABC):
    """Decides for each image whether the concept is in it."""

    @abstractmethod
    def unavailable_reason(self) -> str | None:
        """What is missing and how to get it; None if nothing is."""

    def downloads(self) -> list[Download]:
        """What of it is not on this machine and can be downloaded; by default nothing."""
        return []

    @abstractmethod
    def detect(self, images: Tensor, device: torch.device) -> np.ndarray:
        """Whether each image, uint8 (n, h, w, 3), shows the concept: bool (n,)."""

    def reader(self) -> Reader:
        """What is asked about each image, and stored in the cache; by default whether it shows the concept."""
        return Verdict(self)

    def decide(self, answers: Tensor) -> np.ndarray:
        """Whether each image shows the concept, from the reader's answers, (n, ...)."""
        return answers.numpy()

    def attributes(self) -> set[str]:
        """The attributes of an embedded world by which it decides; by default none."""
        return set()

    @abstractmethod
    def title(self) -> str:
        """Name, version and threshold, for the tables."""


class Verdict(Reader):
    """Whether a detector finds the concept, bool (n,); another version of its code asks again."""

    kind = "detections"

    def __init__(self, detector: Detector) -> None:
        self.detector = detector

    def key(self) -> list[Any]:
        """See `Reader.key`."""
        source = inspect.getsource(type(self.detector))
        return [type(self.detector).__qualname__, self.detector.title(), {**vars(self.detector)}, digest(source)]

    def read(self, images: Sequence[Tensor], device: torch.device) -> Tensor:
        """See `Reader.read`."""
        return torch.from_numpy(np.asarray(self.detector.detect(images[0], device)).astype(bool))


class ReadDetector(Detector):
    """A detector that decides from the answers of a reader of its own, which do not depend on its threshold."""

    def detect(self, images: Tensor, device: torch.device) -> np.ndarray:
        """See `Detector.detect`."""
        return self.decide(self.answers(images, device))

    @torch.no_grad()
    def answers(self, images: Tensor, device: torch.device) -> Tensor:
        """The reader's answers about images, uint8 (n, h, w, 3), without a cache."""
        reader = self.reader()
        parts = FittingBatches("images", BATCH).run(len(images), lambda part: reader.read([images[part]], device).cpu())
        return torch.cat([*parts])

    @abstractmethod
    def reader(self) -> Reader:
        """See `Detector.reader`."""

    @abstractmethod
    def decide(self, answers: Tensor) -> np.ndarray:
        """See `Detector.decide`."""
