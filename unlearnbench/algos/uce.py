"""UCE: Unified Concept Editing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from unlearnbench.algos.base import OPTIMIZER, Unlearner
from unlearnbench.algos.closed_form import apply_map, linear_map, paired_token_ids, text_hidden_states
from unlearnbench.algos.training import Training, Unlearned
from unlearnbench.config.errors import UserError
from unlearnbench.config.ranges import above_zero, one_of
from unlearnbench.data.concept import Concept
from unlearnbench.models.attention_maps import key_value_weights
from unlearnbench.models.base import TextToImage
from unlearnbench.models.tokens import align_tokens, end_positions, token_ids


class Edit(NamedTuple):
    """Token embeddings (n, width) in double precision: the concept's, their targets, and the preserved ones."""

    old: Tensor
    new: Tensor
    preserved: Tensor


@dataclass
class UCE(Unlearner):
    """Solve for the key and value weights that map the concept's tokens to the anchor's keys and values.

    W* = (ridge W + erase sum_E W c* c^T + preserve sum_P W c_p c_p^T) (ridge I + erase sum_E c c^T + preserve sum_P c_p c_p^T)^-1
    for each weight W of the cross-attention's keys and values, c a token of the concept and c* the anchor's (Gandikota et
    al. 2024, arXiv 2308.14761, equation 7, with the weights of the authors' code). Every target is W c*, so the solution is
    W M with the same M for all layers; only M is computed.

    Ours differs: the code's targets are "" or "art"; ours is the concept's anchor, or "" where it has none, and the retain
    prompts are preserved. The current code edits the last word's token of bare phrases ("last"). The code of the paper's
    time edited that token and all later ones ("tail"), and preserved all tokens of n phrases, the empty one first, with
    weight max(.1, 1/n). A causal text encoder mixes the concept into every later token. Where a bare phrase does not
    represent the prompts, edit the prompts: phrases "prompts" or "both", and tokens "all", each aligned with its counterpart
    in the anchor.

    Attributes:
        erase: weight of the concept's tokens.
        preserve: weight of the retain prompts' tokens (the last of each where `tokens` is "last", else all); 0 for none.
        ridge: lambda, the weight of the current weights.
        phrases: what is edited: "names" (the bare phrase and the concept's words), forget "prompts", or "both".
        tokens: which of their tokens: "last", "tail" or "all".
    """

    train: str = "xattn_kv"
    steps: int = 0
    erase: float = 1.0
    preserve: float = 1.0
    ridge: float = 0.5
    phrases: str = "names"
    tokens: str = "last"
    needs_images: ClassVar[bool] = False
    uses_seed: ClassVar[bool] = False
    unread_settings: ClassVar[frozenset[str]] = OPTIMIZER

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "phrases", "both", "names", "prompts")
        one_of(self, "tokens", "all", "last", "tail")
        above_zero(self, "erase", "ridge")

    @property
    def needs_anchors(self) -> bool:
        """See `Unlearner.needs_anchors`."""
        return self.phrases == "prompts"

    def requires(self) -> frozenset[str]:
        """See `Unlearner.requires`."""
        return frozenset({"xattn"})

    def update(self, training: Training) -> Unlearned:
        """Edit once; the log receives the remaining share of the distance from c to c*."""
        weights = key_value_weights(training.model, self.train)
        training.context.log(1, self.apply(weights, self.edit(training)))
        return Unlearned(list(weights), training.guidance)

    def edit(self, training: Training) -> Edit:
        """The tokens to edit, their targets and the tokens to preserve.

        Raises:
            UserError: no phrase differs from its anchor.
        """
        model, forget = training.model, training.forget
        pairs = self.phrase_pairs(training.concept, forget.prompts, forget.anchors)
        old, new = (text_hidden_states(model, texts) for texts in (list(pairs), list(pairs.values())))
        rows = [(i, a, b) for i, ids in enumerate(paired_token_ids(model, pairs)) for a, b in self._token_pairs(*ids)]
        i, a, b = (list(column) for column in zip(*rows, strict=True))
        return Edit(old[i, a], new[i, b], self.preserved_tokens(model, list(dict.fromkeys(training.retain.prompts))))

    def phrase_pairs(self, concept: Concept, prompts: list[str], anchors: list[str]) -> dict[str, str]:
        """The phrases to edit, each with its anchor.

        Raises:
            UserError: no phrase differs from its anchor.
        """
        names = {name: concept.substitute(name) for name in concept.name_phrases()}
        names = {old: new if new != old else "" for old, new in names.items()}
        changed = {old: new for old, new in zip(prompts, anchors, strict=True) if new != old}
        pairs = {"names": names, "prompts": changed, "both": {**names, **changed}}[self.phrases]
        if not pairs:
            raise UserError(f"algo.phrases={self.phrases}: concept.anchor replaces nothing in the forget prompts; try names")
        return pairs

    def preserved_tokens(self, model: TextToImage, prompts: list[str]) -> Tensor:
        """The token embeddings of retain prompts that the edit preserves, (n, width)."""
        hidden_states = text_hidden_states(model, prompts)
        if self.tokens == "last":
            ends = end_positions(model, token_ids(model, prompts))
            hidden_states = hidden_states[range(len(hidden_states)), [end - 1 for end in ends]]
        return hidden_states.flatten(0, -2)

    def _token_pairs(self, old: list[int], new: list[int], old_end: int, new_end: int) -> list[tuple[int, int]]:
        """The positions of the edited tokens of a phrase, each with that of its target in the anchor."""
        if self.tokens == "all":
            return [(a, b) for a, b, _ in align_tokens(old, new, old_end, new_end)]
        tail = list(zip(range(old_end - 1, len(old)), range(new_end - 1, len(new)), strict=False))
        return tail if self.tokens == "tail" else tail[:1]

    def apply(self, weights: dict[str, nn.Parameter], edit: Edit) -> float:
        """Replace every W by W M; returns |M c - c*| / |c - c*| over all edited tokens."""
        width = edit.old.shape[1]
        regularizer = self.preserve * edit.preserved.T @ edit.preserved + self.ridge * torch.eye(width, dtype=torch.float64)
        change = linear_map(edit.old, edit.new, regularizer / self.erase)
        apply_map(weights, change)
        for weight in weights.values():
            weight.requires_grad_(False)
        return float((edit.old @ change.T - edit.new).norm() / (edit.old - edit.new).norm())
