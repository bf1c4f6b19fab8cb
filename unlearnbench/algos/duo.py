"""Direct unlearning optimisation: preference learning on pairs of images, with the concept and without."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unlearnbench.algos.examples import Batch
from unlearnbench.algos.low_rank import LowRank
from unlearnbench.algos.training import Training, Unlearned
from unlearnbench.config.ranges import share_above_zero
from unlearnbench.console import progress_bar
from unlearnbench.models.base import TextToImage
from unlearnbench.models.frozen import Frozen


@dataclass
class DUO(LowRank):
    """Of an image of the concept and the same image edited, prefer the edited one: Diffusion-DPO without a word said.

    L = -log sigmoid(-beta (d(x+) - d(x-))) + keep |eps(x_T, "") - eps_0(x_T, "")|^2, where x- is the image of the concept, x+
    its edit, and d(x) = |eps(x_t, "") - y|^2 - |eps_0(x_t, "") - y|^2 with y the denoising target, all means over pixels;
    x_T is pure noise. The edit is SDEdit by the original: noised to `strength`, then denoised under the anchor prompt with
    the concept's own prompt as the negative one. Low-rank updates of self-attention only. Park et al. 2024
    (arXiv 2407.21035); form and settings after the authors' code for nudity on Stable Diffusion 1.4, where beta is 500,
    keep = 1e6 beta / 100 and lr = 3e-4 * 100 / beta.

    Ours: a pair shares its time as it shares its noise (their code draws one for each image); all edits are
    taken (theirs repeats one until a nudity detector is silent); Adam without weight decay; adapters start uniform.

    Attributes:
        beta: how strictly a pair's preference holds the model to the original.
        keep: the weight of the output-preserving term.
        latest: the share of the diffusion times, from the clean end, that pairs are noised to.
        strength: the share of the diffusion that SDEdit undoes.
    """

    rank: int = 32
    beta: float = 500.0
    keep: float = 5e6
    latest: float = 0.75
    strength: float = 0.75
    needs_anchors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        share_above_zero(self, "latest", "strength")

    def requires(self) -> frozenset[str]:
        """See `Unlearner.requires`."""
        return frozenset({"cfg"})

    def update(self, training: Training) -> Unlearned:
        """Puts each image's edit beside it, as further channels of its latent; the rest as in `Unlearner.update`."""
        model, forget, edits = training.model, training.forget, []
        generator = torch.Generator().manual_seed(training.generator.initial_seed())
        with progress_bar("edit training set", len(forget.prompts)) as shown:
            for i in range(0, len(forget.prompts), 16):
                span = slice(i, i + 16)
                part = Batch(forget.prompts[span], forget.anchors[span], forget.latents[span])
                edits.append(edited(model, part, self.strength, generator))
                shown.advance(len(edits[-1]))
        pairs = replace(forget, latents=torch.cat([forget.latents, torch.cat(edits)], dim=1))
        return super().update(replace(training, forget=pairs))

    def loss(self, model: TextToImage, frozen: Frozen, forget: Batch, retain: Batch, generator: torch.Generator) -> Tensor:
        """The preference for the edits, and the unconditional prediction from pure noise kept."""
        with_concept, without = forget.latents.chunk(2, dim=1)
        last = model.scheduler.config.num_train_timesteps
        times = torch.randint(int(self.latest * last), (len(without),), generator=generator).to(model.device)
        noise = torch.randn(without.shape, generator=generator).to(model.device)
        rises = [self.rise(model, frozen, clean, noise, times) for clean in (without, with_concept)]
        preference = -F.logsigmoid(-self.beta * (rises[0] - rises[1])).mean()
        end, empty = torch.full_like(times, last - 1), [""] * len(times)
        kept = F.mse_loss(model.predict(noise, end, model.encode_prompts(empty)), frozen.predict(noise, end, empty))
        return preference + self.keep * kept

    def rise(self, model: TextToImage, frozen: Frozen, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """How much worse than the original's the denoising loss of each image is, without a prompt: (n,)."""
        noisy, target, empty = model.add_noise(clean, noise, times), model.target(clean, noise, times), [""] * len(clean)
        now = model.predict(noisy, times, model.encode_prompts(empty)) - target
        before = frozen.predict(noisy, times, empty) - target
        return (now.square() - before.square()).flatten(1).mean(1)


@torch.no_grad()
def edited(model: TextToImage, batch: Batch, strength: float, generator: torch.Generator) -> Tensor:
    """SDEdit (Meng et al. 2022, arXiv 2108.01073) by DDIM steps: a batch's latents, repainted under its anchors.

    A prediction y of x = a clean + b noise is linear in both, y = p clean + q noise, whatever the model predicts; the
    four coefficients at a time are what `add_noise` and `target` make of ones and zeros.
    """
    steps = max(1, round(strength * model.steps))
    last = model.scheduler.config.num_train_timesteps - 1
    schedule = torch.linspace(strength * last, 0, steps + 1).round().long().tolist()
    told, against = model.encode_prompts(batch.anchors), model.encode_prompts(batch.prompts)
    clean, noise = batch.latents, torch.randn(batch.latents.shape, generator=generator).to(model.device)
    one, zero = torch.ones_like(clean), torch.zeros_like(clean)
    for time in schedule[:-1]:
        times = torch.full((len(clean),), time, device=model.device)
        x = model.add_noise(clean, noise, times)
        negative = model.predict(x, times, against)
        y = negative + model.guidance * (model.predict(x, times, told) - negative)
        a, b = model.add_noise(one, zero, times), model.add_noise(zero, one, times)
        p, q = model.target(one, zero, times), model.target(zero, one, times)
        clean, noise = (q * x - b * y) / (a * q - b * p), (a * y - p * x) / (a * q - b * p)
    return clean
