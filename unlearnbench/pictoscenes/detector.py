"""The detector of Pictoscenes: which subjects an image shows, where, and with which attributes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from unlearnbench.pictoscenes.pictograms import SUBJECTS
from unlearnbench.pictoscenes.render import SIZE, Box
from unlearnbench.pictoscenes.scenes import PATTERNS, SIZES, STYLES
from unlearnbench.pictoworld.classifier import StagedNetwork
from unlearnbench.pictoworld.render import BACKGROUNDS, COLORS

WEIGHTS = Path(__file__).parent / "weights"
ORACLES = Path(__file__).parent / "oracles"
CELL = 4
"""The side of a cell in pixels; each cell answers for the subject whose centre lies in it."""
GRID = SIZE // CELL
OF_SUBJECT: dict[str, tuple[str, ...]] = {
    "subject": SUBJECTS, "color": tuple(COLORS), "pattern": PATTERNS, "size": SIZES,
}  # fmt: skip
OF_IMAGE: dict[str, tuple[str, ...]] = {"background": tuple(BACKGROUNDS), "style": STYLES}
PRESENT = 0.5
MOST = 3  # subjects in a scene
IN_ROW = 4 + len(OF_SUBJECT)  # the numbers of a subject: its score, its place and its attributes


class Detection(NamedTuple):
    """A subject that the detector finds: its attributes by name, its place in pixels, and the score from `PRESENT` to 1."""

    attributes: dict[str, str]
    box: Box
    score: float


class Detector(StagedNetwork):
    """A convolutional network with one answer for each cell of a 16 x 16 grid, in the manner of CenterNet.

    Zhou et al. 2019, arXiv 1904.07850: the centre of an object is a peak of a heat map, and its attributes are read there.
    Images are float, (n, 3, 64, 64), in [-1, 1]. `features` returns (n, 256), for FID and for `integrity`.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width, 4 * width)
        self.stages = nn.ModuleList(
            nn.Sequential(_convolution(a, b, 2), _convolution(b, b), _convolution(b, b)) for a, b in pairwise(widths)
        )
        self.sideways = nn.ModuleList(nn.Conv2d(channels, 4 * width, 1) for channels in widths[2:])
        self.smooth = nn.Sequential(_convolution(4 * width, 4 * width), _convolution(4 * width, 4 * width))
        self.of_cell = nn.ModuleDict({name: nn.Conv2d(4 * width, len(values), 1) for name, values in OF_SUBJECT.items()})
        self.peak = nn.Conv2d(4 * width, 1, 1)
        self.place = nn.Conv2d(4 * width, 3, 1)
        self.neck = nn.Sequential(nn.Flatten(), nn.Linear(4 * width * 16, 256), nn.SiLU())
        self.of_image = nn.ModuleDict({name: nn.Linear(256, len(values)) for name, values in OF_IMAGE.items()})
        nn.init.constant_(self.peak.bias, -4.0)  # type: ignore[arg-type]  # most cells hold no centre

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits: "peak" (n, 16, 16); "place" (n, 3, 16, 16), centre and half size; those of the attributes.

        The attributes of subjects are (n, values, 16, 16), of images (n, values).
        """
        maps = self.maps(images)
        joint = self.sideways[2](maps[3])
        for number in (1, 0):
            joint = F.interpolate(joint, scale_factor=2.0) + self.sideways[number](maps[number + 1])
        joint = self.smooth(joint)
        features = self.neck(maps[3])
        return {
            "peak": self.peak(joint)[:, 0],
            "place": self.place(joint),
            **{name: head(joint) for name, head in self.of_cell.items()},
            **{name: head(features) for name, head in self.of_image.items()},
        }

    @torch.no_grad()
    def read(self, images: Tensor) -> list[tuple[dict[str, str], list[Detection]]]:
        """What each image shows (see `decode`)."""
        return decode(self(images))


def decode(answers: dict[str, Tensor]) -> list[tuple[dict[str, str], list[Detection]]]:
    """What each image shows by the answers of `Detector.forward`: its background and style, and its subjects from the left."""
    heights = answers["peak"].double()
    heights = heights - 1e-9 * torch.arange(heights[0].numel(), device=heights.device).view_as(heights[0])  # the first of equals
    peaks = heights == F.max_pool2d(heights[:, None], 3, stride=1, padding=1)[:, 0]
    scores = torch.where(peaks, answers["peak"].float().sigmoid(), 0).flatten(1)
    best = scores.topk(MOST)
    chosen = {name: answers[name].argmax(1) for name in (*OF_SUBJECT, *OF_IMAGE)}
    results = []
    for number in range(len(scores)):
        detections = [
            _detection(answers["place"][number], {name: chosen[name][number] for name in OF_SUBJECT}, cell, score)
            for cell, score in zip(best.indices[number].tolist(), best.values[number].tolist(), strict=True)
            if score >= PRESENT
        ]
        whole = {name: values[int(chosen[name][number])] for name, values in OF_IMAGE.items()}
        results.append((whole, sorted(detections, key=lambda subject: subject.box.x)))
    return results


def packed(shown: Sequence[tuple[dict[str, str], list[Detection]]]) -> Tensor:
    """What images show (see `decode`) as numbers, float32 (n, 26).

    The numbers of background and style; then for each of three subjects the score (0: there is none), the place, and the
    numbers of its attributes.
    """
    rows = torch.zeros(len(shown), len(OF_IMAGE) + MOST * IN_ROW)
    for row, (whole, detections) in zip(rows, shown, strict=True):
        row[: len(OF_IMAGE)] = torch.tensor([values.index(whole[name]) for name, values in OF_IMAGE.items()])
        for of_subject, one in zip(row[len(OF_IMAGE) :].split(IN_ROW), detections, strict=False):
            numbers = [values.index(one.attributes[name]) for name, values in OF_SUBJECT.items()]
            of_subject[:] = torch.tensor([one.score, *one.box, *numbers])
    return rows


def unpacked(rows: Tensor) -> list[tuple[dict[str, str], list[Detection]]]:
    """What images show, from the numbers of `packed`."""
    results = []
    for row in rows.tolist():
        whole = {name: values[int(number)] for (name, values), number in zip(OF_IMAGE.items(), row, strict=False)}
        parts = [row[start : start + IN_ROW] for start in range(len(OF_IMAGE), len(row), IN_ROW)]
        results.append((whole, [_unpacked(part) for part in parts if part[0] > 0]))
    return results


def _unpacked(numbers: Sequence[float]) -> Detection:
    score, x, y, half, *indices = numbers
    attributes = {name: values[int(number)] for (name, values), number in zip(OF_SUBJECT.items(), indices, strict=True)}
    return Detection(attributes, Box(x, y, half), score)


def load_detector(folder: Path = WEIGHTS) -> Detector:
    """The shipped detector, in eval mode."""
    model = Detector()
    model.load_state_dict({name: value.float() for name, value in load_file(folder / "detector.safetensors").items()})
    return model.eval().requires_grad_(False)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(8, outputs), nn.SiLU())


def _detection(place: Tensor, chosen: dict[str, Tensor], cell: int, score: float) -> Detection:
    row, column = divmod(cell, GRID)
    dx, dy, half = place[:, row, column].tolist()
    attributes = {name: OF_SUBJECT[name][int(values[row, column])] for name, values in chosen.items()}
    return Detection(attributes, Box((column + 0.5 + dx) * CELL, (row + 0.5 + dy) * CELL, half * SIZE), score)


class Targets(NamedTuple):
    """What the detector is to answer for images.

    Attributes:
        peak: 1 at the cell of each centre, falling to 0 around it, (n, 16, 16).
        cells: the cell of each subject, (n, 3), -1 where there is none.
        places: the centre within the cell, in cells from its middle, and the half size in images, (n, 3, 3).
        attributes: the number of the value of each attribute, (n, 3) or (n,); -100 where it cannot be seen.
    """

    peak: Tensor
    cells: Tensor
    places: Tensor
    attributes: dict[str, Tensor]


def detection_loss(answers: dict[str, Tensor], targets: Targets) -> Tensor:
    """The focal loss of the heat map (arXiv 1904.07850, equation 1), and at the centres cross-entropy and the place's L1."""
    there = targets.cells >= 0
    cells = targets.cells.clamp(min=0)
    probability = answers["peak"].float().sigmoid().clamp(1e-4, 1 - 1e-4)
    centre = targets.peak == 1
    positive = torch.where(centre, (1 - probability) ** 2 * probability.log(), 0).sum()
    negative = ((1 - targets.peak) ** 4 * probability**2 * (1 - probability).log() * ~centre).sum()
    total = -(positive + negative) / there.sum()

    def at_centres(name: str) -> Tensor:
        flat = answers[name].float().flatten(2)
        return flat.gather(2, cells[:, None].expand(-1, flat.shape[1], -1)).transpose(1, 2)[there]

    total = total + F.l1_loss(at_centres("place"), targets.places[there])
    for name in OF_SUBJECT:
        total = total + F.cross_entropy(at_centres(name), targets.attributes[name][there])
    for name in OF_IMAGE:
        total = total + F.cross_entropy(answers[name].float(), targets.attributes[name])
    return total
