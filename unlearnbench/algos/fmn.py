"""Forget-Me-Not."""

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
    """Which tokens of each forget prompt are the concept's."""

    masks: dict[str, Tensor] = field(metadata=NOT_SAVED)


@dataclass
class ForgetMeNot(Unlearner):
    """Turn the picture's attention away from the concept's tokens.

    L = |A|, the norm over all cross-attention layers, heads and pixels of the maps A of the concept's tokens, on noised
    images of the concept under their own prompts (Zhang et al. 2023, arXiv 2303.17591, attention resteering; the
    defaults are those of the authors' configs/attn.yaml, for Stable Diffusion 2.1 base, where `with_ends` is one token; on 1.4 it
    is all the padding). Theirs first learns tokens for the concept by 500 steps of textual inversion, which is left out
    here: the tokens are those of the concept's words. They weigh parameters down
    by .01 in AdamW; ours is Adam. In a batch, ours takes the mean of the examples' norms; theirs is 1.

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
        """Find the concept's tokens in every forget prompt."""
        return ForgetMeNotState(concept_masks(training.model, training.forget.prompts, training.concept, self.with_ends))

    def step_loss(self, training: Training, step: Step) -> Tensor:
        """The norm of the concept's attention maps, mean over the batch."""
        model, (forget, _, generator) = training.model, step
        x = add_random_noise(model, forget.latents, generator)
        with attention_maps(model) as maps:
            model.predict(x.noisy_latents, x.timesteps, model.encode_prompts(forget.prompts))
        tokens = torch.stack([training.state.masks[prompt] for prompt in forget.prompts])[:, None, None]
        return torch.cat([(kept * tokens).flatten(1) for kept in maps], 1).norm(dim=1).mean()
