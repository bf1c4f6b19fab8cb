"""Reliable concept erasing by lightweight erasers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.negative_guidance import partly_denoised
from unlearnbench.algos.state import NOT_SAVED
from unlearnbench.algos.training import Step, Training, Unlearned
from unlearnbench.config.ranges import at_least
from unlearnbench.data.concept import Concept, mentions
from unlearnbench.models.adapters.bottleneck import BottleneckAdapter, bottleneck_adapters, install_bottlenecks
from unlearnbench.models.attention_maps import attention_maps
from unlearnbench.models.base import Conditioning
from unlearnbench.models.tokens import concept_masks, end_positions, token_ids

SIDE = 16


@dataclass
class RecelerState:
    """The learned words of each concept and their Adam; of each forget prompt, the concept's tokens and which concept it is."""

    words: Tensor
    attack: torch.optim.Optimizer
    masks: dict[str, Tensor] = field(metadata=NOT_SAVED)
    concept_of: dict[str, int] = field(metadata=NOT_SAVED)


@dataclass
class Receler(Unlearner):
    """ESD's objective in small modules after cross-attention, against learned words, and only where the concept is seen.

    L = |eps(x_t, c_f + p) - (eps_0(x_t, "") - eta (eps_0(x_t, c_f) - eps_0(x_t, "")))|^2 + local R, where an eraser adds
    o = up(gelu(down(h))) to each cross-attention output h, and R is the mean of o^2 outside the concept's place, mean
    over layers: there the original's attention to the concept's tokens (mean over heads and the maps of 16 by 16, scaled
    to 0..1) is below `threshold`. x_t is a sample of the model in training, stopped at a random step; p are `tokens`
    text states put after the prompt, kept from step to step, and before each step led on by `attack_steps` steps of
    Adam on |eps(x_t, c_f + p) - eps_0(x_t, c_f)|^2. Huang et al. 2024 (arXiv 2311.17717); form and settings after the
    authors' code. No image is needed.

    Ours: one p for all prompts of a concept (theirs: one prompt, the concept's name), all led by one Adam; the place is
    that of the concept's words in each prompt, from the maps nearest to 16 by 16. Erasers are saved by name like other
    weights and load into the same model again; a plain diffusers pipeline has no place for them, so `save_pipeline`
    refuses.

    Attributes:
        train: the erasers (or some of them).
        rank: their inner width.
        eta: the strength of the negative guidance.
        local: the weight of R.
        threshold: how much attention makes a place the concept's.
        tokens: the length of p, of which each concept has its own.
        attack_steps: steps that learn p.
        attack_lr: their learning rate.
        attack_decay: their weight decay.
        sample_steps: the steps of the whole sampling of which x_t is a part.
        sample_guidance: the guidance scale of that sampling.
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
    trains_own: ClassVar[bool] = True
    plain: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "rank", "tokens", "sample_steps")
        at_least(self, 0, "attack_steps")

    def requires(self) -> frozenset[str]:
        """See `Unlearner.requires`."""
        return frozenset({"cfg", "xattn"})

    def incompatible_reason(self, concept: Concept, prompts: Sequence[str]) -> str | None:
        """See `Unlearner.incompatible_reason`."""
        return concept.naming_problem(prompts)

    def update(self, training: Training) -> Unlearned:
        """Puts the erasers in place; the rest as in `Unlearner.update`."""
        generator = torch.Generator().manual_seed(training.generator.initial_seed())
        install_bottlenecks(training.model.modules(), self.rank, generator)
        return super().update(training)

    def begin(self, training: Training) -> RecelerState:
        """Finds the concept's tokens in every forget prompt, and draws the words to learn of each concept."""
        model, prompts = training.model, training.forget.prompts
        masks = concept_masks(model, prompts, training.concept, with_ends=False)
        parts = list(training.concept.concepts_by_split("forget").values())
        concept_of = {p: next((i for i, part in enumerate(parts) if mentions(p, part.name_phrases())), 0) for p in prompts}
        width = model.encode_prompts([""])["prompt_embeds"].shape[-1]
        words = torch.rand(len(parts), self.tokens, width, generator=training.generator).to(model.device).requires_grad_()
        attack = torch.optim.Adam([words], self.attack_lr, weight_decay=self.attack_decay)
        return RecelerState(words, attack, masks, concept_of)

    def step_loss(self, training: Training, step: Step) -> Tensor:
        """The words' steps, then away from the concept, and nothing elsewhere."""
        model, frozen, state, (forget, _, generator) = training.model, training.original, training.state, step
        x, times = partly_denoised(model, forget.prompts, self.sample_steps, self.sample_guidance, generator)
        with attention_maps(model) as maps:
            told = frozen.predict(x, times, forget.prompts)
        empty = frozen.predict(x, times, [""] * len(x))
        place = located(maps, torch.stack([state.masks[prompt] for prompt in forget.prompts]), self.threshold)
        text, after = model.encode_prompts(forget.prompts), end_positions(model, token_ids(model, forget.prompts))
        of = [state.concept_of[prompt] for prompt in forget.prompts]
        for _ in range(self.attack_steps):
            brought = F.mse_loss(model.predict(x, times, continued(text, state.words[of], after)), told)
            (state.words.grad,) = torch.autograd.grad(brought, [state.words])
            state.attack.step()
        with added(bottleneck_adapters(model.modules())) as outputs:
            predicted = model.predict(x, times, continued(text, state.words.detach()[of], after))
        erased = F.mse_loss(predicted, empty - self.eta * (told - empty))
        return erased + self.local * torch.stack([outside(output, place) for output in outputs]).mean()


def continued(text: Conditioning, words: Tensor, after: Sequence[int]) -> Conditioning:
    """The text with these states (prompts, n, width) in place of those from each prompt's end on."""
    states = text["prompt_embeds"].clone()
    for row, end in enumerate(after):
        states[row, end : end + words.shape[1]] = words[row, : states.shape[1] - end]
    return {**text, "prompt_embeds": states}


def located(maps: Sequence[Tensor], tokens: Tensor, threshold: float) -> Tensor:
    """Where the tokens (n, tokens) are attended to: (n, 1, side, side), 1 there and 0 elsewhere.

    Args:
        maps: attention maps (n, heads, pixels, tokens), of square pictures.
        tokens: which tokens count.
        threshold: on the scale on which the least attended pixel has 0 and the most attended 1.
    """
    side = min({round(m.shape[2] ** 0.5) for m in maps}, key=lambda found: (abs(found - SIDE), found))
    chosen = [m.mean(1) for m in maps if m.shape[2] == side * side]
    heat = (torch.stack(chosen).mean(0) * tokens[:, None]).sum(-1)
    low, high = heat.amin(1, keepdim=True), heat.amax(1, keepdim=True)
    return ((heat - low) >= threshold * (high - low)).float().view(-1, 1, side, side)


def outside(output: Tensor, place: Tensor) -> Tensor:
    """The mean square of an eraser's output (n, pixels, width) where `place` is 0."""
    side = round(output.shape[1] ** 0.5)
    elsewhere = 1 - F.interpolate(place, (side, side)).flatten(1)
    return (output.square().mean(2) * elsewhere).sum() / (elsewhere.sum() + 1e-9)


@contextmanager
def added(layers: Sequence[BottleneckAdapter]) -> Iterator[list[Tensor]]:
    """Within the block every prediction adds to the list what each eraser adds."""
    outputs: list[Tensor] = []
    handles = [layer.up.register_forward_hook(lambda _, given, found: outputs.append(found)) for layer in layers]
    try:
        with torch.compiler.set_stance("force_eager"):  # a compiled denoiser would not see the hooks
            yield outputs
    finally:
        for handle in handles:
            handle.remove()
