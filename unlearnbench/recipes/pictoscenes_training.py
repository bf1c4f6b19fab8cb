"""Training of Pictoscenes: its detector and its model.

`python -m unlearnbench.recipes.pictoscenes_training` renders the scenes, trains the detector, the autoencoder and the denoiser,
and prints how good the detector is on held-out scenes and the model on held-out captions. Each stage can be resumed, and is
skipped if its files exist.
"""

from __future__ import annotations

import argparse
import os
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from unlearnbench.console import console, progress_bar
from unlearnbench.models.sd import StableDiffusion
from unlearnbench.pictoscenes.architecture import (
    LATENT_CHANNELS,
    LATENT_SIZE,
    WIDTH,
    make_text_encoder,
    make_tokenizer,
    make_unet,
)
from unlearnbench.pictoscenes.captions import caption
from unlearnbench.pictoscenes.detector import (
    CELL,
    GRID,
    MOST,
    OF_IMAGE,
    OF_SUBJECT,
    Detector,
    Found,
    Targets,
    detection_loss,
    load_detector,
)
from unlearnbench.pictoscenes.render import SIZE, Box, render
from unlearnbench.pictoscenes.scenes import Scene, scene
from unlearnbench.pictoworld.architecture import make_scheduler
from unlearnbench.pictoworld.classifier import WEIGHTS, to_unit
from unlearnbench.recipes.pictoscenes_quality import held_out_captions, sample_quality
from unlearnbench.recipes.pictoworld_quality import Score
from unlearnbench.recipes.pictoworld_training import average_into, encode, fit
from unlearnbench.storage.atomic import atomic_path
from unlearnbench.storage.tensors import write_tensors

SCENES = 40_000
STEPS = {"vae": 1_500, "detector": 2_500, "diffusion": 12_000}
BATCH = 64
HELD_OUT = 2_000
LAYOUT = ("subject", "color", "pattern")
LAYOUT_SIZE = LATENT_SIZE // 2  # of the features from which the layout is read


def _render(index: int) -> tuple[np.ndarray, np.ndarray]:
    image, boxes = render(scene(index), np.random.default_rng([12, index]))
    padded = np.full((MOST, 3), -1.0, np.float32)
    padded[: len(boxes)] = boxes
    return image, padded


def rendered_scenes(work: Path, first: int, count: int) -> tuple[Tensor, Tensor]:
    """The images of scenes, uint8 (count, 64, 64, 3), and the boxes of their subjects (count, 3, 3), -1 where there is none."""
    path = work / f"scenes-{first}-{count}.safetensors"
    if not path.exists():
        with progress_bar("render scenes", count) as shown, Pool(os.cpu_count()) as pool:
            images, boxes = [], []
            for image, box in pool.imap(_render, range(first, first + count), chunksize=64):
                images.append(image)
                boxes.append(box)
                shown.advance()
        write_tensors(path, {"images": torch.from_numpy(np.stack(images)), "boxes": torch.from_numpy(np.stack(boxes))})
    stored = load_file(path)
    return stored["images"], stored["boxes"]


def targets_of(scenes: list[Scene], boxes: Tensor) -> Targets:
    """What the detector is to answer for scenes with these boxes."""
    columns, rows = (boxes[..., axis] / CELL for axis in (0, 1))
    there = boxes[..., 2] >= 0
    inside = [axis.clamp(0, GRID - 1e-3).floor() for axis in (columns, rows)]
    cells = torch.where(there, inside[1] * GRID + inside[0], -1).long()
    places = torch.stack([columns - inside[0] - 0.5, rows - inside[1] - 0.5, boxes[..., 2] / SIZE], dim=-1)
    y, x = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    peak = torch.zeros(len(scenes), GRID, GRID)
    for number in range(MOST):
        distance = (x - inside[0][:, number, None, None]) ** 2 + (y - inside[1][:, number, None, None]) ** 2
        bump = torch.where(there[:, number, None, None], torch.exp(-distance / 2), torch.zeros(()))
        peak = torch.maximum(peak, bump)
    attributes = {name: torch.full((len(scenes), MOST), -100) for name in OF_SUBJECT}
    for row, one in enumerate(scenes):
        for place, thing in enumerate(one.things):
            for name, values in OF_SUBJECT.items():
                attributes[name][row, place] = -100 if name in thing.hidden else values.index(getattr(thing, name))
    attributes |= {name: torch.tensor([values.index(getattr(s, name)) for s in scenes]) for name, values in OF_IMAGE.items()}
    return Targets(peak, cells, places, attributes)


def train_vae(work: Path) -> AutoencoderKL:
    """Pictoworld's autoencoder, trained further on scenes; the scaling factor gives the latents standard deviation 1.

    The loss is L1 + 0.5 MSE of the pixels in [-1, 1], half the L1 of the differences between neighbours, for crisp edges, and
    1e-4 KL.
    """
    images, _ = rendered_scenes(work, 0, SCENES)
    vae = AutoencoderKL.from_pretrained(WEIGHTS / "pipeline" / "vae").float().train().requires_grad_(True)

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        pixels = to_unit(images[torch.randint(SCENES, (32,), generator=generator)])
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
        for thing, (x, y, half) in zip(one.things, boxes[row].tolist(), strict=False):
            inside = ((centre - y).abs() <= half)[:, None] & ((centre - x).abs() <= half)
            for channel, name in enumerate(LAYOUT):
                maps[row, channel, inside] = 0 if name in thing.hidden else 1 + OF_SUBJECT[name].index(getattr(thing, name))
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


def train_denoiser(work: Path, vae: AutoencoderKL) -> Denoiser:
    """The loss on v and a tenth of the layout's cross-entropy; every caption is drawn anew, one in ten is empty.

    The density of timesteps is proportional to t^(1/3), for the layout is decided where there is much noise.
    """
    images, boxes = rendered_scenes(work, 0, SCENES)
    latents = encode(work, vae, images, torch.device("cpu"))
    world = [scene(index) for index in range(SCENES)]
    maps = layout_maps(world, boxes)
    torch.manual_seed(0)
    model = Denoiser().to(memory_format=torch.channels_last)
    tokenizer, scheduler = make_tokenizer(), make_scheduler()

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        index = torch.randint(SCENES, (BATCH,), generator=generator)
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        captions = ["" if rng.random() < 0.1 else caption(world[i], rng) for i in index.tolist()]
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        spread = (torch.rand((), generator=generator) + torch.arange(BATCH) / BATCH) % 1
        timesteps = (1000 * spread**0.75).long()
        return latents[index], maps[index].long(), ids, torch.randn(latents[index].shape, generator=generator), timesteps

    def loss(latents: Tensor, maps: Tensor, ids: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        noisy = scheduler.add_noise(latents, noise, timesteps).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):  # the default's gradient takes half a step
            predicted, layout = model(noisy, timesteps, ids)
        total = F.mse_loss(predicted.float(), scheduler.get_velocity(latents, noise, timesteps))
        for channel, name in enumerate(LAYOUT):
            total = total + 0.1 / len(LAYOUT) * F.cross_entropy(layout[name].float(), maps[:, channel])
        return total

    average_into(model, fit("diffusion", work, model, draw, loss, STEPS["diffusion"], 1e-3))
    return model


def train_detector(work: Path) -> Detector:
    """Train on rendered scenes with noise and blur, which a model's samples have too."""
    images, boxes = rendered_scenes(work, 0, SCENES)
    world = [scene(index) for index in range(SCENES)]
    torch.manual_seed(0)
    model = Detector().to(memory_format=torch.channels_last)

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        index = torch.randint(SCENES, (BATCH,), generator=generator)
        return index, torch.randn(BATCH, 3, SIZE, SIZE, generator=generator), torch.rand(BATCH, 1, 1, 1, generator=generator)

    def loss(index: Tensor, noise: Tensor, strength: Tensor) -> Tensor:
        pixels = to_unit(images[index])
        blurred = torch.nn.functional.avg_pool2d(pixels, 3, 1, 1, count_include_pad=False)
        pixels = torch.where(strength < 0.3, pixels + (blurred - pixels) * strength / 0.3, pixels) + 0.08 * strength * noise
        with torch.autocast("cpu", torch.bfloat16):
            answers = model(pixels.clamp(-1, 1).to(memory_format=torch.channels_last))
        return detection_loss(answers, targets_of([world[i] for i in index.tolist()], boxes[index]))

    average_into(model, fit("detector", work, model, draw, loss, STEPS["detector"], 2e-3))
    return model


def detection_quality(model: Detector, work: Path, count: int = HELD_OUT) -> dict[str, tuple[int, int]]:
    """How often the detector is right on held-out scenes: (right, of) for each attribute, for places, and for whole objects.

    An object is right if a subject is found within six pixels of its centre with the right subject, colour and pattern.
    """
    images, boxes = rendered_scenes(work, SCENES, count)
    scores: dict[str, list[bool]] = {name: [] for name in (*OF_SUBJECT, "place", "object", "count", *OF_IMAGE)}
    for start in range(0, count, 100):
        for offset, (whole, found) in enumerate(model.read(to_unit(images[start : start + 100]))):
            truth = scene(SCENES + start + offset)
            scores["count"].append(len(found) == len(truth.things))
            for name in OF_IMAGE:
                scores[name].append(whole[name] == getattr(truth, name))
            for thing, values in zip(truth.things, boxes[start + offset].tolist(), strict=False):
                nearest = _nearest(found, Box(*values))
                scores["place"].append(nearest is not None)
                visible = [n for n in OF_SUBJECT if n not in thing.hidden]
                right = {n: nearest is not None and nearest.attributes[n] == getattr(thing, n) for n in visible}
                for name, value in right.items():
                    scores[name].append(value)
                scores["object"].append(all(value for name, value in right.items() if name != "size"))
    return {name: (sum(values), len(values)) for name, values in scores.items()}


def _nearest(found: list[Found], box: Box) -> Found | None:
    distances = [(np.hypot(one.box.x - box.x, one.box.y - box.y), number) for number, one in enumerate(found)]
    distance, number = min(distances, default=(np.inf, -1))
    return found[number] if distance <= 6 else None


def make_pipeline(vae: AutoencoderKL, denoiser: Denoiser) -> StableDiffusionPipeline:
    """The whole model, as Stable Diffusion's own pipeline."""
    return StableDiffusionPipeline(
        vae=vae, text_encoder=denoiser.text_encoder, tokenizer=make_tokenizer(), unet=denoiser.unet, scheduler=make_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def trained_detector(work: Path) -> Detector:
    """The detector, trained if its file is missing."""
    path = work / "detector.safetensors"
    if not path.is_file():
        write_tensors(path, {name: value.half() for name, value in train_detector(work).state_dict().items()})
    return load_detector(work)


def trained_pipeline(work: Path) -> Path:
    """The folder of the model's pipeline, trained as far as it is missing."""
    if not (work / "vae").is_dir():
        vae = train_vae(work)
        with atomic_path(work / "vae") as part:
            vae.save_pretrained(part)
    folder = work / "pipeline"
    if not folder.is_dir():
        vae = AutoencoderKL.from_pretrained(work / "vae").eval()
        pipeline = make_pipeline(vae, train_denoiser(work, vae)).to(torch.float16)
        with atomic_path(folder) as part:
            pipeline.save_pretrained(part, safe_serialization=True)
    return folder


def print_shares(part: str, shares: dict[str, tuple[int, int]]) -> None:
    """Each share with its interval."""
    console.print(part)
    for score in (Score(part, name, right, of) for name, (right, of) in shares.items()):
        low, high = score.interval
        console.print(f"  {score.what}: {score.value:.4f} ({low:.4f} to {high:.4f}, n {score.n})")


def main() -> None:
    """Train what is missing, and print the quality of the detector and of the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("outputs/pictoscenes"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    detector = trained_detector(options.work)
    print_shares("detector, held-out scenes", detection_quality(detector, options.work))
    folder = trained_pipeline(options.work)
    model = StableDiffusion(path=str(folder), domain="pictoscenes", size=SIZE, steps=20, guidance=3.0).load(torch.device("cpu"))
    print_shares("model, held-out captions", sample_quality(model, detector, held_out_captions(SCENES, 500)))


if __name__ == "__main__":
    main()
