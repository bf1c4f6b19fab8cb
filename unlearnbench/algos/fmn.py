"""Forget-Me-Not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearnbench.algos.base import Batch, Examples, Unlearner, noised
from unlearnbench.data import Concept
from unlearnbench.models.attention import attention_maps, spoken_of
from unlearnbench.models.base import Frozen, TextToImage


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

    def needs(self) -> frozenset[str]:
        """See `Unlearner.needs`."""
        return frozenset({"xattn"})

    def unfit(self, concept: Concept, prompts: Sequence[str]) -> str | None:
        """See `Unlearner.unfit`."""
        return None if self.with_ends else concept.unspoken(prompts)

    def begin(
        self, model: TextToImage, frozen: Frozen, forget: Examples, retain: Examples, concept: Concept, generator: torch.Generator
    ) -> None:
        """Find the concept's tokens in every forget prompt."""
        self._spoken = spoken_of(model, forget.prompts, concept, self.with_ends)

    def state(self) -> dict[str, Tensor]:
        """The tokens stay as they are."""
        return {}

    def loss(self, model: TextToImage, frozen: Frozen, forget: Batch, retain: Batch, generator: torch.Generator) -> Tensor:
        """The norm of the concept's attention maps, mean over the batch."""
        x = noised(model, forget.latents, generator)
        with attention_maps(model) as maps:
            model.predict(x.noisy, x.times, model.encode(forget.prompts))
        tokens = torch.stack([self._spoken[prompt] for prompt in forget.prompts])[:, None, None]
        return torch.cat([(kept * tokens).flatten(1) for kept in maps], 1).norm(dim=1).mean()
