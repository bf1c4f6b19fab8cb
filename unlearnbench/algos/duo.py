"""DUO: direct unlearning optimisation, preference learning on pairs of images with and without the concept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unlearnbench.algos.examples import Batch, Examples
from unlearnbench.algos.low_rank import LowRank
from unlearnbench.algos.training import Training, Unlearned
from unlearnbench.config.ranges import share_above_zero
from unlearnbench.console import progress_bar
from unlearnbench.models.base import TextToImage
from unlearnbench.models.frozen import Frozen
from unlearnbench.storage.fitting_batches import FittingBatches

EDIT_BATCH = 16  # images that are edited together, if they fit into memory


@dataclass
class DUO(LowRank):
    """Prefer the edit of an image, without the concept, to the image itself: Diffusion-DPO without a prompt.

    L = -log sigmoid(-beta (d(x+) - d(x-))) + keep |eps(x_T, "") - eps_0(x_T, "")|^2. x- is the image of the concept, x+
    its edit, and d(x) = |eps(x_t, "") - y|^2 - |eps_0(x_t, "") - y|^2 with the denoising target y, all means over pixels;
    x_T is pure noise. The edit is SDEdit by the original: noised to `strength`, then denoised under the anchor prompt with
    the concept's own prompt as the negative prompt. Low-rank updates of self-attention only. Park et al. 2024
    (arXiv 2407.21035); form and settings follow the authors' code for nudity on Stable Diffusion 1.4, where beta is 500,
    keep = 1e6 beta / 100 and lr = 3e-4 * 100 / beta.

    Ours differs: a pair shares its timestep as it shares its noise (theirs draws a timestep for each image); every edit is
    used (theirs repeats an edit until a nudity detector finds nothing); Adam without weight decay; adapters start uniform.

    Attributes:
        beta: how strictly a pair's preference binds the model to the original.
        keep: weight of the output-preserving term.
        latest: the largest timestep of a pair, as a share of all training timesteps.
        strength: the share of the diffusion that SDEdit reverses.
    """

    rank: int = 32
    beta: float = 500.0
    keep: float = 5e6
    latest: float = 0.75
    strength: float = 0.75
    needs_anchors: ClassVar[bool] = True
    passes_with_gradient: ClassVar[int] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        share_above_zero(self, "latest", "strength")

    def requires(self) -> frozenset[str]:
        """See `Unlearner.requires`."""
        return frozenset({"cfg"})

    def update(self, training: Training) -> Unlearned:
        """Append the edit of each image to its latent as further channels, then train as in `Unlearner.update`."""
        forget = training.forget
        generator = torch.Generator().manual_seed(training.generator.initial_seed())
        edits = self.edit_images(training.model, forget, generator)
        pairs = replace(forget, latents=torch.cat([forget.latents, edits], dim=1))
        return super().update(replace(training, forget=pairs))

    def edit_images(self, model: TextToImage, forget: Examples, generator: torch.Generator) -> Tensor:
        """The edited latents of all examples, (n, c, h, w)."""
        edits, fitting = [], FittingBatches("images", EDIT_BATCH)
        with progress_bar("edit training set", len(forget.prompts)) as bar:
            for batch in forget.batches(EDIT_BATCH):
                noise = torch.randn(batch.latents.shape, generator=generator).to(model.device)
                for edit in fitting.run(len(noise), partial(self.edit_part, model, batch, noise)):
                    edits.append(edit)
                    bar.advance(len(edit))
        return torch.cat(edits)

    def edit_part(self, model: TextToImage, batch: Batch, noise: Tensor, part: slice) -> Tensor:
        """The edited latents of a part of a batch, from its part of the noise."""
        return sdedit(model, batch.part(part), self.strength, noise[part])

    def loss(self, model: TextToImage, frozen: Frozen, forget: Batch, retain: Batch, generator: torch.Generator) -> Tensor:
        """The preference loss, plus the output-preserving term at pure noise."""
        originals, edits = forget.latents.chunk(2, dim=1)
        count = model.noise_scheduler.config.num_train_timesteps
        timesteps = torch.randint(int(self.latest * count), (len(edits),), generator=generator).to(model.device)
        noise = torch.randn(edits.shape, generator=generator).to(model.device)
        d_edit, d_original = (self.loss_increase(model, frozen, x, noise, timesteps) for x in (edits, originals))
        preference = -F.logsigmoid(-self.beta * (d_edit - d_original)).mean()
        last, empty = torch.full_like(timesteps, count - 1), [""] * len(timesteps)
        prediction, target = model.predict(noise, last, model.encode_prompts(empty)), frozen.predict(noise, last, empty)
        return preference + self.keep * F.mse_loss(prediction, target)

    def loss_increase(self, model: TextToImage, frozen: Frozen, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """d(x): the model's unconditional denoising loss of each image minus the original's, (n,)."""
        noisy_latents, target = model.add_noise(latents, noise, timesteps), model.target(latents, noise, timesteps)
        empty = [""] * len(latents)
        error = model.predict(noisy_latents, timesteps, model.encode_prompts(empty)) - target
        original_error = frozen.predict(noisy_latents, timesteps, empty) - target
        return (error.square() - original_error.square()).flatten(1).mean(1)


@torch.no_grad()
def sdedit(model: TextToImage, batch: Batch, strength: float, noise: Tensor) -> Tensor:
    """SDEdit (Meng et al. 2022, arXiv 2108.01073) with DDIM steps from noise (n, c, h, w): latents, edited toward the anchors.

    The noisy latents x = a latents + b noise and the prediction y = p latents + q noise are linear in both, whatever the
    model predicts. `add_noise` and `target` of ones and zeros give the four coefficients at a timestep.
    """
    steps = max(1, round(strength * model.steps))
    last = model.noise_scheduler.config.num_train_timesteps - 1
    schedule = torch.linspace(strength * last, 0, steps + 1).round().long().tolist()
    cond, uncond = model.encode_prompts(batch.anchors), model.encode_prompts(batch.prompts)
    latents = batch.latents
    one, zero = torch.ones_like(latents), torch.zeros_like(latents)
    for timestep in schedule[:-1]:
        timesteps = torch.full((len(latents),), timestep, device=model.device)
        x = model.add_noise(latents, noise, timesteps)
        pred_uncond = model.predict(x, timesteps, uncond)
        y = pred_uncond + model.guidance * (model.predict(x, timesteps, cond) - pred_uncond)
        a, b = model.add_noise(one, zero, timesteps), model.add_noise(zero, one, timesteps)
        p, q = model.target(one, zero, timesteps), model.target(zero, one, timesteps)
        latents, noise = (q * x - b * y) / (a * q - b * p), (a * y - p * x) / (a * q - b * p)
    return latents
