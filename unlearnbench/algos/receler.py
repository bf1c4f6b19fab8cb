"""Receler: reliable concept erasing by lightweight erasers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.negative_guidance import partially_denoise
from unlearnbench.algos.state import NOT_SAVED
from unlearnbench.algos.training import Step, Training, Unlearned
from unlearnbench.config.ranges import above_zero, at_least
from unlearnbench.data.concept import Concept, mentions
from unlearnbench.models.adapters.bottleneck import BottleneckAdapter, bottleneck_adapters, install_bottlenecks
from unlearnbench.models.attention_maps import attention_maps
from unlearnbench.models.base import Conditioning, TextToImage
from unlearnbench.models.parameters import gradients
from unlearnbench.models.tokens import concept_masks, end_positions, token_ids

MAP_SIDE = 16


@dataclass
class RecelerState:
    """The adversarial embeddings and masks.

    Attributes:
        words: the learned embeddings of each concept, (concepts, n, width).
        attack: their Adam optimizer.
        masks: the concept's tokens in each forget prompt.
        concept_of: the index of each forget prompt's concept.
    """

    words: Tensor
    attack: torch.optim.Optimizer
    masks: dict[str, Tensor] = field(metadata=NOT_SAVED)
    concept_of: dict[str, int] = field(metadata=NOT_SAVED)


@dataclass
class Receler(Unlearner):
    """ESD's objective in bottleneck adapters after cross-attention, against adversarial embeddings, inside the concept's region.

    L = |eps(x_t, c_f + p) - (eps_0(x_t, "") - eta (eps_0(x_t, c_f) - eps_0(x_t, "")))|^2 + local R. An adapter (the paper's
    eraser) adds o = up(gelu(down(h))) to each cross-attention output h. R is the mean of o^2 outside the concept's region,
    mean over layers: outside, the original's attention to the concept's tokens (mean over heads and the maps of 16 by 16,
    scaled to 0..1) is below `threshold`. x_t is a sample of the model in training, stopped at a random step. p are `tokens`
    text embeddings after the prompt. They persist over steps, and before each step `attack_steps` steps of Adam on
    |eps(x_t, c_f + p) - eps_0(x_t, c_f)|^2 train them further. Huang et al. 2024 (arXiv 2311.17717); form and settings
    follow the authors' code. The method needs no images.

    Ours differs: all prompts of a concept share one p (theirs: one prompt, the concept's name), and one Adam trains the p of
    all concepts. The region is that of the concept's words in each prompt, from the maps closest to 16 by 16. The adapters
    are saved by name like other weights and load into the same model again. A plain diffusers pipeline cannot hold them, so
    `save_pipeline` is refused.

    Attributes:
        train: the adapters, or some of them.
        rank: inner width of the adapters.
        eta: strength of the negative guidance.
        local: weight of R.
        threshold: the attention at which a pixel belongs to the concept's region.
        tokens: length of p; each concept has its own.
        attack_steps: Adam steps that train p.
        attack_lr: learning rate of these steps.
        attack_decay: weight decay of these steps.
        sample_steps: steps of the complete sampling, of which x_t is an intermediate state.
        sample_guidance: guidance scale of that sampling.
    """

    train: str = r"attn2\.to_out\.1\."
    rank: int = 128
    eta: float = 1.0
    local: float = 0.1
    threshold: float = 0.1
    tokens: int = 16
    attack_steps: int = 50
    attack_lr: float = 0.1
    attack_decay: float = 0.1
    sample_steps: int = 50
    sample_guidance: float = 3.0
    needs_images: ClassVar[bool] = False
    adds_parameters: ClassVar[bool] = True
    saves_as_pipeline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "rank", "tokens", "sample_steps")
        at_least(self, 0, "attack_steps", "attack_decay")
        above_zero(self, "attack_lr")

    def requires(self) -> frozenset[str]:
        """See `Unlearner.requires`."""
        return frozenset({"cfg", "xattn"})

    def incompatible_reason(self, concept: Concept, prompts: Sequence[str]) -> str | None:
        """See `Unlearner.incompatible_reason`."""
        return concept.naming_problem(prompts)

    def update(self, training: Training) -> Unlearned:
        """Install the adapters, then train as in `Unlearner.update`."""
        generator = torch.Generator().manual_seed(training.generator.initial_seed())
        install_bottlenecks(training.model.modules(), self.rank, generator)
        return super().update(training)

    def begin(self, training: Training) -> RecelerState:
        """Locate the concept's tokens in every forget prompt, and draw the initial embeddings p of each concept."""
        model, prompts = training.model, training.forget.prompts
        masks = concept_masks(model, prompts, training.concept, with_ends=False)
        parts = list(training.concept.concepts_by_split("forget").values())
        concept_of = {p: next((i for i, part in enumerate(parts) if mentions(p, part.name_phrases())), 0) for p in prompts}
        width = model.encode_prompts([""])["prompt_embeds"].shape[-1]
        words = torch.rand(len(parts), self.tokens, width, generator=training.generator).to(model.device).requires_grad_()
        attack = torch.optim.Adam([words], self.attack_lr, weight_decay=self.attack_decay)
        return RecelerState(words, attack, masks, concept_of)

    def step_loss(self, training: Training, step: Step) -> Tensor:
        """Train p, then compute the ESD loss with p, plus the locality term R."""
        model, frozen, state, (forget, _, generator) = training.model, training.original, training.state, step
        noisy_latents, timesteps = partially_denoise(model, forget.prompts, self.sample_steps, self.sample_guidance, generator)
        with attention_maps(model) as maps:
            pred_cond = frozen.predict(noisy_latents, timesteps, forget.prompts)
        pred_uncond = frozen.predict(noisy_latents, timesteps, [""] * len(noisy_latents))
        region = concept_region(maps, torch.stack([state.masks[prompt] for prompt in forget.prompts]), self.threshold)
        attacked = AttackedPrompts(model, forget.prompts, [state.concept_of[prompt] for prompt in forget.prompts])
        for _ in range(self.attack_steps):
            loss = F.mse_loss(model.predict(noisy_latents, timesteps, attacked.conditioning(state.words)), pred_cond)
            (state.words.grad,) = gradients(loss, [state.words], model)
            state.attack.step()
        with record_outputs(bottleneck_adapters(model.modules())) as outputs:
            prediction = model.predict(noisy_latents, timesteps, attacked.conditioning(state.words.detach()))
        forget_loss = F.mse_loss(prediction, pred_uncond - self.eta * (pred_cond - pred_uncond))
        return forget_loss + self.local * torch.stack([mean_square_outside(output, region) for output in outputs]).mean()


class AttackedPrompts:
    """The conditioning of some prompts, with embeddings p after each prompt.

    Args:
        model: the model that encodes them.
        prompts: the prompts.
        concepts: the index of each prompt's concept.
    """

    def __init__(self, model: TextToImage, prompts: Sequence[str], concepts: list[int]) -> None:
        self._cond = model.encode_prompts(prompts)
        self._ends = end_positions(model, token_ids(model, prompts))
        self._concepts = concepts

    def conditioning(self, words: Tensor) -> Conditioning:
        """The conditioning with p of each prompt's concept; `words` holds p by concept, (concepts, n, width)."""
        return insert_embeddings(self._cond, words[self._concepts], self._ends)


def insert_embeddings(cond: Conditioning, embeddings: Tensor, ends: Sequence[int]) -> Conditioning:
    """The conditioning with embeddings (prompts, n, width) in place of those from each prompt's end token on."""
    prompt_embeds = cond["prompt_embeds"].clone()
    for row, end in enumerate(ends):
        prompt_embeds[row, end : end + embeddings.shape[1]] = embeddings[row, : prompt_embeds.shape[1] - end]
    return {**cond, "prompt_embeds": prompt_embeds}


def concept_region(maps: Sequence[Tensor], tokens: Tensor, threshold: float) -> Tensor:
    """The pixels that attend to the tokens: (n, 1, side, side), 1 inside and 0 outside.

    Args:
        maps: attention maps (n, heads, pixels, tokens), of square images.
        tokens: the mask of the tokens, (n, tokens).
        threshold: the least attention inside, on a scale from 0 (the least attentive pixel) to 1 (the most attentive one).
    """
    side = min({round(m.shape[2] ** 0.5) for m in maps}, key=lambda side: (abs(side - MAP_SIDE), side))
    same_size = [m.mean(1) for m in maps if m.shape[2] == side * side]
    heat = (torch.stack(same_size).mean(0) * tokens[:, None]).sum(-1)
    low, high = heat.amin(1, keepdim=True), heat.amax(1, keepdim=True)
    return ((heat - low) >= threshold * (high - low)).float().view(-1, 1, side, side)


def mean_square_outside(output: Tensor, region: Tensor) -> Tensor:
    """The mean square of an adapter's output (n, pixels, width) outside the region (n, 1, side, side)."""
    side = round(output.shape[1] ** 0.5)
    outside = 1 - F.interpolate(region, (side, side)).flatten(1)
    return (output.square().mean(2) * outside).sum() / (outside.sum() + 1e-9)


@contextmanager
def record_outputs(adapters: Sequence[BottleneckAdapter]) -> Iterator[list[Tensor]]:
    """Within the block every prediction appends the outputs of the adapters to the list."""
    outputs: list[Tensor] = []
    handles = [adapter.up.register_forward_hook(lambda _, inputs, output: outputs.append(output)) for adapter in adapters]
    try:
        with torch.compiler.set_stance("force_eager"):  # a compiled denoiser would skip the hooks
            yield outputs
    finally:
        for handle in handles:
            handle.remove()
