"""Unified Concept Editing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.closed_form import linear_map, paired_token_ids, text_hidden_states
from unlearnbench.algos.training import Training, Unlearned
from unlearnbench.config.errors import UserError
from unlearnbench.config.ranges import above_zero, one_of
from unlearnbench.models.attention_maps import key_value_weights
from unlearnbench.models.tokens import align_tokens, end_positions, token_ids


class Edit(NamedTuple):
    """Token embeddings (n, width) in double precision: what is erased, what it becomes, and what is kept."""

    old: Tensor
    new: Tensor
    kept: Tensor


@dataclass
class UCE(Unlearner):
    """Solve for the key and value weights under which the concept's words read as the anchor's.

    W* = (ridge W + erase sum_E W c* c^T + preserve sum_P W c_p c_p^T) (ridge I + erase sum_E c c^T + preserve sum_P c_p c_p^T)^-1
    for each weight W of the cross-attention's keys and values, c a token of the concept and c* the anchor's (Gandikota et
    al. 2024, arXiv 2308.14761, equation 7, with the weights of the authors' code). Since every target is W c*, the
    solution is W M with one M for all layers, and that is what is computed.

    The code's targets are "" or "art"; ours is the concept's anchor, "" where it names none, and what is preserved are
    the retain prompts. The code edits the last word's token of bare phrases ("last"); that of the paper's time edited
    that token and all that follow ("tail"), and preserved all tokens of n phrases, the empty one first, with max(.1, 1/n).
    A causal text encoder writes the concept into every later token, so where a bare phrase does not stand for the
    prompts, edit those: phrases "prompts" or "both", and tokens "all", each aligned with its counterpart in the anchor's.

    Attributes:
        erase: the weight of the concept's tokens.
        preserve: the weight of the retain prompts' tokens (the last of each where `tokens` is "last", else all); 0 for none.
        ridge: lambda, the weight of staying where the weights are.
        phrases: what is erased: "names" (the bare phrase and the concept's words), forget "prompts", or "both".
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
    seeded: ClassVar[bool] = False

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
        """Edit once; the log gets the share of the way from c to c* that is left."""
        weights = key_value_weights(training.model, self.train)
        training.context.log(1, self.apply(weights, self.edit(training)))
        return Unlearned(list(weights), training.guidance)

    def edit(self, training: Training) -> Edit:
        """The edit that the settings ask for.

        Raises:
            UserError: no phrase differs from its anchor.
        """
        model, forget, concept = training.model, training.forget, training.concept
        names = {name: concept.substitute(name) for name in concept.name_phrases()}
        names = {old: new if new != old else "" for old, new in names.items()}
        asked = {old: new for old, new in zip(forget.prompts, forget.anchors, strict=True) if new != old}
        pairs = {"names": names, "prompts": asked, "both": {**names, **asked}}[self.phrases]
        if not pairs:
            raise UserError(f"algo.phrases={self.phrases}: concept.anchor exchanges nothing in the forget prompts; try names")
        old, new = (text_hidden_states(model, texts) for texts in (list(pairs), list(pairs.values())))
        rows = [(i, a, b) for i, ids in enumerate(paired_token_ids(model, pairs)) for a, b in self._edited(*ids)]
        i, a, b = (list(column) for column in zip(*rows, strict=True))
        prompts = list(dict.fromkeys(training.retain.prompts))
        kept = text_hidden_states(model, prompts)
        if self.tokens == "last":
            kept = kept[range(len(kept)), [end - 1 for end in end_positions(model, token_ids(model, prompts))]]
        return Edit(old[i, a], new[i, b], kept.flatten(0, -2))

    def _edited(self, old: list[int], new: list[int], old_end: int, new_end: int) -> list[tuple[int, int]]:
        """Which tokens of a phrase are edited, and which of its anchor's they become."""
        if self.tokens == "all":
            return [(a, b) for a, b, _ in align_tokens(old, new, old_end, new_end)]
        tail = list(zip(range(old_end - 1, len(old)), range(new_end - 1, len(new)), strict=False))
        return tail if self.tokens == "tail" else tail[:1]

    def apply(self, weights: dict[str, nn.Parameter], edit: Edit) -> float:
        """Put W M for every W; returns |M c - c*| / |c - c*| over all edited tokens."""
        width = edit.old.shape[1]
        same = self.preserve * edit.kept.T @ edit.kept + self.ridge * torch.eye(width, dtype=torch.float64)
        change = linear_map(edit.old, edit.new, same / self.erase)
        for weight in weights.values():
            weight.data = (weight.data.double().cpu() @ change).to(weight)
            weight.requires_grad_(False)
        return float((edit.old @ change.T - edit.new).norm() / (edit.old - edit.new).norm())
