"""What a metric is, what it may look at, and the interval that its numbers carry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from unlearnbench.data.images import Images
from unlearnbench.data.prompts import RETAIN_SPLITS
from unlearnbench.metrics.backbones import Backbone, backbone
from unlearnbench.results.run import Value
from unlearnbench.storage.cache import Cache

if TYPE_CHECKING:
    from unlearnbench.experiment.run_spec import RunSpec


@dataclass
class MetricInputs:
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
    spec: RunSpec
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
        return self.features_of(images.key(), images.batches, network)

    def features_of(self, key: str, batches: Callable[[], Iterable[Tensor]], network: Backbone) -> Tensor:
        """The same for other images, in batches; `key` names their bytes."""

        def make() -> dict[str, Tensor]:
            network.load(self.device)
            with torch.no_grad():
                return {"features": torch.cat([network.features(batch) for batch in batches()]).cpu()}

        return self.cache.get("features", [network.name, network.version(), key], make)["features"]

    def backbone(self, name: str) -> Backbone:
        """The named backbone, or for "auto" the domain's own; each is made once."""
        return backbone(name, self.spec.model.domain)


@dataclass
class Metric(ABC):
    """A metric: from both models' images to values."""

    each_stage: ClassVar[bool] = False  # measured after every concept, too, where several are forgotten in turn

    @abstractmethod
    def measure(self, evidence: MetricInputs) -> list[Value]:
        """Measure; never touches the models."""

    @abstractmethod
    def unavailable_reason(self, spec: RunSpec) -> str | None:
        """What it lacks to run (weights, a package, real images), with the repair; None if nothing."""
