"""Concept semi-permeable membranes: one-dimensional adapters, anchored at random embeddings, open to the concept's prompts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearnbench.algos.low_rank import LowRank
from unlearnbench.algos.negative_guidance import negatively_guided, partly_denoised
from unlearnbench.algos.training import Step, Training, Unlearned
from unlearnbench.config.ranges import at_least
from unlearnbench.models.adapters.gated_lora import FacilitatedTransport, GatedLoRA, add_gated_lora
from unlearnbench.models.adapters.lora import install_adapters
from unlearnbench.models.base import Conditioning, TextToImage
from unlearnbench.models.parameters import select_parameters


@dataclass
class SPM(LowRank):
    """ESD's objective in rank-1 adapters of every layer around attention, held in place at random text embeddings.

    L = |eps(x_t, c_f) - (eps_0(x_t, "") - eta (eps_0(x_t, c_f) - eps_0(x_t, "")))|^2
    + keep |eps(x_t, r) - eps_0(x_t, r)|^2, where x_t is a sample of the model in training, stopped at a random step, and
    r are Gaussian embeddings of .8 to 1.2 times the norm of that of c_f ("latent anchoring"). Lyu et al. 2024
    (arXiv 2312.16145); form and settings after the authors' code. No image is needed. While the model samples, each
    prompt opens the membranes as far as it is like the concept ("facilitated transport", see `Transport`).

    Ours: a prompt is compared with all phrases of the concept (theirs: with those that were trained), and concepts that
    are forgotten at once share one membrane (theirs: one each). Left out are the rejection of embeddings near the
    concept's (hardly ever met in so many dimensions), sizes of 256 to 448 pixels drawn at random, and the schedule of the
    learning rate (500 warm-up steps, then cosine with three restarts); Adam in place of 8-bit AdamW. Membranes are saved
    by name like other weights, with what opens them, and load into the same model again; a plain diffusers pipeline has
    no place for them until they are merged.

    Attributes:
        eta: the strength of the negative guidance.
        keep: the weight of the anchoring.
        embeddings: random embeddings for each forget prompt.
        sample_steps: the steps of the whole sampling of which x_t is a part.
        sample_guidance: the guidance scale of that sampling.
        transport: keep the membranes apart from the weights and open them by the prompt; else they are merged, open to all.
    """

    rank: int = 1
    eta: float = 1.0
    keep: float = 1000.0
    embeddings: int = 4
    sample_steps: int = 30
    sample_guidance: float = 3.0
    transport: bool = True
    needs_images: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "embeddings")
        at_least(self, 1, "sample_steps", "rank")

    def requires(self) -> frozenset[str]:
        """See `Unlearner.requires`."""
        return frozenset({"cfg"})

    @property
    def plain(self) -> bool:
        """See `Unlearner.plain`: once it is merged."""
        return not self.transport

    def installed(self, model: TextToImage, generator: torch.Generator) -> dict[str, nn.Parameter]:
        """The membranes, apart from the weights if a prompt is to open them."""
        if not self.transport:
            return super().installed(model, generator)
        return install_adapters(
            model, select_parameters(model, self.train), partial(GatedLoRA, rank=self.rank, generator=generator), add_gated_lora
        )

    def update(self, training: Training) -> Unlearned:
        """As in `Unlearner.update`; after it prompts open the membranes."""
        names, guidance = super().update(training)
        if not self.transport:
            return Unlearned(names, guidance)
        before = guidance.concepts if isinstance(guidance, FacilitatedTransport) else []
        return Unlearned(names, FacilitatedTransport([*before, training.concept.name_phrases()]))

    def step_loss(self, training: Training, step: Step) -> Tensor:
        """Away from the concept, at rest elsewhere."""
        model, frozen, (forget, _, generator) = training.model, training.original, step
        sampled = forget.prompts, self.sample_steps, self.sample_guidance
        x, times = partly_denoised(model, *sampled, generator, training.guidance)
        text = model.encode_prompts(forget.prompts)
        erased = F.mse_loss(model.predict(x, times, text), negatively_guided(frozen, x, times, forget.prompts, self.eta, "empty"))
        for _ in range(self.embeddings):
            elsewhere = scattered(text, generator)
            with frozen() as original:
                kept = original.predict(x, times, elsewhere)
            erased = erased + self.keep / self.embeddings * F.mse_loss(model.predict(x, times, elsewhere), kept)
        return erased


def scattered(text: Conditioning, generator: torch.Generator) -> Conditioning:
    """Embeddings of a random direction each, and of .8 to 1.2 times the norm of the given ones."""
    drawn = {}
    for name, value in text.items():
        noise = torch.randn(value.shape, generator=generator).to(value)
        length = 0.8 + 0.4 * torch.rand(len(value), generator=generator).to(value)
        scale = length * value.detach().flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
        drawn[name] = noise * scale.view(-1, *[1] * (value.dim() - 1))
    return drawn
