"""Unlearning with adversarial training, in the text encoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.negative_guidance import negatively_guided, partly_denoised
from unlearnbench.algos.training import Step, Training
from unlearnbench.config.ranges import at_least
from unlearnbench.models.base import TextToImage
from unlearnbench.models.frozen import Frozen
from unlearnbench.models.vocabulary import token_embedding


@dataclass
class AdvUnlearnState:
    """The number of steps done."""

    steps: int = 0


@dataclass
class AdvUnlearn(Unlearner):
    """ESD's objective on the text encoder, against the prefix that best brings the concept back.

    L = |eps(x_t, p + c_f) - (eps_0(x_t, "") - eta (eps_0(x_t, c_f) - eps_0(x_t, "")))|^2
    + keep |eps(x_t', c_r) - eps_0(x_t', c_r)|^2,
    where x_t and x_t' are samples of the original, stopped at a random step, and the prefix p, put before the prompt's
    first token as token embeddings, is empty for `warm_up` steps and then learned anew at each step: from the
    embeddings of random words, `attack_steps` steps of Adam on |eps(x_t, p + c_f) - eps_0(x_t, c_f)|^2. Zhang et al. 2024
    (arXiv 2405.15234); form and settings after the authors' code and its command for nudity. No image is needed.

    Ours: `batch` forget prompts a step, as many as retain prompts, each with a prefix of its own (theirs: one prompt,
    which is the concept's name, and five retain prompts).

    Attributes:
        eta: the strength of the negative guidance.
        keep: the weight of the retain term.
        warm_up: steps without a prefix.
        attack_steps: steps that learn the prefix.
        attack_lr: their learning rate.
        tokens: the length of the prefix.
        sample_steps: the steps of the whole sampling of which x_t is a part.
        sample_guidance: the guidance scale of that sampling.
    """

    train: str = r"^text_encoder\..*(encoder\.layers|final_layer_norm)\."
    eta: float = 1.0
    keep: float = 0.3
    warm_up: int = 200
    attack_steps: int = 30
    attack_lr: float = 1e-3
    tokens: int = 1
    sample_steps: int = 50
    sample_guidance: float = 3.0
    needs_images: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "warm_up", "attack_steps")
        at_least(self, 1, "tokens", "sample_steps")

    def requires(self) -> frozenset[str]:
        """See `Unlearner.requires`."""
        return frozenset({"cfg", "one_encoder"})

    def begin(self, training: Training) -> AdvUnlearnState:
        """Counts from the first step."""
        return AdvUnlearnState()

    def step_loss(self, training: Training, step: Step) -> Tensor:
        """Away from the concept behind the learned prefix, and retained prompts kept."""
        model, frozen, state, (forget, retain, generator) = training.model, training.original, training.state, step
        prefix = None
        if state.steps >= self.warm_up and self.attack_steps:
            prefix = self.attack(model, frozen, forget.prompts, generator)
        state.steps += 1
        x, times = self.sampled(frozen, forget.prompts, generator)
        target = negatively_guided(frozen, x, times, forget.prompts, self.eta, "empty")
        with prefixed(model, prefix):
            text = model.encode_prompts(forget.prompts)
        erased = F.mse_loss(model.predict(x, times, text), target)
        x, times = self.sampled(frozen, retain.prompts, generator)
        kept = frozen.predict(x, times, retain.prompts)
        return erased + self.keep * F.mse_loss(model.predict(x, times, model.encode_prompts(retain.prompts)), kept)

    def attack(self, model: TextToImage, frozen: Frozen, prompts: list[str], generator: torch.Generator) -> Tensor:
        """The prefix embeddings, (n, tokens, width), under which the model paints most nearly what the original does."""
        vocabulary = token_embedding(model).weight.detach()
        words = torch.randint(len(vocabulary), (len(prompts), self.tokens), generator=generator).to(model.device)
        prefix = vocabulary[words].float().requires_grad_()
        optimizer = torch.optim.Adam([prefix], self.attack_lr)
        for _ in range(self.attack_steps):
            x, times = self.sampled(frozen, prompts, generator)
            wanted = frozen.predict(x, times, prompts)
            with prefixed(model, prefix):
                text = model.encode_prompts(prompts)
            (prefix.grad,) = torch.autograd.grad(F.mse_loss(model.predict(x, times, text), wanted), [prefix])
            optimizer.step()
        return prefix.detach()

    def sampled(self, frozen: Frozen, prompts: list[str], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """x_t and t: samples of the original, stopped at a random step."""
        with frozen() as original:
            return partly_denoised(original, prompts, self.sample_steps, self.sample_guidance, generator)


@contextmanager
def prefixed(model: TextToImage, prefix: Tensor | None) -> Iterator[None]:
    """Within the block the text encoder reads these embeddings after the start token; the rest moves up, the last ones out."""
    if prefix is None:
        yield
        return

    def insert(layer: nn.Module, given: tuple[Tensor, ...], found: Tensor) -> Tensor:
        return torch.cat([found[:, :1], prefix.to(found), found[:, 1:]], dim=1)[:, : found.shape[1]]

    handle = token_embedding(model).register_forward_hook(insert)
    try:
        yield
    finally:
        handle.remove()
