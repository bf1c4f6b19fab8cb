"""Compositional damage: do the attributes that a prompt names still occur together in one image?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import ClassVar

import numpy as np

from unlearnbench.config.errors import suggest
from unlearnbench.metrics.base import EvaluationSetting, Metric, MetricInputs
from unlearnbench.metrics.readers import Question
from unlearnbench.metrics.retain_accuracy import attribute_questions, correct_attributes, world_problem
from unlearnbench.results.run import Value
from unlearnbench.worlds import embedded_world, embedded_worlds

ATTRIBUTES = tuple(dict.fromkeys(name for world in embedded_worlds() for name in world.attributes))


@dataclass
class Binding(Metric):
    """The share of retain images with every attribute right that the prompt names, over prompts that name two or more.

    Also, for each pair of attributes, the share with both right, over prompts that name both. Embedded worlds only: their
    prompts name every attribute by a word of its own, and a network reads each from the image. The numbers are exact up to that
    network's errors (docs/world-quality.md). With several subjects in an image, an attribute is right if every subject has its
    own.

    Attributes:
        attributes: which of subject, color, background, size, position and style count, and on Pictoscenes pattern and count.
    """

    attributes: list[str] = field(default_factory=lambda: ["subject", "color", "style", "position", "background"])
    least_retain_images: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for name in self.attributes:
            if name not in ATTRIBUTES:
                raise ValueError(f"attributes: {name!r} is not one of {', '.join(ATTRIBUTES)}")
        if len(set(self.attributes)) < 2:
            raise ValueError("attributes: name at least two")

    def unavailable_reason(self, setting: EvaluationSetting) -> str | None:
        """See `Metric.unavailable_reason`."""
        if problem := world_problem(setting, "binding"):
            return problem
        world = embedded_world(setting.domain)
        assert world is not None
        unknown = [name for name in self.attributes if name not in world.attributes]
        if unknown:
            return f"metrics.binding.attributes: {unknown[0]!r} in {world.title}: {suggest(unknown[0], world.attributes)}"
        return None

    def questions(self, inputs: MetricInputs) -> Iterable[Question]:
        """See `Metric.questions`."""
        return attribute_questions(inputs)

    def measure(self, inputs: MetricInputs) -> list[Value]:
        """binding on all retain prompts and on each split, and binding_<a>_<b> on all retain prompts."""
        values, judge = [], inputs.backbone("auto").name
        for split, parts in inputs.splits():
            correct = [correct_attributes(images, inputs) for images in inputs.both(*parts)]
            prompts = [record.prompt for record in inputs.unlearned_images.where(*parts)]
            values += self._bound("binding", split, prompts, correct, self.attributes, judge)
            if split == "retain":
                for pair in combinations(self.attributes, 2):
                    values += self._bound(f"binding_{'_'.join(pair)}", split, prompts, correct, pair, judge)
        return values

    def _bound(
        self,
        metric: str,
        split: str,
        prompts: list[str],
        correct: list[list[dict[str, bool]]],
        attributes: Sequence[str],
        judge: str,
    ) -> list[Value]:
        """The share of images with these attributes right, of both models; empty if no prompt names two of them."""
        flags = [[[image[name] for name in attributes if name in image] for image in images] for images in correct]
        rows = [i for i, image in enumerate(flags[1]) if len(image) >= 2]
        if not rows:
            return []
        original, unlearned = (np.array([all(images[i]) for i in rows], dtype=float) for images in flags)
        return [self.share(metric, split, [prompts[i] for i in rows], (original, unlearned), backbone=judge)]
