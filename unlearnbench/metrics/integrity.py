"""Integrity: does the unlearned model still paint the same picture for the same prompt and seed?"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from unlearnbench.config.errors import UserError
from unlearnbench.data.images import Images
from unlearnbench.metrics.base import Metric, MetricInputs
from unlearnbench.metrics.image_distances import pair_distances, unavailable_distance
from unlearnbench.results.intervals import bootstrap_interval
from unlearnbench.results.run import Value

if TYPE_CHECKING:
    from unlearnbench.experiment.run_spec import RunSpec


@dataclass
class Integrity(Metric):
    """integrity = 1 - D, with D the mean of d(original's image, unlearned model's image), same prompt and seed.

    The idea is that of Schioppa, Hoogeboom, Heek (arXiv 2411.02068); the formula is ours, and with d = LPIPS it is the
    prior preservation of DUO (arXiv 2407.21035). Ours too: integrity_norm = 1 - D / D_reseed, where D_reseed compares
    the original with itself at another seed of the same prompt: 1 is an untouched model, 0 one whose pictures are as
    different as another seed's. Intervals: bootstrap over prompts.

    Attributes:
        distances: names of distances; the first is the one that counts, the others stand beside it.
    """

    distances: list[str] = field(default_factory=lambda: ["lpips-alex"])
    each_stage: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.distances:
            raise ValueError("distances: name at least one")

    def unavailable_reason(self, spec: RunSpec) -> str | None:
        """See `Metric.unavailable_reason`."""
        return next((lack for name in self.distances if (lack := unavailable_distance(name))), None)

    def measure(self, evidence: MetricInputs) -> list[Value]:
        """integrity and integrity_norm on all retain prompts and each split, and D_reseed."""
        return [value for name in self.distances for value in self._by(name, evidence)]

    def _by(self, name: str, evidence: MetricInputs) -> list[Value]:
        values = []
        for split, parts in evidence.splits():
            before, after = evidence.before.where(*parts), evidence.after.where(*parts)
            if [(s.prompt, s.seed) for s in before] != [(s.prompt, s.seed) for s in after]:
                raise UserError(f"{before.folder} and {after.folder} do not hold the same prompts and seeds")
            apart = _apart(name, before, after, evidence)
            if split == "retain":
                evidence.per_image[name] = {s.file: float(d) for s, d in zip(after, apart, strict=True)}
            prompts = [shot.prompt for shot in before]
            low, high = bootstrap_interval(prompts, apart)
            values.append(
                Value("Retention", "integrity", split, None, 1 - apart.mean(), "higher", len(apart), 1 - high, 1 - low, name)
            )
            reseeded = _reseed(name, before, evidence)
            if reseeded is None:
                continue
            scale = np.array([reseeded[p] for p in prompts])
            if scale.mean() > 0:
                low, high = bootstrap_interval(prompts, apart, scale, of=lambda d, r: 1 - d / r)
                norm = 1 - apart.mean() / scale.mean()
                note = f"D_reseed: {scale.mean():.3f}"
                values.append(
                    Value("Retention", "integrity_norm", split, None, norm, "higher", len(apart), low, high, name, note)
                )
        return values


def _apart(name: str, left: Images, right: Images, evidence: MetricInputs) -> np.ndarray:
    pairs = zip(left.batches(), right.batches(), strict=True)
    return np.concatenate([pair_distances(name, a, b, evidence.device).numpy() for a, b in pairs])


def _reseed(name: str, before: Images, evidence: MetricInputs) -> dict[str, float] | None:
    """Per prompt, the mean distance between the original's pictures of different seeds; None where there is one seed only."""
    shots: dict[str, list[int]] = defaultdict(list)
    for index, shot in enumerate(before):
        shots[shot.prompt].append(index)
    pairs = [(p, i, j) for p, indices in shots.items() for i, j in combinations(indices, 2)]
    if len({p for p, _, _ in pairs}) < len(shots):
        return None
    left, right = (Images(before.folder, [before[pair[side]] for pair in pairs]) for side in (1, 2))
    apart = _apart(name, left, right, evidence).tolist()
    grouped: dict[str, list[float]] = defaultdict(list)
    for (prompt, _, _), d in zip(pairs, apart, strict=True):
        grouped[prompt].append(d)
    return {prompt: float(np.mean(values)) for prompt, values in grouped.items()}
