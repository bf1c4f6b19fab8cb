"""What a metric is, what it may look at, and the interval that its numbers carry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from unlearnbench.cache import Cache
from unlearnbench.data import RETAIN_SPLITS, Images
from unlearnbench.metrics.features import Backbone, backbone
from unlearnbench.results import Value

if TYPE_CHECKING:
    from unlearnbench.spec import Spec


@dataclass
class Evidence:
    """The images of both models, of the same prompts and seeds in the same order, and what they are measured with.

    Attributes:
        before: the original's images.
        after: the unlearned model's.
        spec: the run's settings.
        cache: where features are kept.
        device: where networks run.
        per_image: distances by name and file, for reports; metrics add to it.
    """

    before: Images
    after: Images
    spec: Spec
    cache: Cache
    device: torch.device
    per_image: dict[str, dict[str, float]]

    def splits(self) -> list[tuple[str, tuple[str, ...]]]:
        """The retain splits that have images, and "retain" for all of them."""
        there = [s for s in RETAIN_SPLITS if len(self.before.where(s))]
        return [("retain", tuple(there)), *((s, (s,)) for s in there)] if len(there) > 1 else [("retain", tuple(there))]

    def features(self, images: Images, name: str) -> Tensor:
        """Features of images by a backbone, (n, d), from the cache where they are there."""
        network = self.backbone(name)
        return self.features_of(images.key(), images.pixels, network)

    def features_of(self, key: str, pixels: Callable[[], Tensor], network: Backbone) -> Tensor:
        """The same for images that are no folder; `key` names their bytes."""

        def make() -> dict[str, Tensor]:
            network.load(self.device)
            with torch.no_grad():
                return {"features": torch.cat([network.features(batch) for batch in pixels().split(64)]).cpu()}

        return self.cache.get("features", [network.name, network.version(), key], make)["features"]

    def backbone(self, name: str) -> Backbone:
        """The named backbone, or for "auto" the domain's own; each is made once."""
        return backbone(name, self.spec.model.domain)


@dataclass
class Metric(ABC):
    """A metric: from both models' images to values."""

    @abstractmethod
    def measure(self, evidence: Evidence) -> list[Value]:
        """Measure; never touches the models."""

    @abstractmethod
    def missing(self, spec: Spec) -> str | None:
        """What it lacks to run (weights, a package, real images), with the repair; None if nothing."""


def interval(
    groups: Sequence[Any],
    *columns: np.ndarray,
    of: Callable[..., Any] = lambda mean: mean,
    draws: int = 2000,
) -> tuple[float, float]:
    """A 95 % percentile interval by bootstrap over groups (prompts), for a function of the columns' means.

    Args:
        groups: the group of each row; rows of one group are drawn together.
        columns: float arrays (n,).
        of: from the means to the statistic, elementwise.
        draws: bootstrap samples, from a fixed generator.

    Examples:
        >>> low, high = interval([0, 1, 2, 3], np.array([0.0, 0.0, 1.0, 1.0]))
        >>> low <= 0.5 <= high
        True
    """
    _, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    count = np.bincount(index).astype(float)
    chosen = np.random.default_rng(0).integers(len(count), size=(draws, len(count)))
    weight = count[chosen].sum(1)
    means = [np.bincount(index, column.astype(float))[chosen].sum(1) / weight for column in columns]
    low, high = np.percentile(of(*means), [2.5, 97.5])
    return float(low), float(high)
