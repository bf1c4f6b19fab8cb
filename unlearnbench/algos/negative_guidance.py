"""ESD's target, and the partially denoised latents at which it is evaluated."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from unlearnbench.algos.state import NOT_SAVED
from unlearnbench.console import progress_bar
from unlearnbench.models.base import Conditioning, SamplingGuidance, TextToImage
from unlearnbench.models.frozen import Frozen
from unlearnbench.storage.fitting_batches import FittingBatches

SAMPLED_TOGETHER = 32  # partial samples that end after the same step, if they fit into memory


@dataclass
class PartialSamples:
    """Partially denoised latents of prompts.

    Attributes:
        prompts: one for each latent.
        latents: (n, c, h, w).
        timesteps: their training timesteps, (n,).
    """

    prompts: list[str] = field(metadata=NOT_SAVED)
    latents: Tensor = field(metadata=NOT_SAVED)
    timesteps: Tensor = field(metadata=NOT_SAVED)

    def draw(self, count: int, generator: torch.Generator) -> PartialSamples:
        """A random part, drawn with replacement."""
        rows = torch.randint(len(self.prompts), (count,), generator=generator)
        places = rows.to(self.latents.device)
        return PartialSamples([self.prompts[row] for row in rows.tolist()], self.latents[places], self.timesteps[places])


def negative_guidance_target(
    frozen: Frozen, noisy_latents: Tensor, timesteps: Tensor, prompts: list[str], eta: float, source: str
) -> Tensor:
    """The original's negatively guided prediction: eps_0(x_t, c_from) - eta (eps_0(x_t, c) - eps_0(x_t, "")).

    Args:
        frozen: the original.
        noisy_latents: x_t, (n, c, h, w).
        timesteps: t, (n,).
        prompts: c, one for each latent.
        eta: strength of the negative guidance.
        source: c_from: "empty" for the empty prompt, "concept" for c.
    """
    pred_cond = frozen.predict(noisy_latents, timesteps, prompts)
    pred_uncond = frozen.predict(noisy_latents, timesteps, [""] * len(noisy_latents))
    return (pred_uncond if source == "empty" else pred_cond) - eta * (pred_cond - pred_uncond)


def partially_denoise(
    model: TextToImage,
    prompts: list[str],
    steps: int,
    scale: float,
    generator: torch.Generator,
    guidance: SamplingGuidance | None = None,
) -> tuple[Tensor, Tensor]:
    """The model's own latents (n, c, h, w) after a random number of its `steps`, and their training timestep (n,)."""
    stop = int(torch.randint(steps, (), generator=generator))
    seeds = torch.randint(2**31, (len(prompts),), generator=generator).tolist()
    with torch.no_grad():
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        latents = model.sample_latents(prompts, generators, steps, scale, guidance, stop_after=stop)
    return latents, model.timestep_after(stop, steps).expand(len(prompts))


@torch.no_grad()
def partially_denoise_embeds(
    model: TextToImage, cond: Conditioning, steps: int, scale: float, generator: torch.Generator, stop: int
) -> tuple[Tensor, Tensor]:
    """The model's own latents (n, c, h, w) for a conditioning after `stop` of its `steps`, and their training timestep (n,)."""
    count = len(cond["prompt_embeds"])
    seeds = torch.randint(2**31, (count,), generator=generator).tolist()
    generators, empty = [torch.Generator().manual_seed(seed) for seed in seeds], model.encode_prompts([""])
    latents = model.denoise(cond, empty, generators, steps, scale, stop_after=stop)
    return latents, model.timestep_after(stop, steps).expand(count)


@torch.no_grad()
def original_partial_samples(
    model: TextToImage, prompts: list[str], steps: int, scale: float, generator: torch.Generator
) -> PartialSamples:
    """Latents of the prompts, each after a random number of `steps` of the model, which is still the original.

    Those that end after the same step are sampled together, in batches that fit into memory.
    """
    stops = torch.randint(steps, (len(prompts),), generator=generator)
    seeds = torch.randint(2**31, (len(prompts),), generator=generator).tolist()
    latents = torch.empty(len(prompts), *model.latent_shape(), device=model.device)
    timesteps = torch.stack([model.timestep_after(stop, steps) for stop in range(steps)])[stops.to(model.device)]
    fitting = FittingBatches("samples", SAMPLED_TOGETHER)

    def sample_part(stop: int, rows: Tensor, part: slice) -> int:
        texts = [prompts[row] for row in rows[part].tolist()]
        generators = [torch.Generator().manual_seed(seeds[row]) for row in rows[part].tolist()]
        latents[rows[part].to(model.device)] = model.sample_latents(texts, generators, steps, scale, stop_after=stop)
        return len(texts)

    with progress_bar("sample partly", len(prompts)) as bar:
        for stop in stops.unique().tolist():
            rows = (stops == stop).nonzero()[:, 0]
            for count in fitting.run(len(rows), partial(sample_part, stop, rows)):
                bar.advance(count)
    return PartialSamples(prompts, latents, timesteps)
