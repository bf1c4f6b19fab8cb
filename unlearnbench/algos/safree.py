"""SAFREE: training-free, adaptive filtering of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unlearnbench.algos.none import NoTraining
from unlearnbench.algos.training import Training, Unlearned
from unlearnbench.config.errors import UserError
from unlearnbench.config.ranges import share
from unlearnbench.models.base import Conditioning, Predictor, SamplingGuidance, TextToImage, stack_conditioning
from unlearnbench.models.sd import StableDiffusion
from unlearnbench.models.tokens import end_positions, token_ids


@dataclass
class SAFREE(NoTraining):
    """Project the tokens that carry the concept out of its subspace, in the early sampling steps; no weight changes.

    C is the span of the concept's phrases, I that of the prompt with one token masked at a time, each by its end
    token's embedding. A token is a trigger if without it the prompt lies more than (1 + alpha) times as far from C as
    without the others, on average; its embedding e becomes (1 - P_C) P_I e. That holds in the first step and in the next
    share sigmoid(2 slope (10 beta - middle)) of them, beta = 1 - the mean cosine of all tokens and their projections
    (Yoon et al. 2024, arXiv 2410.12761; the numbers are those of the authors' code, where the share is 10 steps of 50).

    The concept is also the negative prompt of guidance, as there. Left out is the re-attention of latents in Fourier
    space, which the authors' script asks for but whose filter their released code does not switch on. Their list of
    phrases is for nudity; ours is the concept's bare phrase and its words.

    Attributes:
        alpha: how much a trigger must stand out.
        filtering: let beta decide how long; else the projection holds in all steps.
        share: the share of the steps that it holds at most.
        slope: of the sigmoid (2.5; 3.5 for artists there).
        middle: where it is a half, in tenths of beta (5.333; 5.5 for artists there).
        negative: the concept as negative prompt.
        drop: mask a token by leaving it out, not by the vocabulary's first token as there.
        with_ends: project the end token and the padding of a prompt with a trigger, too, not its words alone as there.
    """

    alpha: float = 0.01
    filtering: bool = True
    share: float = 0.2
    slope: float = 2.5
    middle: float = 5.333
    negative: bool = True
    drop: bool = False
    with_ends: bool = False
    lasting: ClassVar[bool] = False
    plain: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        share(self, "share")

    def requires(self) -> frozenset[str]:
        """See `Unlearner.requires`."""
        return frozenset({"cfg", "one_encoder"})

    def update(self, training: Training) -> Unlearned:
        """Steer the model's sampling from now on; changes no parameter.

        Raises:
            UserError: the model is of another family.
        """
        model = training.model
        if lack := self.unavailable_reason(model):
            raise UserError(lack)
        assert isinstance(model, StableDiffusion)
        phrases = training.concept.name_phrases()
        return Unlearned([], Filter(self, phrases, projection(summaries(model, token_ids(model, phrases)))))


@dataclass
class Filter(SamplingGuidance):
    """The sampling of SAFREE: its settings, the concept's phrases and the projection on their span (width, width)."""

    settings: SAFREE
    phrases: list[str]
    concept: Tensor

    def conditioned(self, model: TextToImage, prompts: Sequence[str], cond: Conditioning) -> Conditioning:
        """Adds `safe`, the embeddings with triggers projected, and `hold`, the fraction of the steps that they are used in."""
        assert isinstance(model, StableDiffusion)
        ids = token_ids(model, prompts)
        rows = [self.project(model, *row) for row in zip(ids, end_positions(model, ids), cond["prompt_embeds"], strict=True)]
        safe, hold = zip(*rows, strict=True)
        return {**cond, "safe": torch.stack(safe), "hold": torch.tensor(hold, device=model.device)}

    def project(self, model: StableDiffusion, ids: list[int], end: int, states: Tensor) -> tuple[Tensor, float]:
        """One prompt's states (tokens, width) with its triggers projected, and the share of the steps they hold."""
        if end < 2:
            return states, 0.0
        if self.settings.drop:
            masked = [[*ids[:i], *ids[i + 1 :], ids[end]] for i in range(1, end)]
        else:
            masked = [[*ids[:i], 0, *ids[i + 1 :]] for i in range(1, end)]
        seen = summaries(model, masked)
        away = torch.eye(len(self.concept), dtype=torch.float64) - self.concept
        distances = (seen @ away).norm(dim=1)
        others = (distances.sum() - distances) / (end - 2) if end > 2 else torch.zeros(1, dtype=torch.float64)
        trigger = torch.zeros(len(ids), dtype=torch.bool)
        trigger[1:end] = distances >= (1 + self.settings.alpha) * others
        trigger[end:] = self.settings.with_ends and bool(trigger.any())
        before = states.double().cpu()
        after = before @ projection(seen) @ away
        safe = torch.where(trigger[:, None], after, before).to(states)
        if not self.settings.filtering:
            return safe, 1.0
        beta = 1 - F.cosine_similarity(before[: end + 1], after[: end + 1]).mean()
        sharp = torch.sigmoid(2 * self.settings.slope * (10 * beta - self.settings.middle))
        return safe, self.settings.share * float(sharp)

    def start(self, model: TextToImage, cond: Conditioning, uncond: Conditioning, steps: int, scale: float) -> Predictor:
        """See `SamplingGuidance.start`; conditioning without `safe` is used as it is."""
        assert isinstance(model, StableDiffusion)
        embeds = cond["prompt_embeds"]
        safe = cond.get("safe", embeds)
        last = (cond["hold"] * steps).round() if "hold" in cond else torch.zeros(len(embeds), device=embeds.device)
        negative = (
            model.encode_tokens(model.token_tensor([", ".join(self.phrases)]))
            if self.settings.negative
            else uncond["prompt_embeds"]
        )

        def predict(step: int, latents: Tensor, timestep: Tensor) -> Tensor:
            now = torch.where((step <= last)[:, None, None], safe, embeds)
            if scale <= 1:
                return model.predict(latents, timestep, {"prompt_embeds": now})
            stacked = stack_conditioning({"prompt_embeds": negative}, {"prompt_embeds": now})
            pred_negative, pred_cond = model.predict(torch.cat([latents, latents]), timestep, stacked).chunk(2)
            return pred_negative + scale * (pred_cond - pred_negative)

        return predict


@torch.no_grad()
def summaries(model: StableDiffusion, ids: list[list[int]]) -> Tensor:
    """The end token's embedding of each row of token ids, (n, width), double, on the CPU."""
    states = model.encode_tokens(torch.tensor(ids, device=model.device))
    return states[range(len(ids)), end_positions(model, ids)].double().cpu()


def projection(rows: Tensor) -> Tensor:
    """The orthogonal projection on the span of the rows, (width, width)."""
    return rows.T @ torch.linalg.pinv(rows @ rows.T, rtol=1e-6, hermitian=True) @ rows
