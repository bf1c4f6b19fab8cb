"""CLIPScore: does the picture fit its prompt?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from unlearnbench.metrics.backbones import CLIP, clip_problem
from unlearnbench.metrics.base import Metric, MetricInputs
from unlearnbench.results.intervals import bootstrap_interval
from unlearnbench.results.run import Value

if TYPE_CHECKING:
    from unlearnbench.experiment.run_spec import RunSpec


@dataclass
class CLIPScore(Metric):
    """100 max(cos(image, prompt), 0), mean over images (Hessel et al. 2021, in torchmetrics' scale of 0 to 100).

    Attributes:
        backbone: auto-clip (Pictoworld: its own small CLIP; photographs: openai/clip-vit-large-patch14), or clip:<path>.
    """

    backbone: str = "auto-clip"

    def unavailable_reason(self, spec: RunSpec) -> str | None:
        """See `Metric.unavailable_reason`."""
        return clip_problem(self.backbone, spec.model.domain)

    def measure(self, evidence: MetricInputs) -> list[Value]:
        """clipscore on the retain prompts (higher is better) and on the forget prompts (lower is more forgotten)."""
        network = evidence.backbone(self.backbone)
        assert isinstance(network, CLIP)
        values = []
        for split, parts in [*evidence.splits()[:1], ("forget", ("forget",))]:
            before, after = evidence.before.where(*parts), evidence.after.where(*parts)
            if not len(before):
                continue
            prompts = [shot.prompt for shot in before]
            pictures = [evidence.features(images, self.backbone) for images in (before, after)]
            network.load(evidence.device)
            text = network.text(prompts)
            scores = [(100 * (picture * text).sum(1)).clamp(min=0).numpy() for picture in pictures]
            original, unlearned = (float(s.mean()) for s in scores)
            better = "lower" if split == "forget" else "higher"
            low, high = bootstrap_interval(prompts, scores[1])
            values.append(
                Value("CLIPScore", "clipscore", split, original, unlearned, better, len(prompts), low, high, network.name)
            )
        return values
