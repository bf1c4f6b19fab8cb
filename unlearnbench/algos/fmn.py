"""Forget-Me-Not: attention resteering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.state import NOT_SAVED
from unlearnbench.algos.training import Step, Training
from unlearnbench.data.concept import Concept
from unlearnbench.models.attention_maps import attention_maps
from unlearnbench.models.noising import add_random_noise
from unlearnbench.models.tokens import concept_masks


@dataclass
class ForgetMeNotState:
    """The concept's tokens in each forget prompt, as masks (tokens,)."""

    masks: dict[str, Tensor] = field(metadata=NOT_SAVED)


@dataclass
class ForgetMeNot(Unlearner):
    """Minimise the cross-attention to the concept's tokens.

    L = |A|, the norm over all cross-attention layers, heads and pixels of the maps A of the concept's tokens, on noised
    images of the concept under their own prompts (Zhang et al. 2023, arXiv 2303.17591, attention resteering). The
    defaults are those of the authors' configs/attn.yaml, for Stable Diffusion 2.1 base. There `with_ends` adds one token;
    on 1.4 it adds all the padding.

    Ours differs: the tokens are those of the concept's words, where theirs first learns tokens by 500 steps of textual
    inversion; Adam, where theirs is AdamW with weight decay .01; in a batch, the mean of the examples' norms, where theirs
    has batches of 1.

    Attributes:
        with_ends: count the end token among the concept's, and the padding where the tokenizer pads with it.
    """

    train: str = "full"
    steps: int = 35
    lr: float = 2e-6
    batch: int = 1
    with_ends: bool = True

    def requires(self) -> frozenset[str]:
        """See `Unlearner.requires`."""
        return frozenset({"xattn"})

    def incompatible_reason(self, concept: Concept, prompts: Sequence[str]) -> str | None:
        """See `Unlearner.incompatible_reason`."""
        return None if self.with_ends else concept.naming_problem(prompts)

    def begin(self, training: Training) -> ForgetMeNotState:
        """Locate the concept's tokens in every forget prompt."""
        return ForgetMeNotState(concept_masks(training.model, training.forget.prompts, training.concept, self.with_ends))

    def step_loss(self, training: Training, step: Step) -> Tensor:
        """The norm of the concept's attention maps, mean over the batch."""
        model, (forget, _, generator) = training.model, step
        noised = add_random_noise(model, forget.latents, generator)
        with attention_maps(model) as maps:
            model.predict(noised.noisy_latents, noised.timesteps, model.encode_prompts(forget.prompts))
        masks = torch.stack([training.state.masks[prompt] for prompt in forget.prompts])[:, None, None]
        return torch.cat([(attention * masks).flatten(1) for attention in maps], 1).norm(dim=1).mean()
