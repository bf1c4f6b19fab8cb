"""Training of the embedded model and its evaluators.

The stages are scenes, vae, diffusion, classifier, clip; each can be resumed, and is skipped if its file exists.
`without="church"` trains only the diffusion stage, on the same batches and noise, with every scene of the concept
replaced by another: the retrained oracle.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig

from unlearnbench.config.errors import RunError
from unlearnbench.console import progress_bar
from unlearnbench.models.diffusers_model import fp32_precision
from unlearnbench.pictoworld.architecture import TOKENS, make_scheduler, make_text_encoder, make_tokenizer, make_unet, make_vae
from unlearnbench.pictoworld.captions import caption
from unlearnbench.pictoworld.classifier import WEIGHTS, Classifier, to_unit
from unlearnbench.pictoworld.render import ATTRIBUTES, render
from unlearnbench.pictoworld.scenes import CONCEPTS, SCENES, scene
from unlearnbench.storage.atomic import atomic_path
from unlearnbench.storage.tensors import quantize_8bit, write_tensors
from unlearnbench.storage.training_state import load_training_state, save_training_state

Batch = tuple[Tensor, ...]
EVERY = 60.0  # seconds between two checkpoints
CPU = torch.device("cpu")
HARD = ("house", "church", "triangle", "person", "nude")
STEPS = {"vae": 1_800, "diffusion": 3_250, "refine": 5_000, "polish": 1_500, "settle": 4_000, "classifier": 1_200, "clip": 1_200}


def _render(index: int) -> np.ndarray:
    return render(scene(index), np.random.default_rng([2, index]))


def scenes(work: Path, count: int) -> Tensor:
    """The images of the first `count` scenes: uint8, (count, 64, 64, 3)."""
    path = work / "scenes.safetensors"
    if not path.exists():
        with progress_bar("render scenes", count) as shown, Pool(os.cpu_count()) as pool:
            images = []
            for image in pool.imap(_render, range(count), chunksize=64):
                images.append(image)
                shown.advance()
        write_tensors(path, {"images": torch.from_numpy(np.stack(images))})
    return load_file(path)["images"]


# --- the training loop ------------------------------------------------------------------------------------------------


def fit(
    name: str,
    work: Path,
    module: nn.Module,
    draw: Callable[[torch.Generator], Batch],
    loss: Callable[..., Tensor],
    steps: int,
    lr: float,
    decay: float = 0.999,
    horizon: int = 0,
    seed: int = 0,
) -> dict[str, Tensor]:
    """AdamW with a one-cycle schedule and an exponential moving average; returns the averaged parameters.

    Once a minute the state is saved to `work`/<name>.checkpoint.safetensors, from which an interrupted call resumes. A state
    whose loss is not finite is never saved.

    Args:
        name: the name of the stage, for its checkpoint and the progress bar.
        work: the folder of checkpoints.
        module: the trained module.
        draw: returns a batch, tensors on the CPU.
        loss: from a batch to a scalar.
        steps: how many steps.
        lr: the peak learning rate.
        decay: of the moving average.
        horizon: the learning rate falls as a cosine over so many steps; by default `steps`.
        seed: of the batches.

    Raises:
        RunError: the loss is NaN or infinite.
    """
    parameters = dict(module.named_parameters())
    device = next(iter(parameters.values())).device
    average = {key: value.detach().clone() for key, value in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr, weight_decay=1e-3, fused=device.type == "cuda" or None)
    generator = torch.Generator().manual_seed(seed)
    path = work / f"{name}.checkpoint.safetensors"
    state = {**parameters, **{f"average.{k}": v for k, v in average.items()}}
    saved = load_training_state(path, state, optimizer, generator)
    first = int(saved[0]["step"]) if saved else 0
    backward = (_recorded if device.type == "cuda" else _plain)(loss, list(parameters.values()))
    saved_at = time.monotonic()
    with progress_bar(f"train {name}", steps, first) as shown:
        for step in range(first, steps):
            for group in optimizer.param_groups:
                group["lr"] = _learning_rate(step, lr, horizon or steps)
            value = backward(draw(generator))
            optimizer.step()
            with torch.no_grad():
                rate = min(decay, (step + 1) / (step + 10))
                torch._foreach_lerp_(list(average.values()), [p.detach() for p in parameters.values()], 1 - rate)
            is_saved = step + 1 == steps or time.monotonic() - saved_at > EVERY
            remark = f"loss {_finite(value, name, step + 1):.4f}" if step % 25 == 0 or is_saved else None  # waits for the GPU
            if is_saved:
                save_training_state(path, state, optimizer, generator, {"step": step + 1})
                saved_at = time.monotonic()
            shown.advance(remark=remark)
    return average


def _learning_rate(step: int, peak: float, horizon: int) -> float:
    """The learning rate rises over a twentieth of the horizon, and falls to a hundredth of its peak as a cosine."""
    warm = min(1.0, (step + 1) / (0.05 * horizon))
    return peak * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / horizon)))


def _finite(loss: Tensor, name: str, step: int) -> float:
    """The loss as a number.

    Raises:
        RunError: it is NaN or infinite.
    """
    number = float(loss)
    if not math.isfinite(number):
        raise RunError(f"train {name}: the loss became {number} by step {step}")
    return number


def _plain(loss: Callable[..., Tensor], parameters: Sequence[nn.Parameter]) -> Callable[[Batch], Tensor]:
    """A function that computes the gradients for a batch, clipped to norm 1, and returns the loss."""

    def backward(batch: Batch) -> Tensor:
        for parameter in parameters:
            parameter.grad = None
        value = loss(*batch)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        return value.detach()

    return backward


def _recorded(loss: Callable[..., Tensor], parameters: Sequence[nn.Parameter]) -> Callable[[Batch], Tensor]:
    """The same on a GPU, as a CUDA graph captured at the first batch: a model this small is otherwise limited by Python."""
    device, plain, graph = parameters[0].device, _plain(loss, parameters), torch.cuda.CUDAGraph()
    static: Batch = ()
    value = torch.empty(0)

    def backward(batch: Batch) -> Tensor:
        nonlocal static, value
        if not static:
            static = tuple(x.to(device) for x in batch)
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(3):
                    plain(static)
            torch.cuda.current_stream(device).wait_stream(stream)
            with torch.cuda.graph(graph):
                value = plain(static)
        for buffer, x in zip(static, batch, strict=True):
            buffer.copy_(x.pin_memory(), non_blocking=True)
        graph.replay()
        return value

    return backward


def average_into(module: nn.Module, average: dict[str, Tensor]) -> nn.Module:
    """Give the module its averaged parameters, and make it ready to be used."""
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(average[name])
    return module.eval().requires_grad_(False)


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


def encode(work: Path, vae: AutoencoderKL, images: Tensor, device: torch.device) -> Tensor:
    """The scaled latent means of all scenes, (n, 8, 16, 16), on the CPU; the device computes them."""
    path = work / "latents.safetensors"
    if not path.exists():
        vae.to(device)
        with torch.no_grad():
            means = [vae.encode(to_unit(batch).to(device)).latent_dist.mean.cpu() for batch in images.split(128)]
        vae.cpu()
        write_tensors(path, {"latents": torch.cat(means) * vae.config.scaling_factor})
    return load_file(path)["latents"]


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
    excluded = [CONCEPTS[name] for name in without.split("+")] if without else []
    world = [scene(i) for i in range(len(latents))]
    retained = [i for i, s in enumerate(world) if not any(shows(s) for shows in excluded)]
    retained_set = set(retained)
    replacement = [i if i in retained_set else retained[i % len(retained)] for i in range(len(world))]
    hard = torch.tensor([3.0 if s.subject in HARD or s.background == "black" else 1.0 for s in world])
    small = torch.tensor([2.0 if s.size == "small" else 1.0 for s in world])

    def draw(batch: int, power: float, weights: Tensor | None, generator: torch.Generator) -> Batch:
        if weights is None:
            drawn = torch.randint(len(latents), (batch,), generator=generator)
        else:
            drawn = torch.multinomial(weights, batch, replacement=True, generator=generator)
        chosen = [replacement[i] for i in drawn.tolist()]
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        captions = ["" if rng.random() < 0.1 else caption(world[i], rng) for i in chosen]
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        noise = torch.randn(batch, 8, 16, 16, generator=generator)
        spread = (torch.rand((), generator=generator) + torch.arange(batch) / batch) % 1
        return latents[chosen], ids, noise, (1000 * spread**power).long()

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


def _degradation_noise(generator: torch.Generator) -> Batch:
    """The noise for `_degraded` on 96 images: of the latents of a third of them, and of all pixels."""
    return torch.randn(32, 8, 16, 16, generator=generator), torch.randn(96, 3, 64, 64, generator=generator)


def _degraded(vae: AutoencoderKL, pixels: Tensor, latent_noise: Tensor, noise: Tensor) -> Tensor:
    """The batch with noise, a third of it passed through the autoencoder, to resemble the model's samples."""
    third = len(latent_noise)
    with torch.no_grad():
        latent = vae.encode(pixels[:third]).latent_dist.mean + 0.1 / vae.config.scaling_factor * latent_noise
        degraded = torch.cat([vae.decode(latent).sample, pixels[third:]])
    return (degraded + 0.03 * noise).clamp(-1, 1)


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
        return torch.randint(len(images), (96,), generator=generator), *_degradation_noise(generator)

    def loss(index: Tensor, latent_noise: Tensor, noise: Tensor) -> Tensor:
        logits = model(_degraded(vae, to_unit(images[index]), latent_noise, noise))
        return torch.stack([F.cross_entropy(logits[n], labels[n][index]) for n in ATTRIBUTES]).sum()

    return average_into(model, fit("classifier", work, model, draw, loss, STEPS["classifier"], 2e-3))  # type: ignore[return-value]


def train_clip(work: Path, images: Tensor, vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> CLIPModel:
    """The contrastive loss of CLIP (Radford et al. 2021) between images and detailed captions."""
    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=TOKENS, eos_token_id=end, bos_token_id=0, pad_token_id=end,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4, image_size=64, patch_size=8
    )
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128))
    world = [scene(i) for i in range(len(images))]

    def draw(generator: torch.Generator) -> Batch:
        index = torch.randint(len(images), (96,), generator=generator)
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        captions = [caption(world[i], rng, keep=rng.uniform(0.5, 1)) for i in index.tolist()]
        tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        return tokens.input_ids, tokens.attention_mask, index, *_degradation_noise(generator)

    def loss(ids: Tensor, mask: Tensor, index: Tensor, latent_noise: Tensor, noise: Tensor) -> Tensor:
        pixels = _degraded(vae, to_unit(images[index]), latent_noise, noise)
        return model(ids, pixels, mask, return_loss=True).loss

    return average_into(model, fit("clip", work, model, draw, loss, STEPS["clip"], 1e-3))  # type: ignore[return-value]


# --- all of it --------------------------------------------------------------------------------------------------------


def train_pictoworld(work: Path, out: Path = WEIGHTS, without: str | None = None, device: torch.device = CPU) -> None:
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
        parts = {"unet": unet, "text_encoder": text}
        tensors = {f"{part}.{name}": value.half() for part, module in parts.items() for name, value in module.named_parameters()}
        write_tensors(out / "oracles" / f"{without}.safetensors", quantize_8bit(tensors))
        return
    tokenizer = make_tokenizer()
    vae = train_vae(work, images)
    if not (out / "pipeline").exists():
        unet, text = train_diffusion(work, encode(work, vae, images, device), tokenizer, None, device)
        pipeline = StableDiffusionPipeline(
            vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=make_scheduler(),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        with atomic_path(out / "pipeline") as folder:
            pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
        vae.float()
    if not (out / "classifier.safetensors").exists():
        classifier = train_classifier(work, images, vae)
        write_tensors(out / "classifier.safetensors", {k: v.half() for k, v in classifier.state_dict().items()})
    if not (out / "clip").exists():
        clip = train_clip(work, images, vae, tokenizer)
        with atomic_path(out / "clip") as folder:
            clip.half().save_pretrained(folder, safe_serialization=True)
            tokenizer.save_pretrained(folder)
