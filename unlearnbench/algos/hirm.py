"""HiRM: misdirect what the text encoder's last block says of the concept, by training its first block alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.training import Step, Training
from unlearnbench.config.ranges import above_zero, one_of
from unlearnbench.models.adapters.layers import named_layers
from unlearnbench.models.base import TextToImage


@dataclass
class HiRMState:
    """The random direction, a unit vector (width,)."""

    direction: Tensor


@dataclass
class HiRM(Unlearner):
    """Train the text encoder's first block so that attention in its last block gives a far vector for the concept's prompts.

    L = |h(c_f) - a u|^2, the mean over tokens and features, with h the output of the last block's self-attention (out_proj) and
    u a random unit vector (HiRM-R); with toward=anchor the target is h_0(c_a), the original's for the anchor (HiRM-S). Nothing
    is retained, and the denoiser computes nothing (Lee, Kim, Hwang 2026, arXiv 2602.19631, "Localized Concept Erasure in
    Text-to-Image Diffusion Models via High-Level Representation Misdirection").

    The method as its paper is summarized: which block trains, where the loss is taken, both targets. The numbers (a = 500, 50
    steps of one prompt at 5e-5) are second-hand, and nothing was verified against the authors' code. Ours differs: c_f are the
    forget prompts, there the bare concept; Adam has no weight decay.

    Attributes:
        toward: random or anchor.
        strength: the length a of the target.
    """

    train: str = r"^text_encoder\..*layers\.0\."
    toward: str = "random"
    strength: float = 500.0
    needs_images: ClassVar[bool] = False
    passes_with_gradient: ClassVar[int] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "toward", "random", "anchor")
        above_zero(self, "strength")

    @property
    def needs_anchors(self) -> bool:
        """See `Unlearner.needs_anchors`."""
        return self.toward == "anchor"

    def requires(self) -> frozenset[str]:
        """See `Unlearner.requires`."""
        return frozenset({"one_encoder"})

    def begin(self, training: Training) -> HiRMState:
        """Draw the direction."""
        width = last_attention(training.model).out_features
        return HiRMState(F.normalize(torch.randn(width, generator=training.generator), dim=0).to(training.model.device))

    def step_loss(self, training: Training, step: Step) -> Tensor:
        """The mean squared distance of the last attention's output to its target."""
        if self.toward == "anchor":
            with training.original() as original:
                target = attention_output(original, step.forget.anchors)
        else:
            target = self.strength * training.state.direction
        output = attention_output(training.model, step.forget.prompts)
        return F.mse_loss(output, target.to(output).expand_as(output))


def last_attention(model: TextToImage) -> nn.Linear:
    """The last linear layer of the last self-attention in the text encoder."""
    layers = [layer for name, layer in named_layers(model) if re.match(r"text_encoder\..*self_attn\.out_proj$", name)]
    assert isinstance(layers[-1], nn.Linear)
    return layers[-1]


def attention_output(model: TextToImage, prompts: Sequence[str]) -> Tensor:
    """The output of `last_attention` for prompts, (n, tokens, width)."""
    outputs: list[Tensor] = []
    handle = last_attention(model).register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        model.encode_prompts(list(prompts))
    finally:
        handle.remove()
    return torch.cat(outputs).float()
