"""SDEdit: the model denoises noised images of the concept without a prompt that says what they show."""

from __future__ import annotations

from dataclasses import dataclass, field

from unlearnbench.attacks.probe import ProbedBatch, SourceProbe, switch
from unlearnbench.models.base import Predictor


@dataclass
class SDEdit(SourceProbe):
    """Noise the original's image of the concept to a strength, and denoise it by the model with the empty prompt.

    Meng et al. 2022 (arXiv 2108.01073). A strength of 0 leaves the autoencoder alone: what the detector finds after encoding
    and decoding. The noise is that of the image's seed.

    Attributes:
        strengths: the shares of the sampling steps that the model takes; each is a row of the table.
    """

    strengths: list[float] = field(default_factory=lambda: [0.0, 0.7, 0.9])

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.strengths or any(not 0 <= strength <= 1 for strength in self.strengths):
            raise ValueError(f"strengths: {list(self.strengths)}; give numbers from 0 to 1")

    def kinds(self) -> list[str]:
        """See `Probe.kinds`."""
        return [f"{strength:g}" for strength in self.strengths]

    def leaves_sources(self, kind: str) -> bool:
        """See `Probe.leaves_sources`: at a strength of 0."""
        return float(kind) == 0

    def predictor(self, batch: ProbedBatch, steps: int, scale: float) -> Predictor:
        """See `Probe.predictor`."""
        begin = steps - round(float(batch.kind) * steps)
        return switch(batch.source_predictor(), batch.empty_predictor(steps, scale), begin)
