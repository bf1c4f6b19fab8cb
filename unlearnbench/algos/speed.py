"""SPEED: an edit of cross-attention's values within the null space of what is retained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from unlearnbench.algos.base import OPTIMIZER, Unlearner
from unlearnbench.algos.closed_form import text_hidden_states
from unlearnbench.algos.training import Training, Unlearned
from unlearnbench.algos.uce import UCE, Edit
from unlearnbench.config.ranges import above_zero, at_least
from unlearnbench.models.attention_maps import key_value_weights
from unlearnbench.models.base import TextToImage

INVARIANT_CENTRES = 3


@dataclass
class SPEED(Unlearner):
    """Map the concept's last word to the anchor's in each value weight W, in directions that no retained word uses.

    W + W (A - T) P (I - M K (K^T P M K + ridge I)^+ K^T P) M with T = mean c c^T, A = mean c* c^T over the phrases,
    M = (T P + retain I)^-1, P the projection onto the eigenvectors of mean r r^T below `threshold`, and K the start token and
    three k-means centres of the empty prompt's tokens, which stay exactly (Li et al. 2026, arXiv 2503.07392, by the authors'
    code). r are the last words of retain prompts, each layer's own: those that the edit without P would move more than the mean
    (|W (A - T) (I + T)^-1 r|), and `augment` copies of each with noise along W's smallest right singular vector, of which
    again those that move more than the mean.

    Ours differs: r are the retain prompts' words, there lists of concepts; nudity edits its last word like every concept, there
    all tokens; ^+ is a pseudoinverse, for K that lies outside P.

    Attributes:
        threshold: the eigenvalue below which a direction counts as unused.
        retain: weight of the current weights (.05 for many concepts there).
        ridge: of the invariants.
        augment: noisy copies of each retained word; 0 also uses all words.
    """

    train: str = r"^unet\..*attn2\.to_v\."
    steps: int = 0
    threshold: float = 0.1
    retain: float = 1.0
    ridge: float = 0.0
    augment: int = 10
    needs_images: ClassVar[bool] = False
    unread_settings: ClassVar[frozenset[str]] = OPTIMIZER

    def __post_init__(self) -> None:
        super().__post_init__()
        above_zero(self, "threshold", "retain")
        at_least(self, 0, "ridge", "augment")

    def requires(self) -> frozenset[str]:
        """See `Unlearner.requires`."""
        return frozenset({"xattn"})

    def update(self, training: Training) -> Unlearned:
        """Edit once; the log receives the remaining share of the distance from W c to W c*."""
        weights = key_value_weights(training.model, self.train)
        edit = UCE(phrases="names", tokens="last").edit(training)
        invariants = invariant_tokens(training.model, training.generator)
        before = after = 0.0
        for weight in weights.values():
            old = weight.data.double().cpu()
            new = old + self.change(old, edit, invariants, training.generator)
            before += float(((edit.new - edit.old) @ old.T).norm())
            after += float((edit.new @ old.T - edit.old @ new.T).norm())
            weight.data = new.to(weight)
            weight.requires_grad_(False)
        training.context.log(1, after / max(before, 1e-12))
        return Unlearned(list(weights), training.guidance)

    def change(self, weight: Tensor, edit: Edit, invariants: Tensor, generator: torch.Generator) -> Tensor:
        """The change of one weight (rows, width), in double precision."""
        identity = torch.eye(weight.shape[1], dtype=torch.float64)
        targets, anchors = (words.T @ edit.old / len(edit.old) for words in (edit.old, edit.new))
        plain = weight @ (anchors - targets) @ torch.linalg.inv(identity + targets)
        retained = self.influenced(weight, plain, edit.preserved, generator)
        values, vectors = torch.linalg.eigh(retained.T @ retained / len(retained))
        unused = vectors[:, values < self.threshold]
        projection = unused @ unused.T
        inverse = torch.linalg.inv(targets @ projection + self.retain * identity)
        inner = invariants @ projection @ inverse @ invariants.T + self.ridge * torch.eye(len(invariants), dtype=torch.float64)
        fixed = identity - inverse @ invariants.T @ torch.linalg.pinv(inner) @ invariants @ projection
        return weight @ (anchors - targets) @ projection @ fixed @ inverse

    def influenced(self, weight: Tensor, plain: Tensor, retained: Tensor, generator: torch.Generator) -> Tensor:
        """The retained words (n, width) that the edit without a projection moves most, and noisy copies of them."""
        if self.augment == 0:
            return retained
        moved = (retained @ plain.T).norm(dim=1)
        words = retained[moved >= moved.mean()]
        quietest = torch.linalg.svd(weight, full_matrices=False).Vh[-1:]
        copies = words.repeat(self.augment, 1)
        copies = copies + torch.randn(copies.shape, generator=generator, dtype=torch.float64) @ quietest.T @ quietest
        moved = (copies @ plain.T).norm(dim=1)
        return torch.cat([words, copies[moved > moved.mean()]])


def invariant_tokens(model: TextToImage, generator: torch.Generator) -> Tensor:
    """The start token of the empty prompt, and k-means centres of its other tokens, (1 + centres, width), double."""
    [tokens] = text_hidden_states(model, [""])
    seed = int(torch.randint(2**31, (), generator=generator))
    centres, _ = kmeans2(tokens[1:].numpy(), INVARIANT_CENTRES, minit="++", rng=seed)
    return torch.cat([tokens[:1], torch.from_numpy(centres)])
