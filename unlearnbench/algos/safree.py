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
    token's embedding. A token is a trigger if the prompt without it lies more than (1 + alpha) times as far from C as the
    prompt without another token, on average. A trigger's embedding e becomes (1 - P_C) P_I e. The projection holds in the
    first step and in the next share sigmoid(2 slope (10 beta - middle)) of the steps, where beta = 1 - the mean cosine of
    all tokens and their projections (Yoon et al. 2024, arXiv 2410.12761; the numbers are those of the authors' code, where
    the share is 10 steps of 50). As there, the concept is also the negative prompt of the guidance.

    Ours differs: the re-attention of latents in Fourier space is left out. The authors' script requests it, but their
    released code does not enable its filter. Their list of phrases is for nudity; ours is the concept's bare phrase and its
    words.

    Attributes:
        alpha: by how much a trigger must exceed the average.
        filtering: let beta determine the number of steps; otherwise the projection holds in all steps.
        share: the largest share of steps with the projection.
        slope: slope of the sigmoid (2.5; 3.5 for artists there).
        middle: where the sigmoid is a half, in tenths of beta (5.333; 5.5 for artists there).
        negative: use the concept as negative prompt.
        drop: mask a token by omitting it; theirs replaces it by the vocabulary's first token.
        with_ends: also project the end token and the padding of a prompt with a trigger; theirs projects words only.
    """

    alpha: float = 0.01
    filtering: bool = True
    share: float = 0.2
    slope: float = 2.5
    middle: float = 5.333
    negative: bool = True
    drop: bool = False
    with_ends: bool = False
    supports_sequential: ClassVar[bool] = False
    saves_as_pipeline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        share(self, "share")

    def requires(self) -> frozenset[str]:
        """See `Unlearner.requires`."""
        return frozenset({"cfg", "one_encoder"})

    def update(self, training: Training) -> Unlearned:
        """Return the guidance of the model's sampling; changes no parameter.

        Raises:
            UserError: the model is of another family.
        """
        model = training.model
        if reason := self.unavailable_reason(model):
            raise UserError(reason)
        assert isinstance(model, StableDiffusion)
        phrases = training.concept.name_phrases()
        concept = span_projection(end_token_embeddings(model, token_ids(model, phrases)))
        return Unlearned([], TokenProjection(self, phrases, concept))


@dataclass
class TokenProjection(SamplingGuidance):
    """The sampling of SAFREE.

    Attributes:
        settings: the settings of the method.
        phrases: the concept's phrases.
        concept: P_C, the projection on their span, (width, width).
    """

    settings: SAFREE
    phrases: list[str]
    concept: Tensor

    def conditioned(self, model: TextToImage, prompts: Sequence[str], cond: Conditioning) -> Conditioning:
        """Adds `safe`, the embeddings with projected triggers, and `hold`, the share of the steps that use them."""
        assert isinstance(model, StableDiffusion)
        ids = token_ids(model, prompts)
        rows = [self.project(model, *row) for row in zip(ids, end_positions(model, ids), cond["prompt_embeds"], strict=True)]
        safe, hold = zip(*rows, strict=True)
        return {**cond, "safe": torch.stack(safe), "hold": torch.tensor(hold, device=model.device)}

    def project(self, model: StableDiffusion, ids: list[int], end: int, prompt_embeds: Tensor) -> tuple[Tensor, float]:
        """One prompt's embeddings (tokens, width) with projected triggers, and the share of the steps that use them.

        Args:
            model: the model whose text encoder reads the prompt.
            ids: the prompt's token ids.
            end: the position of its end token.
            prompt_embeds: its embeddings, (tokens, width).
        """
        if end < 2:
            return prompt_embeds, 0.0
        masked = end_token_embeddings(model, self.mask_each(ids, end))
        complement = torch.eye(len(self.concept), dtype=torch.float64) - self.concept
        trigger = self.triggers((masked @ complement).norm(dim=1), len(ids), end)
        embeds = prompt_embeds.cpu().double()
        projected = embeds @ span_projection(masked) @ complement
        safe = torch.where(trigger[:, None], projected, embeds).to(prompt_embeds)
        if not self.settings.filtering:
            return safe, 1.0
        beta = 1 - F.cosine_similarity(embeds[: end + 1], projected[: end + 1]).mean()
        strength = torch.sigmoid(2 * self.settings.slope * (10 * beta - self.settings.middle))
        return safe, self.settings.share * float(strength)

    def mask_each(self, ids: list[int], end: int) -> list[list[int]]:
        """The token ids with one of the prompt's words masked at a time."""
        if self.settings.drop:
            return [[*ids[:i], *ids[i + 1 :], ids[end]] for i in range(1, end)]
        return [[*ids[:i], 0, *ids[i + 1 :]] for i in range(1, end)]

    def triggers(self, distances: Tensor, length: int, end: int) -> Tensor:
        """The mask (length,) of the tokens that carry the concept.

        Args:
            distances: from C, of the prompt without each of its words, (words,).
            length: the number of tokens, with start, end and padding.
            end: the position of the end token.
        """
        others = (distances.sum() - distances) / (end - 2) if end > 2 else torch.zeros(1, dtype=torch.float64)
        trigger = torch.zeros(length, dtype=torch.bool)
        trigger[1:end] = distances >= (1 + self.settings.alpha) * others
        trigger[end:] = self.settings.with_ends and bool(trigger.any())
        return trigger

    def start(self, model: TextToImage, cond: Conditioning, uncond: Conditioning, steps: int, scale: float) -> Predictor:
        """See `SamplingGuidance.start`; conditioning without `safe` is used unchanged."""
        assert isinstance(model, StableDiffusion)
        embeds = cond["prompt_embeds"]
        safe = cond.get("safe", embeds)
        last = (cond["hold"] * steps).round() if "hold" in cond else torch.zeros(len(embeds), device=embeds.device)
        negative = uncond["prompt_embeds"]
        if self.settings.negative:
            negative = model.encode_tokens(model.token_tensor([", ".join(self.phrases)]))

        def predict(step: int, latents: Tensor, timestep: Tensor) -> Tensor:
            prompt_embeds = torch.where((step <= last)[:, None, None], safe, embeds)
            if scale <= 1:
                return model.predict(latents, timestep, {"prompt_embeds": prompt_embeds})
            stacked = stack_conditioning({"prompt_embeds": negative}, {"prompt_embeds": prompt_embeds})
            pred_negative, pred_cond = model.predict(torch.cat([latents, latents]), timestep, stacked).chunk(2)
            return pred_negative + scale * (pred_cond - pred_negative)

        return predict


@torch.no_grad()
def end_token_embeddings(model: StableDiffusion, ids: list[list[int]]) -> Tensor:
    """The end token's embedding of each row of token ids, (n, width), double, on the CPU."""
    hidden_states = model.encode_tokens(torch.tensor(ids, device=model.device))
    return hidden_states[range(len(ids)), end_positions(model, ids)].cpu().double()


def span_projection(rows: Tensor) -> Tensor:
    """The orthogonal projection on the span of the rows, (width, width)."""
    return rows.T @ torch.linalg.pinv(rows @ rows.T, rtol=1e-6, hermitian=True) @ rows
