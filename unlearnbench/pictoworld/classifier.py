"""The attribute classifier of Pictoworld's images, and the folders of shipped weights."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from unlearnbench.pictoworld.render import ATTRIBUTES

WEIGHTS = Path(__file__).parent / "weights"
ORACLES = Path(__file__).parent / "oracles"


class StagedNetwork(nn.Module):
    """A network whose `stages` look at an image one after another, and whose `neck` makes features of the last one's output."""

    stages: nn.ModuleList
    neck: nn.Module

    def maps(self, images: Tensor) -> list[Tensor]:
        """The output of every stage, for a distance of LPIPS' form."""
        outputs = []
        for stage in self.stages:
            images = stage(images)
            outputs.append(images)
        return outputs

    def features(self, images: Tensor) -> Tensor:
        """The features of images, (n, features), on which FID and KID are measured."""
        return self.neck(self.maps(images)[-1])


class Classifier(StagedNetwork):
    """Predicts every attribute of a scene from its image, with one head per attribute.

    Images are float, (n, 3, 64, 64), in [-1, 1]. `features` returns (n, 192), on which FID and KID are measured; `forward`
    returns logits per attribute, in the order of `ATTRIBUTES`.
    """

    def __init__(self, width: int = 32, features: int = 192) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width, 4 * width)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(8, b), nn.SiLU(),
                nn.Conv2d(b, b, 3, padding=1, groups=1), nn.GroupNorm(8, b), nn.SiLU(),
            )
            for a, b in pairwise(widths)
        )  # fmt: skip
        self.neck = nn.Sequential(nn.Flatten(), nn.Linear(widths[-1] * 16, features), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(features, len(values)) for name, values in ATTRIBUTES.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits per attribute, each (n, values)."""
        features = self.features(images)
        return {name: head(features) for name, head in self.heads.items()}

    def read(self, images: Tensor) -> list[dict[str, str]]:
        """The most likely value of every attribute of each image."""
        chosen = {name: logits.argmax(1).tolist() for name, logits in self(images).items()}
        return [{name: ATTRIBUTES[name][chosen[name][i]] for name in ATTRIBUTES} for i in range(len(images))]


def load_classifier(folder: Path = WEIGHTS) -> Classifier:
    """The shipped classifier, in eval mode."""
    model = Classifier()
    model.load_state_dict({k: v.float() for k, v in load_file(folder / "classifier.safetensors").items()})
    return model.eval().requires_grad_(False)


def to_unit(images: Tensor) -> Tensor:
    """uint8 (n, h, w, 3) to float (n, 3, h, w) in [-1, 1]."""
    return images.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1
