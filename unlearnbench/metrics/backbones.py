"""Backbones: networks that turn images into features, one for each domain."""

from __future__ import annotations

import importlib.util
import re
from abc import ABC, abstractmethod
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unlearnbench.config.errors import UserError, suggest
from unlearnbench.config.paths import at_home, is_hub_id
from unlearnbench.metrics.devices import move
from unlearnbench.storage.downloads import Download, FileDownload
from unlearnbench.storage.hub import HubDownload, HubRepository
from unlearnbench.storage.tensors import tensor_digest
from unlearnbench.worlds import World, embedded_world, embedded_worlds

JUDGES = {world.judge: world for world in embedded_worlds()}
CLIPS = {world.clip: world for world in embedded_worlds()}
NAMES = (*JUDGES, "inception", "inception-clean", "clip", *CLIPS)
CLIP_HUB = "openai/clip-vit-large-patch14"  # whose repository has safetensors
HUB_FILES = ("config.json", "model.safetensors", "model.safetensors.index.json")
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_RELEASE = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0"
INCEPTION_SIZE = 299
INCEPTION_LAYERS = (  # of torch-fidelity's network, up to the 2048 features
    "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2",
    "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7a",
    "Mixed_7b", "Mixed_7c", "AvgPool",
)  # fmt: skip
TEXT_BATCH = 256  # prompts
CLIP_MOMENTS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Backbone(ABC):
    """A frozen network over images, uint8 (n, h, w, 3)."""

    name: str
    model: Any = None  # a torch.nn.Module, once loaded
    device = torch.device("cpu")  # the last one of `load`
    whole_images: bool = False  # real images are not cropped to squares of the models' size

    @abstractmethod
    def unavailable_reason(self) -> str | None:
        """What is missing and how to get it; None if nothing is."""

    def downloads(self) -> list[Download]:
        """What of it is not on this machine and can be downloaded; by default nothing."""
        return []

    @abstractmethod
    def load(self, device: torch.device) -> None:
        """Load the network and move it to the device; a second call loads nothing."""

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """(n, d), float32."""

    def version(self) -> str:
        """The hash of the weights, or whatever else changes the features of a backbone of this name."""
        if self.model is None:
            self.load(torch.device("cpu"))
        return network_version(self.model)


class WorldNetwork(Backbone):
    """The penultimate layer of the network that reads an embedded world's images: (n, 192) or (n, 256)."""

    def __init__(self, world: World) -> None:
        self.name, self.world = world.judge, world

    def unavailable_reason(self) -> str | None:
        """See `Backbone.unavailable_reason`."""
        if (self.world.weights / f"{self.name}.safetensors").is_file():
            return None
        return f"{self.world.title}'s {self.name} is missing; install unlearnbench again"

    def load(self, device: torch.device) -> None:
        """See `Backbone.load`."""
        self.device = device
        self.model = move(self.model or self.world.network(), device)

    def pixels(self, images: Tensor) -> Tensor:
        """The network's input for images, uint8 (n, h, w, 3): 64 pixels a side, in [-1, 1], on its device."""
        from unlearnbench.pictoworld.classifier import to_unit

        return to_unit(resize_images(images, 64).to(self.device))

    def features(self, images: Tensor) -> Tensor:
        """See `Backbone.features`."""
        return self.model.features(self.pixels(images))


class Inception(Backbone):
    """InceptionV3 as in the reference implementation of FID, by torch-fidelity, (n, 2048)."""

    name = "inception"

    def unavailable_reason(self) -> str | None:
        """See `Backbone.unavailable_reason`."""
        if importlib.util.find_spec("torch_fidelity") is None:
            return "torch-fidelity is not installed; pip install 'unlearnbench[photo]'"
        if not self._file().is_file():
            return (
                f"Inception's weights are not at {self._file()}; download {INCEPTION_FILE} from torch-fidelity's release v0.2.0"
            )
        return None

    def downloads(self) -> list[Download]:
        """See `Backbone.downloads`; its weights are on GitHub."""
        if self._file().is_file() or importlib.util.find_spec("torch_fidelity") is None:
            return []
        return [FileDownload("Inception", f"{INCEPTION_RELEASE}/{INCEPTION_FILE}", self._file(), "6726825d")]

    def _file(self) -> Path:
        return Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE

    def load(self, device: torch.device) -> None:
        """See `Backbone.load`."""
        from torchmetrics.image.fid import NoTrainInceptionV3

        self.device = device
        if self.model is None:
            self.model = NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"])
            self.model.use_antialias = False  # the reference resizes as TensorFlow 1 does
        move(self.model, device).eval()

    def version(self) -> str:
        """The way that images are resized."""
        return "tensorflow1x"

    def features(self, images: Tensor) -> Tensor:
        """See `Backbone.features`."""
        return self.model(images.permute(0, 3, 1, 2).to(self.device))


class InceptionClean(Inception):
    """Inception as clean-fid 0.1.35 feeds it (Parmar et al. 2022, arXiv 2104.11222), (n, 2048): the network and weights of TF 1.

    Each channel is resized in 32-bit floats to 299 x 299 by Pillow's antialiased bicubic filter, clipped to [0, 255] and not
    rounded. Real images are resized whole, as clean-fid does, and not cropped to squares.
    """

    name = "inception-clean"
    whole_images = True

    def version(self) -> str:
        """See `Inception.version`."""
        return "clean-fid 0.1.35, bicubic, floats"

    def features(self, images: Tensor) -> Tensor:
        """See `Backbone.features`."""
        hidden = (resize_floats(images, INCEPTION_SIZE).to(self.device) - 128) / 128
        for layer in INCEPTION_LAYERS:
            hidden = getattr(self.model, layer)(hidden)
        return hidden.flatten(1)


def resize_floats(images: Tensor, size: int) -> Tensor:
    """Images, uint8 (n, h, w, 3), resized without rounding by Pillow's bicubic filter: (n, 3, size, size), 0 to 255."""
    from PIL import Image

    def channel(pixels: np.ndarray) -> np.ndarray:
        resized = Image.fromarray(pixels.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
        return np.asarray(resized).clip(0, 255)

    arrays = images.numpy()
    return torch.from_numpy(np.stack([[channel(image[..., c]) for c in range(3)] for image in arrays]))


class CLIP(Backbone):
    """A CLIP model in transformers' layout: image and text features of unit length."""

    def __init__(self, name: str, path: str | Path) -> None:
        self.name = name
        self.path = str(path)

    def unavailable_reason(self) -> str | None:
        """See `Backbone.unavailable_reason`."""
        return network_problem("CLIP", self.path)

    def downloads(self) -> list[Download]:
        """See `Backbone.downloads`."""
        return network_downloads("CLIP", self.path)

    def load(self, device: torch.device) -> None:
        """See `Backbone.load`."""
        from transformers import AutoTokenizer, CLIPModel
        from transformers.utils.logging import disable_progress_bar

        self.device = device
        if self.model is None:
            disable_progress_bar()
            self.model = CLIPModel.from_pretrained(self.path, torch_dtype=torch.float32, use_safetensors=True)
            self.model.eval().requires_grad_(False)
            self.tokenizer = AutoTokenizer.from_pretrained(self.path)
        move(self.model, device)

    def features(self, images: Tensor) -> Tensor:
        """(n, d), of unit length."""
        size: int = self.model.config.vision_config.image_size
        pixels = resize_images(images, size).to(self.device).permute(0, 3, 1, 2).float() / 255
        if self.name in CLIPS:
            pixels = pixels * 2 - 1
        else:
            mean, std = (torch.tensor(moment, device=self.device)[:, None, None] for moment in CLIP_MOMENTS)
            pixels = (pixels - mean) / std
        return F.normalize(_pooled(self.model.get_image_features(pixel_values=pixels)), dim=-1)

    def text(self, prompts: list[str]) -> Tensor:
        """(n, d), of unit length."""
        parts = [prompts[start : start + TEXT_BATCH] for start in range(0, len(prompts), TEXT_BATCH)]
        return torch.cat([self._text(part) for part in parts])

    @torch.no_grad()
    def _text(self, prompts: list[str]) -> Tensor:
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return F.normalize(_pooled(self.model.get_text_features(**tokens.to(self.device))), dim=-1).cpu()


def _pooled(output: Tensor | object) -> Tensor:
    """transformers 5 returns an output object, earlier versions the tensor itself."""
    return output if isinstance(output, Tensor) else output.pooler_output  # type: ignore[attr-defined]


def network_problem(what: str, path: str, revision: str | None = None) -> str | None:
    """Why a network in transformers' layout, a folder or a hub id, cannot be opened, and the repair; downloads nothing."""
    from huggingface_hub import try_to_load_from_cache

    if Path(path).is_dir():
        return None if list(Path(path).glob("*.safetensors")) else f"{path}: no safetensors file there"
    if path.startswith((".", "/", "~")):
        return f"{what} {path}: no such folder"
    if not is_hub_id(path):
        return f"{what} {path}: no such folder, and not a valid hub id"
    fetch = f"fetch it once with `hf download {path}{f' --revision {revision}' if revision else ''}`"
    cached = [isinstance(try_to_load_from_cache(path, name, revision=revision), str) for name in HUB_FILES]
    if not cached[0]:
        return f"{what} {path} is not in the hub's cache; {fetch}"
    if not any(cached[1:]):
        return f"{what} {path} has no safetensors in the hub's cache, and pickles are not opened; {fetch}, or choose another"
    return None


def network_downloads(what: str, path: str, revision: str | None = None) -> list[Download]:
    """What is to be downloaded of a network in transformers' layout, a folder or a hub id."""
    if (
        Path(path).is_dir()
        or path.startswith((".", "/", "~"))
        or not is_hub_id(path)
        or not network_problem(what, path, revision)
    ):
        return []
    repair = f"fetch it once online: `hf download {path}{f' --revision {revision}' if revision else ''}`"
    return [HubDownload(f"{what} {path}", "not in the hub's cache", repair, HubRepository(path, revision), _network_files)]


def _network_files(names: Collection[str]) -> list[str]:
    """The files of a repository that transformers loads.

    Raises:
        UserError: it has no weights as safetensors.
    """
    weights = [name for name in names if name == "model.safetensors"] or [
        name for name in names if re.fullmatch(r"model-\d+-of-\d+\.safetensors|model\.safetensors\.index\.json", name)
    ]
    if not weights:
        raise UserError("it has no safetensors, and pickles are not opened; choose another")
    return [*(n for n in names if "/" not in n and n.endswith((".json", ".txt")) and ".index." not in n), *weights]


def resize_images(images: Tensor, size: int) -> Tensor:
    """Images resized by antialiased bicubic interpolation; unchanged if they already have this size."""
    if images.shape[1:3] == (size, size):
        return images
    resized = F.interpolate(images.permute(0, 3, 1, 2).float(), (size, size), mode="bicubic", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


@cache
def network_version(network: torch.nn.Module) -> str:
    """The hash of a network's weights."""
    return tensor_digest(dict(network.state_dict()))[:16]


@cache
def _make(name: str) -> Backbone:
    if name in JUDGES:
        return WorldNetwork(JUDGES[name])
    if name == "inception":
        return Inception()
    if name == "inception-clean":
        return InceptionClean()
    if name in CLIPS:
        return CLIP(name, CLIPS[name].weights / "clip")
    return CLIP(name, CLIP_HUB if name == "clip" else at_home(name.removeprefix("clip:")))


def backbone(name: str, domain: str) -> Backbone:
    """The backbone of this name, built once.

    Args:
        name: classifier, detector, inception, inception-clean, clip-pictoworld, clip-pictoscenes, clip or clip:<path or hub id>;
            auto and auto-clip choose by domain.
        domain: the model's domain.

    Raises:
        UserError: an unknown name, or a domain that auto does not cover.
    """
    if name in ("auto", "auto-clip"):
        world = embedded_world(domain)
        if world is None and domain != "photo":
            raise UserError(f"model.domain={domain}: {suggest(domain, ['photo', *(w.name for w in embedded_worlds())])}")
        if world is None:
            name = "clip" if name == "auto-clip" else "inception"
        else:
            name = world.clip if name == "auto-clip" else world.judge
    if name not in NAMES and not name.startswith("clip:"):
        raise UserError(f"backbone {name!r}: {suggest(name, ['auto', *NAMES, 'clip:<path>'])}")
    return _make(name)


def clip_problem(name: str, domain: str) -> str | None:
    """Why a backbone cannot compare images with texts, as a CLIP does, and the repair."""
    network = backbone(name, domain)
    if isinstance(network, CLIP):
        return network.unavailable_reason()
    return f"backbone {name!r} has no text encoder; known: auto-clip, clip, {', '.join(CLIPS)}, clip:<path>"
