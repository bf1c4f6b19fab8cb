"""SPM: one-dimensional adapters, anchored at random embeddings and gated by the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearnbench.algos.low_rank import LowRank
from unlearnbench.algos.negative_guidance import negative_guidance_target, partially_denoise
from unlearnbench.algos.training import Step, Training, Unlearned
from unlearnbench.config.ranges import at_least
from unlearnbench.models.adapters.gated_lora import FacilitatedTransport, install_gated_lora
from unlearnbench.models.base import Conditioning, TextToImage
from unlearnbench.models.parameters import select_parameters


@dataclass
class SPM(LowRank):
    """ESD's objective in rank-1 adapters of every layer around attention, anchored at random text embeddings.

    L = |eps(x_t, c_f) - (eps_0(x_t, "") - eta (eps_0(x_t, c_f) - eps_0(x_t, "")))|^2
    + keep |eps(x_t, r) - eps_0(x_t, r)|^2, where x_t is a sample of the model in training, stopped at a random step, and
    r are Gaussian embeddings of .8 to 1.2 times the norm of that of c_f ("latent anchoring"). During sampling the
    similarity of each prompt to the concept gates the adapters ("facilitated transport", see `FacilitatedTransport`). The
    paper calls such an adapter a concept semi-permeable membrane. Lyu et al. 2024 (arXiv 2312.16145); form and settings
    follow the authors' code. The method needs no images.

    Ours differs: a prompt is compared with all phrases of the concept (theirs: with the phrases in training), and several
    concepts at once share one adapter (theirs: one for each). Left out are the rejection of embeddings near the concept's
    (very rare in high dimensions), random sizes of 256 to 448 pixels, and the learning-rate schedule (500 warm-up steps, then
    cosine with three restarts). Adam replaces 8-bit AdamW. The adapters are saved by name like other weights, together with
    their gate, and load into the same model again. A plain diffusers pipeline cannot hold them until they are merged.

    Attributes:
        eta: strength of the negative guidance.
        keep: weight of the anchoring.
        embeddings: random embeddings for each forget prompt.
        sample_steps: steps of the complete sampling, of which x_t is an intermediate state.
        sample_guidance: guidance scale of that sampling.
        transport: keep the adapters separate from the weights and gate them by the prompt; otherwise merge them, ungated.
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

    @property
    def passes_with_gradient(self) -> int:
        """See `Unlearner.passes_with_gradient`."""
        return 1 + self.embeddings

    def requires(self) -> frozenset[str]:
        """See `Unlearner.requires`."""
        return frozenset({"cfg"})

    @property
    def saves_as_pipeline(self) -> bool:
        """See `Unlearner.saves_as_pipeline`: only merged adapters do."""
        return not self.transport

    def add_adapters(self, model: TextToImage, generator: torch.Generator) -> dict[str, nn.Parameter]:
        """Install the adapters, separate from the weights if the prompt gates them."""
        if not self.transport:
            return super().add_adapters(model, generator)
        return install_gated_lora(model, select_parameters(model, self.train), self.rank, generator)

    def update(self, training: Training) -> Unlearned:
        """Train as in `Unlearner.update`, and return the guidance that gates the adapters by the prompt."""
        names, guidance = super().update(training)
        if not self.transport:
            return Unlearned(names, guidance)
        earlier = guidance.concepts if isinstance(guidance, FacilitatedTransport) else []
        return Unlearned(names, FacilitatedTransport([*earlier, training.concept.name_phrases()]))

    def step_loss(self, training: Training, step: Step) -> Tensor:
        """The ESD loss on forget prompts plus the anchoring at random embeddings."""
        model, frozen, (forget, _, generator) = training.model, training.original, step
        noisy_latents, timesteps = partially_denoise(
            model, forget.prompts, self.sample_steps, self.sample_guidance, generator, training.guidance
        )
        cond = model.encode_prompts(forget.prompts)
        prediction = model.predict(noisy_latents, timesteps, cond)
        target = negative_guidance_target(frozen, noisy_latents, timesteps, forget.prompts, self.eta, "empty")
        loss = F.mse_loss(prediction, target)
        for _ in range(self.embeddings):
            anchors = random_embeddings(cond, generator)
            with frozen() as original:
                target = original.predict(noisy_latents, timesteps, anchors)
            prediction = model.predict(noisy_latents, timesteps, anchors)
            loss = loss + self.keep / self.embeddings * F.mse_loss(prediction, target)
        return loss


def random_embeddings(cond: Conditioning, generator: torch.Generator) -> Conditioning:
    """Conditioning of the same shapes in random directions, with .8 to 1.2 times the norm of the given one."""
    embeddings = {}
    for name, value in cond.items():
        noise = torch.randn(value.shape, generator=generator).to(value)
        length = 0.8 + 0.4 * torch.rand(len(value), generator=generator).to(value)
        scale = length * value.detach().flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
        embeddings[name] = noise * scale.view(-1, *[1] * (value.dim() - 1))
    return embeddings
