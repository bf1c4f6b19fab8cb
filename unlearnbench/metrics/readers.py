"""Readers: networks that answer a question about each image, or each pair of images, alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from unlearnbench.data.images import Images, Picture
from unlearnbench.metrics.backbones import Backbone, WorldNetwork, backbone
from unlearnbench.worlds import World

BATCH = 64  # images in one call of a network


class Reader(ABC):
    """A network whose answer depends on an image, or on a pair of images, and on nothing else.

    Attributes:
        kind: the subfolder of the cache that holds its answers.
    """

    kind: ClassVar[str] = "answers"

    @abstractmethod
    def key(self) -> list[Any]:
        """What the answers depend on besides the images: the network, its version and its settings, as JSON."""

    @abstractmethod
    def read(self, images: Sequence[Tensor], device: torch.device) -> Tensor:
        """The answers, (n, ...).

        Args:
            images: uint8 (n, h, w, 3), once, or for a pair twice.
            device: where the network runs.
        """


class Features(Reader):
    """The features of a backbone, (n, d)."""

    kind = "features"

    def __init__(self, network: Backbone) -> None:
        self.network = network

    def key(self) -> list[Any]:
        """See `Reader.key`."""
        return [self.network.name, self.network.version()]

    def read(self, images: Sequence[Tensor], device: torch.device) -> Tensor:
        """See `Reader.read`."""
        self.network.load(device)
        return self.network.features(images[0])


class AttributeReader(Reader):
    """What the network of an embedded world reads, as `World.answers` has it."""

    kind = "attributes"

    def __init__(self, world: World) -> None:
        self.world = world

    def key(self) -> list[Any]:
        """See `Reader.key`."""
        return [self.world.judge, backbone("auto", self.world.name).version()]

    def read(self, images: Sequence[Tensor], device: torch.device) -> Tensor:
        """See `Reader.read`."""
        network = backbone("auto", self.world.name)
        assert isinstance(network, WorldNetwork)
        network.load(device)
        return self.world.answers(network.model, network.pixels(images[0]))


class Question(NamedTuple):
    """What a metric asks a reader: about images, or about pairs of images of two folders, side by side."""

    reader: Reader
    sides: tuple[Images | Sequence[Picture], ...]

    def items(self) -> list[tuple[Picture, ...]]:
        """Each image, or each pair."""
        pictures = [side.pictures() if isinstance(side, Images) else side for side in self.sides]
        return list(zip(*pictures, strict=True))
