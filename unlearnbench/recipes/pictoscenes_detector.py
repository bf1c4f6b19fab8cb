"""Pictoscenes' scenes as images, and the training of its detector on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from unlearnbench.pictoscenes.detector import CELL, GRID, MOST, OF_IMAGE, OF_SUBJECT, Detector, Targets, detection_loss
from unlearnbench.pictoscenes.render import SIZE, render
from unlearnbench.pictoscenes.scenes import Scene, scene
from unlearnbench.pictoworld.classifier import to_unit
from unlearnbench.recipes.stages import render_scenes
from unlearnbench.recipes.training_loop import average_into, fit
from unlearnbench.storage.tensors import write_tensors

SCENES = 40_000
STEPS = 2_500
BATCH = 64


def _render(index: int) -> tuple[np.ndarray, np.ndarray]:
    image, boxes = render(scene(index), np.random.default_rng([12, index]))
    padded = np.full((MOST, 3), -1.0, np.float32)
    padded[: len(boxes)] = boxes
    return image, padded


def rendered_scenes(work: Path, first: int, count: int) -> tuple[Tensor, Tensor]:
    """The images of scenes, uint8 (count, 64, 64, 3), and the boxes of their subjects (count, 3, 3), -1 where there is none."""
    path = work / f"scenes-{first}-{count}.safetensors"
    if not path.exists():
        images, boxes = zip(*render_scenes(_render, range(first, first + count)), strict=True)
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
        for place, obj in enumerate(one.objects):
            for name, values in OF_SUBJECT.items():
                attributes[name][row, place] = -100 if name in obj.hidden else values.index(getattr(obj, name))
    attributes |= {name: torch.tensor([values.index(getattr(s, name)) for s in scenes]) for name, values in OF_IMAGE.items()}
    return Targets(peak, cells, places, attributes)


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
        blurred = F.avg_pool2d(pixels, 3, 1, 1, count_include_pad=False)
        pixels = torch.where(strength < 0.3, pixels + (blurred - pixels) * strength / 0.3, pixels) + 0.08 * strength * noise
        with torch.autocast("cpu", torch.bfloat16):
            answers = model(pixels.clamp(-1, 1).to(memory_format=torch.channels_last))
        return detection_loss(answers, targets_of([world[i] for i in index.tolist()], boxes[index]))

    average_into(model, fit("detector", work, model, draw, loss, STEPS, 2e-3))
    return model
