"""Distances between two images, over which integrity takes the mean."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from unlearnbench.config.errors import UserError, suggest
from unlearnbench.metrics.backbones import CLIPS, JUDGES, WorldNetwork, backbone, network_version, resize_images
from unlearnbench.metrics.devices import move
from unlearnbench.metrics.readers import Reader
from unlearnbench.pictoworld.classifier import to_unit
from unlearnbench.storage.downloads import Download, FileDownload

LPIPS_ALEX = Path(__file__).parent / "weights" / "lpips_alex.safetensors"
DISTANCES = ("lpips-alex", "lpips-alex@64", "lpips-vgg", *JUDGES, "clip", *CLIPS, "dreamsim")
LEAST_SIDES = {"lpips-alex": 31, "lpips-vgg": 16}  # smaller images vanish in their layers; all others resize
DREAMSIM = ("dino_vitb16_pretrain.pth", "clip_vitb16_pretrain.pth.tar", "open_clip_vitb16_pretrain.pth.tar", "ensemble_lora")


def unavailable_distance(name: str) -> str | None:
    """What is missing for a distance and how to get it; None if nothing is.

    Raises:
        UserError: an unknown name.
    """
    if name not in DISTANCES:
        raise UserError(f"distance {name!r}: {suggest(name, DISTANCES)}")
    if name == "lpips-vgg":
        file = _vgg16_file()
        return None if file.is_file() else f"VGG16's weights are not at {file}; download torchvision's {file.name}"
    if name in ("lpips-alex", "lpips-alex@64"):
        return None if LPIPS_ALEX.is_file() else f"{LPIPS_ALEX} is missing; install unlearnbench again"
    if name == "dreamsim":
        return _dreamsim_problem()
    return backbone(name, "").unavailable_reason()


def too_small_for(name: str, size: int) -> str | None:
    """Why a distance cannot compare images of this side; None if it can."""
    least = LEAST_SIDES.get(name, 1)
    return f"distance {name}: needs images of at least {least} px, and these have {size}" if size < least else None


def distance_downloads(name: str) -> list[Download]:
    """What a distance needs that is not on this machine and can be downloaded.

    Raises:
        UserError: an unknown name.
    """
    if unavailable_distance(name) is None or name in ("lpips-alex", "lpips-alex@64", "dreamsim"):
        return []
    if name == "lpips-vgg":
        url = f"https://download.pytorch.org/models/{_vgg16_file().name}"
        return [FileDownload("VGG16", url, _vgg16_file(), "397923af")]
    return backbone(name, "").downloads()


def _vgg16_file() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / "vgg16-397923af.pth"


def _dreamsim_folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / "dreamsim"


def _dreamsim_problem() -> str | None:
    if importlib.util.find_spec("dreamsim") is None:
        return "dreamsim is not installed; pip install 'unlearnbench[dreamsim]'"
    missing = [name for name in DREAMSIM if not (_dreamsim_folder() / name).exists()]
    if missing:
        fetch = f"`from dreamsim import dreamsim; dreamsim(device='cpu', cache_dir='{_dreamsim_folder()}')`"
        return f"DreamSim's {missing[0]} is not at {_dreamsim_folder()}; fetch its weights once with {fetch}"
    return None


@cache
def dreamsim_network(device: torch.device) -> torch.nn.Module:
    """DreamSim (Fu et al. 2023, arXiv 2306.09344), the ensemble, by the authors' package."""
    from dreamsim import dreamsim

    with contextlib.redirect_stdout(io.StringIO()):
        network, _ = dreamsim(pretrained=True, device=str(device), cache_dir=str(_dreamsim_folder()))
    return network.eval().requires_grad_(False)


@cache
def lpips_network(net: str) -> torch.nn.Module:
    """LPIPS v0.1 (Zhang et al. 2018, arXiv 1801.03924) by the authors' package; weights from here or torchvision."""
    import lpips

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        network = lpips.LPIPS(net=net, pnet_rand=net == "alex", verbose=False)
    if net == "alex":
        network.net.load_state_dict(load_file(LPIPS_ALEX))
    return network.eval().requires_grad_(False)


class Distances(Reader):
    """The distance of each pair of images, float64 (n,); see `pair_distances`."""

    kind = "distances"

    def __init__(self, name: str) -> None:
        self.name = name

    def key(self) -> list[Any]:
        """See `Reader.key`."""
        if self.name.startswith("lpips-"):
            network = lpips_network(self.name.removeprefix("lpips-").partition("@")[0])
            return [self.name, version("lpips"), network_version(network)]
        return [self.name, version("dreamsim") if self.name == "dreamsim" else backbone(self.name, "").version()]

    def read(self, images: Sequence[Tensor], device: torch.device) -> Tensor:
        """See `Reader.read`."""
        return pair_distances(self.name, images[0], images[1], device)


@torch.no_grad()
def pair_distances(name: str, left: Tensor, right: Tensor, device: torch.device) -> Tensor:
    """The distance of each pair of images.

    Args:
        name: lpips-alex or lpips-vgg (images in [-1, 1] at their own size); lpips-alex@64 (at 64 px, by torchvision's antialiased
            bilinear Resize(64), rounded to 8 bits: ESD's evaluation and its successors'); classifier, detector: the squared
            difference of unit-normalised activations, mean over positions and over the network's four stages (LPIPS' form with
            equal weights); clip, clip-pictoworld, clip-pictoscenes: 1 - cosine; dreamsim: its
            ensemble, images at 224 px (an extra).
        left: uint8 (n, h, w, 3).
        right: the same.
        device: where the network runs.

    Returns:
        float64 (n,), 0 for equal images.
    """
    parts = [_batch(name, a, b, device) for a, b in zip(left.split(64), right.split(64), strict=True)]
    return torch.cat(parts).cpu().double()


def _batch(name: str, left: Tensor, right: Tensor, device: torch.device) -> Tensor:
    if name.startswith("lpips-"):
        net, _, side = name.removeprefix("lpips-").partition("@")
        if side:
            left, right = (_resized(x, int(side)) for x in (left, right))
        network = move(lpips_network(net), device)
        a, b = (x.permute(0, 3, 1, 2).float().to(device) / 127.5 - 1 for x in (left, right))
        return network(a, b).reshape(-1)
    if name == "dreamsim":
        a, b = (resize_images(x, 224).permute(0, 3, 1, 2).float().to(device) / 255 for x in (left, right))
        return move(dreamsim_network(device), device)(a, b).reshape(-1)
    extractor = backbone(name, "")
    extractor.load(device)
    if isinstance(extractor, WorldNetwork):
        maps = [extractor.model.maps(to_unit(x).to(device)) for x in (left, right)]
        unit = [[m / m.norm(dim=1, keepdim=True).clamp_min(1e-10) for m in stage] for stage in maps]
        return torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in zip(*unit, strict=True)]).mean(0)
    return 1 - (extractor.features(left) * extractor.features(right)).sum(1)


def _resized(images: Tensor, size: int) -> Tensor:
    """Images, uint8 (n, h, w, 3), as Pillow resizes them by its bilinear filter, as torchvision's Resize does for its images."""
    resize = [Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR) for image in images.numpy()]
    return torch.from_numpy(np.stack([np.asarray(image) for image in resize]))
