"""ConceptPrune: prune the denoiser's feed-forward weights that the concept uses."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearnbench.algos.base import OPTIMIZER, Unlearner
from unlearnbench.algos.training import Training, Unlearned
from unlearnbench.config.ranges import at_least, share
from unlearnbench.models.base import TextToImage
from unlearnbench.models.parameters import make_trainable
from unlearnbench.storage.fitting_batches import FittingBatches

FEED_FORWARD = r"\.ff\.net\.2\.weight$"


@dataclass
class ConceptPrune(Unlearner):
    """Set to zero the second-layer weights of feed-forward layers that matter for the concept and less without it.

    At each sampling step a weight's score is |W_ij| times the norm of its input j, inputs of length 1 for each pixel, over the
    prompts. Pruned is what is among the `ratio` highest of its row for the forget prompts and has a lower score for their
    anchors, in any of the first `first` of `sample_steps` steps (Chavhan et al. 2025, "ConceptPrune", ICLR; by the code).
    Ours differs: the base prompts are the anchors of the forget prompts, there lists of their own.

    Attributes:
        ratio: the share of a row's weights that can be pruned at a step, at least one weight.
        first: the steps that count.
        sample_steps: the steps of the complete sampling.
        prompts: the largest number of forget prompts.
    """

    train: str = FEED_FORWARD
    steps: int = 0
    ratio: float = 0.01
    first: int = 10
    sample_steps: int = 50
    prompts: int = 32
    needs_images: ClassVar[bool] = False
    needs_anchors: ClassVar[bool] = True
    unread_settings: ClassVar[frozenset[str]] = OPTIMIZER

    def __post_init__(self) -> None:
        super().__post_init__()
        share(self, "ratio")
        at_least(self, 1, "first", "sample_steps", "prompts")

    def update(self, training: Training) -> Unlearned:
        """Prune once; the log receives the share of the weights that is left."""
        model = training.model
        weights = make_trainable(model, self.train)
        pairs = list(dict.fromkeys(zip(training.forget.prompts, training.forget.anchors, strict=True)))[: self.prompts]
        seeds = torch.randint(2**31, (len(pairs),), generator=training.generator).tolist()
        concept, base = (self.input_norms(model, list(weights), list(side), seeds) for side in zip(*pairs, strict=True))
        pruned = 0
        for name, weight in weights.items():
            masks = [self.mask(weight.data, a, b) for a, b in zip(concept[name], base[name], strict=True)]
            mask = torch.stack(masks).any(0)
            weight.data = weight.data.masked_fill(mask, 0.0)
            weight.requires_grad_(False)
            pruned += int(mask.sum())
        training.context.log(1, 1 - pruned / sum(weight.numel() for weight in weights.values()))
        return Unlearned(list(weights), training.guidance)

    def mask(self, weight: Tensor, concept: Tensor, base: Tensor) -> Tensor:
        """The weights (rows, columns) to prune by the input norms (columns,) at one step."""
        scores = weight.abs() * concept
        highest = torch.zeros_like(weight, dtype=torch.bool)
        highest.scatter_(1, scores.topk(max(1, int(self.ratio * weight.shape[1])), dim=1).indices, True)
        return highest & (scores > weight.abs() * base)

    @torch.no_grad()
    def input_norms(self, model: TextToImage, names: list[str], prompts: list[str], seeds: list[int]) -> dict[str, list[Tensor]]:
        """By weight, for each of the first steps, the norms (columns,) of its layer's inputs over all prompts and pixels."""

        def of_part(part: slice) -> dict[str, list[Tensor]]:
            return self.input_squares(model, names, prompts[part], seeds[part])

        sums, *others = FittingBatches("prompts").run(len(prompts), of_part)
        for squares in others:
            sums = {name: [a + b for a, b in zip(steps, squares[name], strict=True)] for name, steps in sums.items()}
        return {name: [square.sqrt() for square in steps] for name, steps in sums.items()}

    def input_squares(
        self, model: TextToImage, names: list[str], prompts: list[str], seeds: list[int]
    ) -> dict[str, list[Tensor]]:
        """By weight, for each of the first steps, the sums (columns,) of its layer's squared inputs over prompts and pixels."""
        squares: dict[str, list[Tensor]] = defaultdict(list)
        hooks = [layer_of(model, name).register_forward_pre_hook(partial(_add_squares, squares, name)) for name in names]
        try:
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            stop = min(self.first, self.sample_steps)
            with torch.compiler.set_stance("force_eager"):  # a compiled denoiser would skip the hooks
                model.sample_latents(prompts, generators, self.sample_steps, model.guidance, stop_after=stop)
        finally:
            for hook in hooks:
                hook.remove()
        return dict(squares)


def layer_of(model: TextToImage, name: str) -> nn.Module:
    """The layer of a named weight."""
    part, _, path = re.sub(r"\.weight$", "", name).partition(".")
    return model.modules()[part].get_submodule(path)


def _add_squares(squares: dict[str, list[Tensor]], name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    squares[name].append(F.normalize(inputs[0].flatten(0, -2).float(), dim=1).square().sum(0))
