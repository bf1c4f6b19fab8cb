"""AdaVD: take the concept's part out of the values of cross-attention while sampling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearnbench.algos.none import NoTraining
from unlearnbench.algos.training import Training, Unlearned
from unlearnbench.models.base import Conditioning, Predictor, SamplingGuidance, TextToImage
from unlearnbench.models.tokens import end_positions, token_ids


@dataclass
class AdaVD(NoTraining):
    """Project the values of the prompt's tokens onto the orthogonal complement of the concept's; no weight changes.

    In each cross-attention, v - s(cos(v, v_t)) (<v, v_t> / |v_t|^2) v_t for each token but the first, with v_t the value of the
    last word of the concept's phrase and s(x) = height / (1 + exp(-slope (x - middle))) (Wang et al. 2025, "Precise, Fast, and
    Low-cost Concept Erasure in Value Space", by the authors' code with its `token_sim`). Several phrases are orthogonalized by
    Gram-Schmidt.

    Ours differs: the projection applies to the prompt's prediction alone; the code stacks its values and those of the empty
    prompt to one vector.

    Attributes:
        slope: of the sigmoid.
        middle: the cosine where the sigmoid is a half.
        height: its upper limit.
    """

    slope: float = 100.0
    middle: float = 0.93
    height: float = 2.0
    supports_sequential: ClassVar[bool] = False
    saves_as_pipeline: ClassVar[bool] = False

    def requires(self) -> frozenset[str]:
        """See `Unlearner.requires`."""
        return frozenset({"xattn", "cfg"})

    def update(self, training: Training) -> Unlearned:
        """Return the guidance with the projection; changes no parameter."""
        return Unlearned([], ValueProjection(self, training.concept.name_phrases()))


@dataclass
class ValueProjection(SamplingGuidance):
    """Sampling with the values of the phrases projected out."""

    settings: AdaVD
    phrases: list[str]
    targets: dict[str, Tensor] = field(default_factory=dict)
    """By layer, the values of the phrases' last words, (phrases, width)."""

    def start(self, model: TextToImage, cond: Conditioning, uncond: Conditioning, steps: int, scale: float) -> Predictor:
        """See `SamplingGuidance.start`."""
        layers = value_layers(model)
        with torch.no_grad():
            ids = token_ids(model, self.phrases)
            states = model.encode_prompts(self.phrases)["prompt_embeds"]
            words = states[range(len(ids)), [end - 1 for end in end_positions(model, ids)]]
            self.targets = {name: layer(words.to(layer.weight)).float() for name, layer in layers.items()}

        def predict(step: int, latents: Tensor, timestep: Tensor) -> Tensor:
            with self.projected(layers):
                pred_cond = model.predict(latents, timestep, cond)
            if scale <= 1:
                return pred_cond
            empty = {key: value.expand(len(latents), *value.shape[1:]) for key, value in uncond.items()}
            pred_uncond = model.predict(latents, timestep, empty)
            return pred_uncond + scale * (pred_cond - pred_uncond)

        return predict

    @contextmanager
    def projected(self, layers: dict[str, Any]) -> Iterator[None]:
        """Within the block the value layers of cross-attention lose the concept's part."""
        hooks = [layer.register_forward_hook(partial(self._project, name)) for name, layer in layers.items()]
        try:
            with torch.compiler.set_stance("force_eager"):  # a compiled denoiser would skip the hooks
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _project(self, name: str, layer: nn.Module, inputs: tuple[Tensor, ...], values: Tensor) -> Tensor:
        part = concept_part(values.float(), self.targets[name], self.settings)
        part[:, 0] = 0
        return values - part.to(values)


def concept_part(values: Tensor, targets: Tensor, settings: AdaVD) -> Tensor:
    """The part of values (n, tokens, width) along the targets (k, width), weighted by their likeness."""
    transform, basis = gram_schmidt(targets)
    weights = values @ basis.T / basis.square().sum(1).clamp(min=1e-12)
    cosines = F.cosine_similarity(values[:, :, None], targets, dim=-1)
    shares = settings.height * torch.sigmoid(settings.slope * (cosines - settings.middle))
    return (weights[..., None, :] @ (transform @ (shares[..., None] * targets)))[..., 0, :]


def gram_schmidt(rows: Tensor) -> tuple[Tensor, Tensor]:
    """A lower triangular T and the basis T rows, whose rows are orthogonal to each other."""
    transform = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    basis = rows.clone()
    for i in range(1, len(rows)):
        for j in range(i):
            share = basis[j] @ rows[i] / basis[j].square().sum().clamp(min=1e-12)
            transform[i] -= share * transform[j]
            basis[i] -= share * basis[j]
    return transform, basis


def value_layers(model: TextToImage) -> dict[str, Any]:
    """The value layers of cross-attention by name."""
    named = [(f"{part}.{name}", layer) for part, module in model.modules().items() for name, layer in module.named_modules()]
    return {name: layer for name, layer in named if name.endswith("attn2.to_v")}
