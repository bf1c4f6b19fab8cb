"""AdvUnlearn: adversarial training of the text encoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.negative_guidance import negative_guidance_target, partially_denoise
from unlearnbench.algos.training import Step, Training
from unlearnbench.config.ranges import above_zero, at_least
from unlearnbench.models.base import TextToImage
from unlearnbench.models.frozen import Frozen
from unlearnbench.models.parameters import gradients
from unlearnbench.models.vocabulary import token_embedding


@dataclass
class AdvUnlearnState:
    """The number of finished steps."""

    steps: int = 0


@dataclass
class AdvUnlearn(Unlearner):
    """ESD's objective on the text encoder, against the adversarial prefix that best restores the concept.

    L = |eps(x_t, p + c_f) - (eps_0(x_t, "") - eta (eps_0(x_t, c_f) - eps_0(x_t, "")))|^2
    + keep |eps(x_t', c_r) - eps_0(x_t', c_r)|^2.
    x_t and x_t' are samples of the original, stopped at a random step. The prefix p consists of token embeddings before the
    prompt's first token. It is empty for `warm_up` steps. After them each step learns a new one: from the embeddings of
    random words, `attack_steps` Adam steps on |eps(x_t, p + c_f) - eps_0(x_t, c_f)|^2. Zhang et al. 2024
    (arXiv 2405.15234); form and settings follow the authors' code and its command for nudity. The method needs no images.

    Ours differs: a step has `batch` forget prompts, each with its own prefix, and `batch` retain prompts. Theirs has one
    forget prompt (the concept's name) and five retain prompts. An attack step takes its own gradient; their code never clears
    it, so that Adam sees the sum of all so far. They predict at a random t between two sampling steps, ours at the step's own.

    Attributes:
        eta: strength of the negative guidance.
        keep: weight of the retain term.
        warm_up: steps without a prefix.
        attack_steps: Adam steps that learn a prefix.
        attack_lr: learning rate of these steps.
        tokens: length of the prefix.
        sample_steps: steps of the complete sampling, of which x_t is an intermediate state.
        sample_guidance: guidance scale of that sampling.
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
    passes_with_gradient: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "warm_up", "attack_steps")
        at_least(self, 1, "tokens", "sample_steps")
        above_zero(self, "attack_lr")

    def requires(self) -> frozenset[str]:
        """See `Unlearner.requires`."""
        return frozenset({"cfg", "one_encoder"})

    def begin(self, training: Training) -> AdvUnlearnState:
        """Start counting steps at 0."""
        return AdvUnlearnState()

    def step_loss(self, training: Training, step: Step) -> Tensor:
        """The ESD loss of the forget prompts behind the learned prefix, plus the retain loss."""
        model, frozen, state, (forget, retain, generator) = training.model, training.original, training.state, step
        prefix = None
        if state.steps >= self.warm_up and self.attack_steps:
            prefix = self.learn_prefix(model, frozen, forget.prompts, generator)
        state.steps += 1
        noisy_latents, timesteps = self.sample_original(frozen, forget.prompts, generator)
        target = negative_guidance_target(frozen, noisy_latents, timesteps, forget.prompts, self.eta, "empty")
        with insert_prefix(model, prefix):
            cond = model.encode_prompts(forget.prompts)
        forget_loss = F.mse_loss(model.predict(noisy_latents, timesteps, cond), target)
        noisy_latents, timesteps = self.sample_original(frozen, retain.prompts, generator)
        target = frozen.predict(noisy_latents, timesteps, retain.prompts)
        prediction = model.predict(noisy_latents, timesteps, model.encode_prompts(retain.prompts))
        return forget_loss + self.keep * F.mse_loss(prediction, target)

    def learn_prefix(self, model: TextToImage, frozen: Frozen, prompts: list[str], generator: torch.Generator) -> Tensor:
        """The prefix embeddings (n, tokens, width) that bring the model's predictions closest to the original's."""
        vocabulary = token_embedding(model).weight.detach()
        words = torch.randint(len(vocabulary), (len(prompts), self.tokens), generator=generator).to(model.device)
        prefix = vocabulary[words].float().requires_grad_()
        optimizer = torch.optim.Adam([prefix], self.attack_lr)
        for _ in range(self.attack_steps):
            noisy_latents, timesteps = self.sample_original(frozen, prompts, generator)
            target = frozen.predict(noisy_latents, timesteps, prompts)
            with insert_prefix(model, prefix):
                cond = model.encode_prompts(prompts)
            loss = F.mse_loss(model.predict(noisy_latents, timesteps, cond), target)
            (prefix.grad,) = gradients(loss, [prefix], model)
            optimizer.step()
        return prefix.detach()

    def sample_original(self, frozen: Frozen, prompts: list[str], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """x_t and t: samples of the original, stopped at a random step."""
        with frozen() as original:
            return partially_denoise(original, prompts, self.sample_steps, self.sample_guidance, generator)


@contextmanager
def insert_prefix(model: TextToImage, prefix: Tensor | None) -> Iterator[None]:
    """Within the block the text encoder reads the prefix (n, tokens, width) after the start token.

    The prompt's tokens move back by the length of the prefix, and the last ones are cut off.
    """
    if prefix is None:
        yield
        return

    def insert(layer: nn.Module, inputs: tuple[Tensor, ...], embeddings: Tensor) -> Tensor:
        return torch.cat([embeddings[:, :1], prefix.to(embeddings), embeddings[:, 1:]], dim=1)[:, : embeddings.shape[1]]

    handle = token_embedding(model).register_forward_hook(insert)
    try:
        yield
    finally:
        handle.remove()
