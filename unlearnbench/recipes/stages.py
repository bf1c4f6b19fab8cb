"""What the recipes of the embedded worlds share beside the loop: latents, CLIP, and how a model is saved."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing import Pool
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig

from unlearnbench.console import progress_bar
from unlearnbench.pictoworld.architecture import make_scheduler
from unlearnbench.pictoworld.classifier import to_unit
from unlearnbench.recipes.training_loop import Batch, average_into, fit
from unlearnbench.storage.atomic import atomic_path
from unlearnbench.storage.tensors import quantize_8bit, write_tensors

S = TypeVar("S")  # a scene
R = TypeVar("R")  # what a renderer returns


def render_scenes(render: Callable[[int], R], numbers: range) -> list[R]:
    """What `render` returns for each number, in their order, by all cores; Ctrl-C ends them without a word of their own."""
    quiet = signal.SIGINT, signal.SIG_IGN
    with progress_bar("render scenes", len(numbers)) as shown, Pool(os.cpu_count(), signal.signal, quiet) as pool:
        rendered = []
        for one in pool.imap(render, numbers, chunksize=64):
            rendered.append(one)
            shown.advance()
    return rendered


def encode(work: Path, vae: AutoencoderKL, images: Tensor, device: torch.device) -> Tensor:
    """The scaled latent means of all scenes, (n, 8, 16, 16), on the CPU; the device computes them."""
    path = work / "latents.safetensors"
    if not path.exists():
        vae.to(device)
        means = []
        with torch.no_grad(), progress_bar("encode scenes", len(images)) as shown:
            for batch in images.split(128):
                means.append(vae.encode(to_unit(batch).to(device)).latent_dist.mean.cpu())
                shown.advance(len(batch))
        vae.cpu()
        write_tensors(path, {"latents": torch.cat(means) * vae.config.scaling_factor})
    return load_file(path)["latents"]


def replacements(world: Sequence[S], excluded: Sequence[Callable[[S], bool]]) -> list[int]:
    """For each scene its own number, or that of another scene if it shows an excluded concept."""
    retained = [i for i, scene in enumerate(world) if not any(shows(scene) for shows in excluded)]
    retained_set = set(retained)
    return [i if i in retained_set else retained[i % len(retained)] for i in range(len(world))]


def draw_scenes(shown: Sequence[int], count: int, weights: Tensor | None, generator: torch.Generator) -> list[int]:
    """The numbers of a batch of scenes.

    Args:
        shown: the scene that stands for each (see `replacements`).
        count: how many to draw, with replacement.
        weights: how often each is drawn, relative to the others; None for equally often.
        generator: of the draw.
    """
    if weights is None:
        drawn = torch.randint(len(shown), (count,), generator=generator)
    else:
        drawn = torch.multinomial(weights, count, replacement=True, generator=generator)
    return [shown[number] for number in drawn.tolist()]


def draw_captions(
    numbers: Sequence[int],
    captioned: Callable[[int, np.random.Generator], str],
    tokenizer: CLIPTokenizer,
    generator: torch.Generator,
) -> Tensor:
    """The tokens (n, length) of a new caption of each scene, by its number; one in ten is empty, for guidance."""
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    captions = ["" if rng.random() < 0.1 else captioned(number, rng) for number in numbers]
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def draw_timesteps(count: int, power: float, generator: torch.Generator) -> Tensor:
    """Timesteps (n,) in 0..999, evenly spread over a batch, with a density proportional to t^(1 / power - 1)."""
    spread = (torch.rand((), generator=generator) + torch.arange(count) / count) % 1
    return (1000 * spread**power).long()


def degradation_noise(generator: torch.Generator) -> Batch:
    """The noise for `degraded` on 96 images: of the latents of a third of them, and of all pixels."""
    return torch.randn(32, 8, 16, 16, generator=generator), torch.randn(96, 3, 64, 64, generator=generator)


def degraded(vae: AutoencoderKL, pixels: Tensor, latent_noise: Tensor, noise: Tensor) -> Tensor:
    """The batch with noise, a third of it passed through the autoencoder, to resemble the model's samples."""
    third = len(latent_noise)
    with torch.no_grad():
        latent = vae.encode(pixels[:third]).latent_dist.mean + 0.1 / vae.config.scaling_factor * latent_noise
        degraded = torch.cat([vae.decode(latent).sample, pixels[third:]])
    return (degraded + 0.03 * noise).clamp(-1, 1)


def train_clip(
    work: Path,
    images: Tensor,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    captioned: Callable[[int, np.random.Generator], str],
    steps: int,
) -> CLIPModel:
    """The contrastive loss of CLIP (Radford et al. 2021) between images and detailed captions.

    Args:
        work: the folder of checkpoints.
        images: uint8 (n, 64, 64, 3).
        vae: makes a third of the images resemble a model's samples.
        tokenizer: the model's.
        captioned: a new caption of the image with this number.
        steps: of training.
    """
    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length, eos_token_id=end, bos_token_id=0, pad_token_id=end,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4, image_size=64, patch_size=8
    )
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128))

    def draw(generator: torch.Generator) -> Batch:
        index = torch.randint(len(images), (96,), generator=generator)
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        captions = [captioned(i, rng) for i in index.tolist()]
        tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        return tokens.input_ids, tokens.attention_mask, index, *degradation_noise(generator)

    def loss(ids: Tensor, mask: Tensor, index: Tensor, latent_noise: Tensor, noise: Tensor) -> Tensor:
        pixels = degraded(vae, to_unit(images[index]), latent_noise, noise)
        return model(ids, pixels, mask, return_loss=True).loss

    return average_into(model, fit("clip", work, model, draw, loss, steps, 1e-3))  # type: ignore[return-value]


def save_pipeline(
    folder: Path, vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel
) -> None:
    """Write a model in the folder layout of diffusers, fp16; afterwards the modules are fp32 again, rounded."""
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=make_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    vae.register_to_config(_name_or_path="")  # no path of this machine
    with atomic_path(folder) as part:
        pipeline.to(torch.float16).save_pretrained(part, safe_serialization=True)
    pipeline.to(torch.float32)


def write_oracle(path: Path, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
    """Write the weights of a retrained denoiser and its text encoder, in 8 bits."""
    parts = {"unet": unet, "text_encoder": text_encoder}
    tensors = {f"{part}.{name}": value.half() for part, module in parts.items() for name, value in module.named_parameters()}
    write_tensors(path, quantize_8bit(tensors))


def save_clip(folder: Path, clip: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    """Write a CLIP with its tokenizer in the folder layout of transformers, fp16."""
    with atomic_path(folder) as part:
        clip.half().save_pretrained(part, safe_serialization=True)
        tokenizer.save_pretrained(part)
