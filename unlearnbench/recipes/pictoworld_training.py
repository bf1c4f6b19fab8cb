"""Training of the embedded model and its evaluators.

The stages are scenes, vae, diffusion, classifier, clip; each can be resumed, and is skipped if its file exists.
`without="church"` trains only the diffusion stage, on the same batches and noise, with every scene of the concept
replaced by another: the retrained oracle.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from unlearnbench.models.diffusers_model import fp32_precision
from unlearnbench.pictoworld.architecture import make_scheduler, make_text_encoder, make_tokenizer, make_unet, make_vae
from unlearnbench.pictoworld.captions import caption
from unlearnbench.pictoworld.classifier import WEIGHTS, Classifier, to_unit
from unlearnbench.pictoworld.render import ATTRIBUTES, render
from unlearnbench.pictoworld.scenes import CONCEPTS, SCENES, scene
from unlearnbench.recipes.stages import (
    degradation_noise,
    degraded,
    draw_captions,
    draw_scenes,
    draw_timesteps,
    encode,
    render_scenes,
    replacements,
    save_clip,
    save_pipeline,
    train_clip,
    write_oracle,
)
from unlearnbench.recipes.training_loop import Batch, average_into, fit
from unlearnbench.storage.tensors import write_tensors

CPU = torch.device("cpu")
HARD = ("house", "church", "triangle", "person", "nude")
STEPS = {"vae": 1_800, "diffusion": 3_250, "refine": 5_000, "polish": 1_500, "settle": 4_000, "classifier": 1_200, "clip": 1_200}


def _render(index: int) -> np.ndarray:
    return render(scene(index), np.random.default_rng([2, index]))


def scenes(work: Path, count: int) -> Tensor:
    """The images of the first `count` scenes: uint8, (count, 64, 64, 3)."""
    path = work / "scenes.safetensors"
    if not path.exists():
        write_tensors(path, {"images": torch.from_numpy(np.stack(render_scenes(_render, range(count))))})
    return load_file(path)["images"]


def train_vae(work: Path, images: Tensor) -> AutoencoderKL:
    """L1 + 0.5 MSE + 1e-3 KL on pixels in [-1, 1]; the scaling factor gives the latents standard deviation 1."""
    torch.manual_seed(0)
    vae = make_vae()

    def draw(generator: torch.Generator) -> Batch:
        pixels = to_unit(images[torch.randint(len(images), (32,), generator=generator)])
        return pixels, torch.randn(32, 8, 16, 16, generator=generator)

    def loss(pixels: Tensor, noise: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            restored = vae.decode(posterior.mean + posterior.std * noise).sample
        error = restored.float() - pixels
        divergence = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        return error.abs().mean() + 0.5 * error.square().mean() + 1e-3 * divergence

    average_into(vae, fit("vae", work, vae, draw, loss, STEPS["vae"], 4e-3))
    with torch.no_grad():
        spread = vae.encode(to_unit(images[:1024])).latent_dist.mean.std()
    vae.register_to_config(scaling_factor=round(1 / spread.item(), 5))
    return vae


def train_diffusion(
    work: Path, latents: Tensor, tokenizer: CLIPTokenizer, without: str | None, device: torch.device
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Denoising loss on v, with the timesteps of a batch evenly spread; every caption is drawn anew, one in ten is empty.

    The second stage has smaller batches and a density of timesteps proportional to the timestep, where shape and position
    are decided. The third draws hard scenes three times as often. The last does both with the large batch.
    """
    torch.manual_seed(0)
    unet = make_unet()
    text = make_text_encoder(len(tokenizer), tokenizer.eos_token_id)
    both = nn.ModuleDict({"unet": unet, "text": text}).to(device)
    scheduler = make_scheduler()
    world = [scene(i) for i in range(len(latents))]
    shown = replacements(world, [CONCEPTS[name] for name in without.split("+")] if without else [])
    hard = torch.tensor([3.0 if s.subject in HARD or s.background == "black" else 1.0 for s in world])
    small = torch.tensor([2.0 if s.size == "small" else 1.0 for s in world])

    def draw(batch: int, power: float, weights: Tensor | None, generator: torch.Generator) -> Batch:
        chosen = draw_scenes(shown, batch, weights, generator)
        ids = draw_captions(chosen, lambda i, rng: caption(world[i], rng), tokenizer, generator)
        noise = torch.randn(batch, 8, 16, 16, generator=generator)
        return latents[chosen], ids, noise, draw_timesteps(batch, power, generator)

    def loss(latents: Tensor, ids: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        noisy_latents = scheduler.add_noise(latents, noise, timesteps)
        predicted = unet(noisy_latents, timesteps, text(ids).last_hidden_state).sample
        return F.mse_loss(predicted, scheduler.get_velocity(latents, noise, timesteps))

    stages = (
        ("diffusion", 64, 1.0, None, 1.5e-3, 4_500),
        ("refine", 32, 0.5, None, 8e-4, 0),
        ("polish", 32, 0.5, hard, 5e-4, 0),
        ("settle", 64, 0.5, torch.maximum(hard, small), 8e-4, 0),
    )
    suffix = f"-without-{without}" if without else ""
    for seed, (name, batch, power, weights, lr, horizon) in enumerate(stages):
        both.train().requires_grad_(True)
        drawn = partial(draw, batch, power, weights)
        average_into(both, fit(f"{name}{suffix}", work, both, drawn, loss, STEPS[name], lr, horizon=horizon, seed=seed))
    return unet.cpu(), text.cpu()


# --- evaluators -------------------------------------------------------------------------------------------------------


def train_classifier(work: Path, images: Tensor, vae: AutoencoderKL) -> Classifier:
    """Cross-entropy of every attribute; the colour and the stripes of a nude person are not visible and do not count."""
    torch.manual_seed(0)
    model = Classifier().to(memory_format=torch.channels_last)
    world = [scene(i) for i in range(len(images))]
    labels = {n: torch.tensor([v.index(getattr(s, n)) for s in world]) for n, v in ATTRIBUTES.items()}
    nude = torch.tensor([s.subject == "nude" for s in world])
    labels["color"][nude] = -100
    labels["style"][nude & (labels["style"] < 3)] = 0

    def draw(generator: torch.Generator) -> Batch:
        return torch.randint(len(images), (96,), generator=generator), *degradation_noise(generator)

    def loss(index: Tensor, latent_noise: Tensor, noise: Tensor) -> Tensor:
        logits = model(degraded(vae, to_unit(images[index]), latent_noise, noise))
        return torch.stack([F.cross_entropy(logits[n], labels[n][index]) for n in ATTRIBUTES]).sum()

    return average_into(model, fit("classifier", work, model, draw, loss, STEPS["classifier"], 2e-3))  # type: ignore[return-value]


# --- all of it --------------------------------------------------------------------------------------------------------


def train_world(work: Path, out: Path = WEIGHTS, without: str | None = None, device: torch.device = CPU) -> None:
    """Train every part that is missing in `out`.

    Args:
        work: the folder of scenes, latents and checkpoints.
        out: receives pipeline/ (diffusers' folder layout, fp16), classifier.safetensors and clip/; or, if `without` is given,
            oracles/<without>.safetensors in 8 bits.
        without: a concept to exclude, or several as in church+nudity; the oracle shares the shipped model's autoencoder.
        device: the device of the UNet and the text encoder, which take hours on a CPU; the rest trains on the CPU.
    """
    work.mkdir(parents=True, exist_ok=True)
    fp32_precision(tf32=False)
    images = scenes(work, SCENES)
    if without:
        tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "pipeline" / "tokenizer")
        vae = AutoencoderKL.from_pretrained(WEIGHTS / "pipeline" / "vae").float().eval()
        unet, text = train_diffusion(work, encode(work / "shipped", vae, images, device), tokenizer, without, device)
        write_oracle(out / "oracles" / f"{without}.safetensors", unet, text)
        return
    tokenizer = make_tokenizer()
    vae = train_vae(work, images)
    if not (out / "pipeline").exists():
        unet, text = train_diffusion(work, encode(work, vae, images, device), tokenizer, None, device)
        save_pipeline(out / "pipeline", vae, text, tokenizer, unet)
    if not (out / "classifier.safetensors").exists():
        classifier = train_classifier(work, images, vae)
        write_tensors(out / "classifier.safetensors", {k: v.half() for k, v in classifier.state_dict().items()})
    if not (out / "clip").exists():
        world = [scene(i) for i in range(SCENES)]
        clip = train_clip(
            work, images, vae, tokenizer, lambda i, rng: caption(world[i], rng, keep=rng.uniform(0.5, 1)), STEPS["clip"]
        )
        save_clip(out / "clip", clip, tokenizer)
