"""Training of Pictoscenes: its detector, its autoencoder, its denoiser and its CLIP.

Each stage can be resumed, and is skipped if its file exists. `without="church"` trains the denoiser alone, on the same batches
and noise, with every scene of the concept replaced by another: the retrained oracle.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from unlearnbench.config.errors import UserError
from unlearnbench.models.diffusers_model import fp32_precision
from unlearnbench.pictoscenes.architecture import (
    LATENT_CHANNELS,
    LATENT_SIZE,
    WIDTH,
    make_text_encoder,
    make_tokenizer,
    make_unet,
)
from unlearnbench.pictoscenes.captions import caption
from unlearnbench.pictoscenes.detector import OF_SUBJECT, WEIGHTS
from unlearnbench.pictoscenes.render import SIZE
from unlearnbench.pictoscenes.scenes import CONCEPTS, Scene, scene
from unlearnbench.pictoworld.architecture import make_scheduler
from unlearnbench.pictoworld.classifier import WEIGHTS as OF_PICTOWORLD
from unlearnbench.pictoworld.classifier import to_unit
from unlearnbench.recipes.pictoscenes_detector import SCENES, rendered_scenes, train_detector
from unlearnbench.recipes.stages import (
    draw_captions,
    draw_scenes,
    draw_timesteps,
    encode,
    replacements,
    save_clip,
    save_pipeline,
    train_clip,
    write_oracle,
)
from unlearnbench.recipes.training_loop import Batch, average_into, fit
from unlearnbench.storage.tensors import write_tensors

STEPS = {"vae": 1_500, "diffusion": 10_000, "refine": 1_100, "clip": 1_500}
BATCH = 64
CPU = torch.device("cpu")
VAE = "pipeline/vae"
HARD = {"church": 4.0, "whale": 4.0, "cup": 3.0, "ring": 2.0, "house": 2.0, "moon": 2.0, "bird": 2.0, "cat": 2.0}
"""How often the last stage draws scenes with a subject that the model learns late, against scenes without one."""
LAYOUT = ("subject", "color", "pattern")
LAYOUT_SIZE = LATENT_SIZE // 2  # of the features from which the layout is read


def train_vae(work: Path, images: Tensor) -> AutoencoderKL:
    """Pictoworld's autoencoder, trained further on scenes; the scaling factor gives the latents standard deviation 1.

    The loss is L1 + 0.5 MSE of the pixels in [-1, 1], half the L1 of the differences between neighbours, for crisp edges, and
    1e-4 KL.
    """
    vae = AutoencoderKL.from_pretrained(OF_PICTOWORLD / "pipeline" / "vae").float().train().requires_grad_(True)

    def draw(generator: torch.Generator) -> Batch:
        pixels = to_unit(images[torch.randint(len(images), (32,), generator=generator)])
        return pixels, torch.randn(32, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE, generator=generator)

    def loss(pixels: Tensor, noise: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            restored = vae.decode(posterior.mean + posterior.std * noise).sample
        error = restored.float() - pixels
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        divergence = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean()
        return error.abs().mean() + 0.5 * error.square().mean() + 0.5 * edges + 1e-4 * divergence

    average_into(vae, fit("vae", work, vae, draw, loss, STEPS["vae"], 2e-3))
    with torch.no_grad():
        spread = vae.encode(to_unit(images[:1024])).latent_dist.mean.std()
    vae.register_to_config(scaling_factor=round(1 / spread.item(), 5))
    return vae


def layout_maps(scenes: list[Scene], boxes: Tensor) -> Tensor:
    """Which subject, colour and pattern each place of the middle features shows: (n, 3, 8, 8), 0 where there is no subject."""
    centre = (torch.arange(LAYOUT_SIZE) + 0.5) * SIZE / LAYOUT_SIZE
    maps = torch.zeros(len(scenes), len(LAYOUT), LAYOUT_SIZE, LAYOUT_SIZE, dtype=torch.uint8)
    for row, one in enumerate(scenes):
        for obj, (x, y, half) in zip(one.objects, boxes[row].tolist(), strict=False):
            inside = ((centre - y).abs() <= half)[:, None] & ((centre - x).abs() <= half)
            for channel, name in enumerate(LAYOUT):
                maps[row, channel, inside] = 0 if name in obj.hidden else 1 + OF_SUBJECT[name].index(getattr(obj, name))
    return maps


class Denoiser(nn.Module):
    """The UNet, its text encoder, and a head for training alone that reads the layout from the features in the middle.

    That the features at high noise must say what will stand where makes the text decide the layout early in training (the
    idea of REPA, Yu et al. 2024, arXiv 2410.06940: align features inside the denoiser with a representation of the image).
    """

    def __init__(self) -> None:
        super().__init__()
        self.unet, self.text_encoder = make_unet(), make_text_encoder()
        self.layout = nn.ModuleDict({name: nn.Conv2d(WIDTH, 1 + len(OF_SUBJECT[name]), 1) for name in LAYOUT})

    def forward(self, latents: Tensor, timesteps: Tensor, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The predicted velocity (n, 8, 16, 16), and the logits of the layout, (n, values, 8, 8)."""
        features: list[Tensor] = []
        with self.unet.up_blocks[0].register_forward_hook(lambda _module, _inputs, output: features.append(output)):
            predicted = self.unet(latents, timesteps, self.text_encoder(ids).last_hidden_state).sample
        return predicted, {name: head(features[0]) for name, head in self.layout.items()}


def train_denoiser(
    work: Path, images: Tensor, boxes: Tensor, vae: AutoencoderKL, without: str | None = None, device: torch.device = CPU
) -> Denoiser:
    """The loss on v and a tenth of the layout's cross-entropy; every caption is drawn anew, one in ten is empty.

    The density of timesteps is proportional to t^(1/3), for the layout is decided where there is much noise. The last stage draws
    scenes with hard subjects more often, and those of three subjects twice as often.
    """
    latents = encode(work / "shipped" if without else work, vae, images, device)
    world = [scene(index) for index in range(len(images))]
    maps = layout_maps(world, boxes)
    shown = replacements(world, [CONCEPTS[name] for name in without.split("+")] if without else [])
    torch.manual_seed(0)
    model = Denoiser().to(memory_format=torch.channels_last).to(device)
    tokenizer, scheduler = make_tokenizer(), make_scheduler()

    hard = torch.tensor([max(HARD.get(t.subject, 1.0) for t in s.objects) * (1 + (len(s.objects) == 3)) for s in world])

    def draw(weights: Tensor | None, generator: torch.Generator) -> Batch:
        chosen = draw_scenes(shown, BATCH, weights, generator)
        ids = draw_captions(chosen, lambda i, rng: caption(world[i], rng), tokenizer, generator)
        timesteps = draw_timesteps(BATCH, 0.75, generator)
        return latents[chosen], maps[chosen].long(), ids, torch.randn(latents[chosen].shape, generator=generator), timesteps

    def loss(latents: Tensor, maps: Tensor, ids: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        noisy = scheduler.add_noise(latents, noise, timesteps).contiguous(memory_format=torch.channels_last)
        with (
            torch.autocast(device.type, torch.bfloat16),
            sdpa_kernel(SDPBackend.MATH),
        ):  # the default's gradient takes half a step
            predicted, layout = model(noisy, timesteps, ids)
        total = F.mse_loss(predicted.float(), scheduler.get_velocity(latents, noise, timesteps))
        for channel, name in enumerate(LAYOUT):
            total = total + 0.1 / len(LAYOUT) * F.cross_entropy(layout[name].float(), maps[:, channel])
        return total

    suffix = f"-without-{without}" if without else ""
    for seed, (name, weights, lr) in enumerate((("diffusion", None, 1e-3), ("refine", hard, 4e-4))):
        model.train().requires_grad_(True)
        average_into(model, fit(name + suffix, work, model, partial(draw, weights), loss, STEPS[name], lr, seed=seed))
    return model.cpu()


def train_world(work: Path, out: Path = WEIGHTS, without: str | None = None, device: torch.device = CPU) -> None:
    """Train every part that is missing in `out`.

    Args:
        work: the folder of scenes, latents and checkpoints.
        out: receives detector.safetensors, pipeline/ (diffusers' folder layout, fp16) and clip/; or, if `without` is given,
            oracles/<without>.safetensors in 8 bits.
        without: a concept to exclude, or several as in church+nudity; the oracle shares the shipped model's autoencoder.
        device: the device of the denoiser, which takes hours on a CPU; the rest trains on the CPU.

    Raises:
        UserError: `without` is given, and neither `out` nor the package has the model's autoencoder.
    """
    work.mkdir(parents=True, exist_ok=True)
    fp32_precision(tf32=False)
    if without:
        autoencoder = next((folder for folder in (out / VAE, WEIGHTS / VAE) if folder.is_dir()), None)
        if autoencoder is None:
            raise UserError(f"an oracle shares the model's autoencoder, and {out / VAE} is not there; train the model first")
    images, boxes = rendered_scenes(work, 0, SCENES)
    if without:
        vae = AutoencoderKL.from_pretrained(autoencoder).float().eval()
        denoiser = train_denoiser(work, images, boxes, vae, without, device)
        write_oracle(out / "oracles" / f"{without}.safetensors", denoiser.unet, denoiser.text_encoder)
        return
    if not (out / "detector.safetensors").exists():
        detector = train_detector(work)
        write_tensors(out / "detector.safetensors", {name: value.half() for name, value in detector.state_dict().items()})
    tokenizer, vae = make_tokenizer(), train_vae(work, images)
    if not (out / "pipeline").exists():
        denoiser = train_denoiser(work, images, boxes, vae, None, device)
        save_pipeline(out / "pipeline", vae, denoiser.text_encoder, tokenizer, denoiser.unet)
    if not (out / "clip").exists():
        world = [scene(index) for index in range(SCENES)]
        clip = train_clip(
            work, images, vae, tokenizer, lambda i, rng: caption(world[i], rng, keep=rng.uniform(0.5, 1)), STEPS["clip"]
        )
        save_clip(out / "clip", clip, tokenizer)
