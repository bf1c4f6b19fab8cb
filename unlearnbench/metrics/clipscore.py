"""CLIPScore: does the image match its prompt?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from unlearnbench.metrics.backbones import CLIP, backbone, clip_problem
from unlearnbench.metrics.base import EvaluationSetting, Metric, MetricInputs
from unlearnbench.metrics.readers import Features, Question
from unlearnbench.results.intervals import prompt_interval
from unlearnbench.results.run import Value
from unlearnbench.storage.downloads import Download


@dataclass
class CLIPScore(Metric):
    """100 max(cos(image, prompt), 0), mean over images (Hessel et al. 2021, in torchmetrics' scale of 0 to 100).

    Attributes:
        backbone: auto-clip (embedded worlds: their own small CLIP; photographs: openai/clip-vit-large-patch14), or clip:<path>.
    """

    backbone: str = "auto-clip"
    table: ClassVar[str] = "CLIPScore"

    def unavailable_reason(self, setting: EvaluationSetting) -> str | None:
        """See `Metric.unavailable_reason`."""
        return clip_problem(self.backbone, setting.domain)

    def downloads(self, setting: EvaluationSetting) -> list[Download]:
        """See `Metric.downloads`."""
        return backbone(self.backbone, setting.domain).downloads()

    def questions(self, inputs: MetricInputs) -> Iterable[Question]:
        """See `Metric.questions`."""
        reader = Features(inputs.backbone(self.backbone))
        splits = [*inputs.splits()[0][1], "forget"]
        return [Question(reader, (images,)) for images in inputs.both(*splits)]

    def measure(self, inputs: MetricInputs) -> list[Value]:
        """clipscore on the retain prompts (higher is better) and on the forget prompts (lower is more forgotten)."""
        network = inputs.backbone(self.backbone)
        assert isinstance(network, CLIP)
        values = []
        for split, parts in [*inputs.splits()[:1], ("forget", ("forget",))]:
            original, unlearned = inputs.both(*parts)
            if not len(original):
                continue
            prompts = [record.prompt for record in original]
            image_features = [inputs.features(images, self.backbone) for images in (original, unlearned)]
            network.load(inputs.device)
            text_features = network.text(prompts)
            scores = [(100 * (features * text_features).sum(1)).clamp(min=0).numpy() for features in image_features]
            values.append(
                self.value(
                    "clipscore",
                    split,
                    float(scores[1].mean()),
                    n=len(prompts),
                    backbone=network.name,
                    original=float(scores[0].mean()),
                    interval=prompt_interval(prompts, scores[1]),
                    better="lower" if split == "forget" else "higher",
                )
            )
        return values
