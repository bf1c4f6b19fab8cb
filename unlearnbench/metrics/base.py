"""The interface of a metric, and the inputs that it measures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from unlearnbench.data.concept import Concept
from unlearnbench.data.images import Images, Picture
from unlearnbench.data.prompts import RETAIN_SPLITS, Prompt
from unlearnbench.data.retain_set import DEFAULT_IMAGES, Retain
from unlearnbench.metrics.backbones import Backbone, backbone
from unlearnbench.metrics.image_pass import ImagePass
from unlearnbench.metrics.readers import Features, Question, Reader
from unlearnbench.results.depth import Probed
from unlearnbench.results.intervals import NO_INTERVAL, Interval, share_interval
from unlearnbench.results.run import Value
from unlearnbench.storage.cache import Cache
from unlearnbench.storage.downloads import Download


@dataclass(frozen=True)
class EvaluationSetting:
    """The settings of a run that metrics depend on.

    Attributes:
        domain: the model's domain, "photo" or an embedded world such as "pictoworld"; detectors and backbones are chosen by it.
        size: the side of the images, in pixels.
        concept: the concept that is forgotten.
        retain: the prompts and real images that are retained.
        cache: the cache folder, to which prompt sets unpack their images.
    """

    domain: str
    size: int
    concept: Concept
    retain: Retain
    cache: Path

    @property
    def real_images(self) -> str | None:
        """The retain set's real images: a folder or the name of a prompt set; None where an embedded world renders its own."""
        return self.retain.images or DEFAULT_IMAGES.get(self.domain)


@dataclass
class MetricInputs:
    """The images of both models, of the same prompts and seeds in the same order, and what is needed to measure them.

    Attributes:
        original_images: the original model's images.
        unlearned_images: the unlearned model's images.
        setting: the run's settings, as far as metrics depend on them.
        cache: holds the answers of networks.
        device: where networks run.
        per_image: distances by name and file, for reports; metrics add to it.
        probe: runs the probes on the unlearned model and on an oracle: from the oracle's folder (None for the one that comes
            with the model) and settings of the probes to their images; None where the weights are not at hand.
    """

    original_images: Images
    unlearned_images: Images
    setting: EvaluationSetting
    cache: Cache
    device: torch.device
    per_image: dict[str, dict[str, float]]
    probe: Callable[[str | None, Sequence[str]], Probed] | None = None

    def __post_init__(self) -> None:
        self._pass = ImagePass(self.cache, self.device)

    def splits(self) -> list[tuple[str, tuple[str, ...]]]:
        """The retain splits that have images, "retain" for all of them together, and parts of a split, such as "near: tree"."""
        present = [split for split in RETAIN_SPLITS if len(self.original_images.where(split))]
        whole: tuple[str, tuple[str, ...]] = ("retain", tuple(present))
        retained = dict.fromkeys(record.split for record in self.original_images.where(*present))
        parts = [split for split in retained if split not in present]
        return [whole, *((split, (split,)) for split in [*(present if len(present) > 1 else []), *parts])]

    def both(self, *splits: str) -> tuple[Images, Images]:
        """The original and the unlearned model's images of these splits."""
        return self.original_images.where(*splits), self.unlearned_images.where(*splits)

    def features(self, images: Images, name: str) -> Tensor:
        """Features of images by a backbone, (n, d), from the cache if it holds them."""
        return self.answers(Features(self.backbone(name)), images)

    def answers(self, reader: Reader, *sides: Images | Sequence[Picture]) -> Tensor:
        """The answers of a reader about images, or about pairs of images, (n, ...), from the cache if it holds them."""
        return self._pass.rows(reader, *sides)

    def prepare(self, metrics: Iterable[Metric]) -> None:
        """Ask all that these metrics ask about images in one pass, which decodes each image once."""
        self._pass.ask(question for metric in metrics for question in metric.questions(self))

    def backbone(self, name: str) -> Backbone:
        """The named backbone, or the domain's own for "auto"; each is built once."""
        return backbone(name, self.setting.domain)


@dataclass
class Metric(ABC):
    """A metric: from the images of both models to values.

    A subclass states `table`, `better` and `unit` where its values have them in common, and builds values with
    `value` or `share`.
    """

    table: ClassVar[str] = "Retention"  # the table that its values stand in
    better: ClassVar[str] = "higher"  # "higher", "lower" or "" where neither is better
    unit: ClassVar[str] = ""  # such as "x 1000"; it begins the note of each value
    each_stage: ClassVar[bool] = False  # also measured after every concept of a sequence but the last
    probes_model: ClassVar[bool] = False  # samples the unlearned model, too, and so needs its weights
    least_retain_images: ClassVar[int] = 0  # fewer images of retain prompts give no number

    @abstractmethod
    def measure(self, inputs: MetricInputs) -> list[Value]:
        """Measure the images; touches the models only by `inputs.probe`."""

    def questions(self, inputs: MetricInputs) -> Iterable[Question]:
        """What `measure` asks readers, so that all metrics share one pass over the images; by default nothing is known."""
        return ()

    @abstractmethod
    def unavailable_reason(self, setting: EvaluationSetting) -> str | None:
        """What is missing to measure (weights, a package, real images) and how to get it; None if nothing is."""

    def downloads(self, setting: EvaluationSetting) -> list[Download]:
        """The networks and images that are not on this machine and can be downloaded; by default none."""
        return []

    def may_be_left_out(self, setting: EvaluationSetting) -> bool:
        """Whether a run goes on without this metric where it cannot be measured, with one line; by default it is refused."""
        return False

    def sample_problem(self, setting: EvaluationSetting, images: Sequence[Prompt]) -> str | None:
        """Why these images give no number, without the repair; None if they do.

        Args:
            setting: the run's settings.
            images: the prompt of each image that is measured.
        """
        count = sum(prompt.base in RETAIN_SPLITS for prompt in images)
        if count < self.least_retain_images:
            needed = f"{self.least_retain_images} image{'s' * (self.least_retain_images > 1)} of retain prompts"
            return f"needs at least {needed}, and the run has {count}: raise sample.prompts or sample.per_prompt"
        return None

    def value(
        self,
        metric: str,
        split: str,
        unlearned: float,
        *,
        n: int,
        backbone: str,
        original: float | None = None,
        interval: Interval = NO_INTERVAL,
        table: str | None = None,
        better: str | None = None,
        note: str = "",
        extras: Mapping[str, float] | None = None,
        bounds: tuple[float | None, float | None] = (None, None),
    ) -> Value:
        """One value in the metric's table, direction and unit; see `Value` for the arguments.

        Args:
            metric: its name in the table.
            split: the prompts it was measured on.
            unlearned: the unlearned model's value.
            n: how many images.
            backbone: the network, detector or distance that measured it.
            original: the original's value.
            interval: the 95 % interval of `unlearned`.
            table: another table than the metric's.
            better: another direction than the metric's.
            note: a remark in words.
            extras: numbers beside the value.
            bounds: the lowest and the highest possible value.
        """
        lowest, highest = bounds
        return Value(
            table=self.table if table is None else table,
            metric=metric,
            split=split,
            original=original,
            unlearned=unlearned,
            better=self.better if better is None else better,
            n=n,
            low=interval.low,
            high=interval.high,
            backbone=backbone,
            note=", ".join(filter(None, (self.unit, note))),
            extras=dict(extras or {}),
            interval=interval.method,
            lowest=lowest,
            highest=highest,
        )

    def share(
        self,
        metric: str,
        split: str,
        prompts: Sequence[str],
        scores: tuple[np.ndarray, np.ndarray],
        *,
        backbone: str,
        note: str = "",
    ) -> Value:
        """The share of images that count, with its interval over prompts.

        Args:
            metric: its name in the table.
            split: the prompts it was measured on.
            prompts: the prompt of each image, (n,).
            scores: the original's and the unlearned model's images, 0 to 1, each (n,).
            backbone: what judged the images.
            note: a remark in words.
        """
        original, unlearned = scores
        return self.value(
            metric,
            split,
            float(unlearned.mean()),
            n=len(unlearned),
            backbone=backbone,
            original=float(original.mean()),
            interval=share_interval(prompts, unlearned),
            note=note,
            bounds=(0.0, 1.0),
        )
