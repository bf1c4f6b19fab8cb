"""A checkpoint that others published: its weights in place of a training."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from unlearnbench.algos.none import NoTraining
from unlearnbench.algos.training import Training, Unlearned
from unlearnbench.models.adapters.gated_lora import FacilitatedTransport
from unlearnbench.models.base import TextToImage
from unlearnbench.models.foreign_weights import ForeignWeights
from unlearnbench.models.weights_source import WeightsSource
from unlearnbench.storage.downloads import Download


@dataclass
class Checkpoint(NoTraining):
    """Load the weights that others unlearned, as they published them, and change nothing else.

    The kind is recognised from the names of the tensors: the whole UNet or text encoder or some of their parameters, in
    diffusers' or CompVis' names (ESD, UCE, SalUn, AdvUnlearn, Concept Ablation); a pipeline (MACE); a LoRA of diffusers, peft
    or kohya, merged; SPM's adapters with their transport; Receler's erasers; weights that a run saved. See docs/weights.md.

    Attributes:
        weights: a .safetensors file, a folder or a hub id. A pickle is converted once by `unlearnbench convert`.
        revision: the hub's branch, tag or commit.
        subfolder: a folder or a file in the folder or repository.
        scale: the strength of a LoRA; 1 is as it was trained.
        also: further files of SPM's adapters, each gated by its own prompts: several concepts at once.
    """

    weights: str | None = None
    revision: str | None = None
    subfolder: str | None = None
    scale: float = 1.0
    also: list[str] = field(default_factory=list)
    cost_note: ClassVar[str] = "not trained here"
    supports_sequential: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.scale):
            raise ValueError(f"scale: {self.scale} is not finite")

    @property
    def saves_as_pipeline(self) -> bool:
        """See `Unlearner.saves_as_pipeline`: adapters that stay beside the weights do not."""
        return self.weights is None or self._foreign(self.weights).kind not in ("spm", "receler")

    def unavailable_reason(self, model: TextToImage) -> str | None:
        """See `Unlearner.unavailable_reason`."""
        if self.weights is None:
            return "algo.weights: names nothing yet; set it to a .safetensors file, a folder or a hub id (docs/weights.md)"
        parts = self._parts(self.weights)
        if self.also and (others := [part for part in parts if part.kind not in ("spm", "")]):
            reason = f"are {others[0].kind}, and only SPM's adapters combine"
            return f"algo.also: the weights {others[0].source.weights} {reason}; name one source in algo.weights alone"
        return next((problem for part in parts if (problem := part.problem(model))), None)

    def downloads(self) -> list[Download]:
        """See `Unlearner.downloads`."""
        parts = [] if self.weights is None else self._parts(self.weights)
        return [download for part in parts if (download := part.source.download()) is not None]

    def update(self, training: Training) -> Unlearned:
        """Load the weights; what differs from the original counts as changed."""
        assert self.weights is not None
        loaded = [part.load(training.model) for part in self._parts(self.weights)]
        names = [name for part in loaded for name in part.names]
        gates = [part.guidance for part in loaded if isinstance(part.guidance, FacilitatedTransport)]
        if len(gates) > 1:
            joined = FacilitatedTransport([phrases for part in gates for phrases in part.concepts], gates[0].exponent)
            return Unlearned(names, joined)
        return Unlearned(names, loaded[0].guidance or training.guidance)

    def _parts(self, weights: str) -> list[ForeignWeights]:
        further = [ForeignWeights(WeightsSource(path, None, None), self.scale, i) for i, path in enumerate(self.also, 1)]
        return [self._foreign(weights), *further]

    def _foreign(self, weights: str) -> ForeignWeights:
        return ForeignWeights(WeightsSource(weights, self.revision, self.subfolder), self.scale)
