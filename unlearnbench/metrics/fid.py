"""Frechet distances: to real images, and to the original model's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from unlearnbench.config.errors import UserError
from unlearnbench.data.images import image_files, open_image, refuse_broken
from unlearnbench.data.prompt_sets import prompt_set
from unlearnbench.data.prompts import RETAIN_SPLITS
from unlearnbench.metrics.backbones import backbone
from unlearnbench.metrics.base import Metric, MetricInputs
from unlearnbench.results.run import Value
from unlearnbench.storage.cache import digest

if TYPE_CHECKING:
    from unlearnbench.experiment.run_spec import RunSpec


FEW = 2000
PAIRS = 2**22  # at once


def frechet_distance(left: Tensor, right: Tensor) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2) of two sets of features (n, d) and (m, d) (Heusel et al. 2017).

    With A and B the centred features over sqrt(n - 1), S_a = A^T A, the trace of (S_a S_b)^1/2 is the sum of the singular
    values of A B^T: exact for any n, and without the square root of a d x d matrix. A QR step first, where n > d.
    """
    if torch.equal(left, right):
        return 0.0
    means, roots = [], []
    for features in (left.double(), right.double()):
        mean = features.mean(0)
        root = (features - mean) / (len(features) - 1) ** 0.5
        means.append(mean)
        roots.append(torch.linalg.qr(root, mode="r").R if root.shape[0] > root.shape[1] else root)
    a, b = roots
    cross = torch.linalg.svdvals(a @ b.T).sum()
    return max(0.0, float((means[0] - means[1]).square().sum() + a.square().sum() + b.square().sum() - 2 * cross))


def kernel_distance(left: Tensor, right: Tensor, gamma: float | None = None) -> float:
    """KID (Binkowski et al. 2018): the unbiased MMD^2 with kernel (gamma x.y + 1)^3 over all features, no subsets.

    Args:
        left: features (n, d).
        right: features (m, d).
        gamma: 1 / d as there, unless given.
    """

    scale = 1 / left.shape[1] if gamma is None else gamma

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T * scale + 1) ** 3

    def within(a: Tensor) -> Tensor:
        own = (a.square().sum(1) * scale + 1) ** 3
        return (sum_over_pairs(kernel, a, a) - own.sum()) / (len(a) * (len(a) - 1))

    a, b = left.double(), right.double()
    return float(within(a) + within(b) - 2 * sum_over_pairs(kernel, a, b) / (len(a) * len(b)))


def sum_over_pairs(kernel: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor) -> Tensor:
    """The sum of a kernel over all pairs of (n, d) and (m, d), in blocks of rows: 30,000 images ask for no n x m matrix.

    Args:
        kernel: from (n, d) and (m, d) to (n, m).
        left: (n, d).
        right: (m, d).
    """
    rows = left.split(max(1, PAIRS // len(right)))
    return torch.stack([kernel(some, right).sum() for some in rows]).sum()


def real_features(evidence: MetricInputs, name: str) -> Tensor:
    """Features of the retain set's real images: the user's folder, a prompt set's, or four renders of each Pictoworld prompt."""
    network = evidence.backbone(name)
    images = evidence.spec.retain.images
    if images is not None:
        known = prompt_set(images)
        files = image_files(known.unpack(evidence.spec.cache) if known else Path(images))
        size = evidence.spec.model.size
        key = digest([(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files], size)
        return evidence.features_of(key, lambda: _batches(files, size), network)
    from unlearnbench.pictoworld.captions import complete
    from unlearnbench.pictoworld.render import render

    prompts = sorted({shot.prompt for shot in evidence.before.where(*RETAIN_SPLITS)})

    def renders() -> Iterator[Tensor]:
        rng = np.random.default_rng(0)
        for i in range(0, len(prompts), 16):
            yield torch.from_numpy(np.stack([render(complete(p, rng), rng) for p in prompts[i : i + 16] for _ in range(4)]))

    return evidence.features_of(digest("renders", prompts), renders, network)


def _batches(files: Sequence[Path], size: int) -> Iterator[Tensor]:
    """The images, 64 at a time; at the end it tells which of them were broken, if any."""
    broken = []
    for i in range(0, len(files), 64):
        read = []
        for path in files[i : i + 64]:
            try:
                read.append(open_image(path, size))
            except UserError:
                broken.append(path)
        if read:
            yield torch.from_numpy(np.stack(read))
    refuse_broken(files[0].parent, broken, len(files))


@dataclass
class _Distance(Metric):
    """A distance between sets of features.

    Attributes:
        backbone: auto (Pictoworld: its classifier; photographs: Inception), classifier, inception, clip, clip:<path>.
    """

    backbone: str = "auto"

    def unavailable_reason(self, spec: RunSpec) -> str | None:
        """See `Metric.unavailable_reason`."""
        return backbone(self.backbone, spec.model.domain).unavailable_reason()

    @abstractmethod
    def measure(self, evidence: MetricInputs) -> list[Value]:
        """See `Metric.measure`."""

    def _retain(self, evidence: MetricInputs) -> tuple[Tensor, Tensor, str]:
        network = evidence.backbone(self.backbone)
        return (
            evidence.features(evidence.before.where(*RETAIN_SPLITS), self.backbone),
            evidence.features(evidence.after.where(*RETAIN_SPLITS), self.backbone),
            network.name,
        )


class ToReal(_Distance):
    """One that needs real images of the retain set."""

    def unavailable_reason(self, spec: RunSpec) -> str | None:
        """See `Metric.unavailable_reason`."""
        name = type(self).__name__.lower()
        images = spec.retain.images
        if images is None and spec.model.domain != "pictoworld":
            return f"{name} needs real images of the retain set: retain.images=FOLDER, or leave it out with '~metrics.{name}'"
        try:
            if (known := prompt_set(images)) is not None:
                known.has_images()
            elif images is not None:
                image_files(Path(images))
        except UserError as error:
            return f"retain.images={error}"
        return super().unavailable_reason(spec)


def _warning(n: int) -> str:
    return f"biased below {FEW} images" if n < FEW else ""


@dataclass
class FID(ToReal):
    """The Frechet distance of the models' retain images to real images of the retain set."""

    def measure(self, evidence: MetricInputs) -> list[Value]:
        """fid, original and unlearned."""
        before, after, name = self._retain(evidence)
        real = real_features(evidence, self.backbone)
        n = len(after)
        return [
            Value(
                "FID",
                "fid",
                "retain",
                frechet_distance(before, real),
                frechet_distance(after, real),
                "lower",
                n,
                backbone=name,
                note=_warning(n),
            )
        ]


@dataclass
class FIDOriginal(_Distance):
    """The Frechet distance of the unlearned model's retain images to the original's (FID-SD of HUB, arXiv 2410.05664)."""

    def measure(self, evidence: MetricInputs) -> list[Value]:
        """fid_original; the original's own is 0."""
        before, after, name = self._retain(evidence)
        n = len(after)
        return [
            Value(
                "FID", "fid_original", "retain", 0.0, frechet_distance(before, after), "lower", n, backbone=name, note=_warning(n)
            )
        ]


@dataclass
class KID(ToReal):
    """The kernel distance to the real images, times 1000: unbiased, for small sets.

    On Inception's features the kernel is that of the paper, gamma = 1 / d. Features of other networks have another scale,
    on which the cubic would be unreadable: there gamma = 1 / the mean of |x|^2 over the real images, so that the kernel of
    a real image with itself is about 8, whatever the scale.
    """

    def measure(self, evidence: MetricInputs) -> list[Value]:
        """kid, original and unlearned."""
        before, after, name = self._retain(evidence)
        real = real_features(evidence, self.backbone)
        gamma = None if name == "inception" else 1 / float(real.double().square().sum(1).mean())
        pair = [1000 * kernel_distance(x, real, gamma) for x in (before, after)]
        note = "x 1000" if gamma is None else "x 1000, features to the scale of the real images'"
        return [Value("FID", "kid", "retain", pair[0], pair[1], "lower", len(after), backbone=name, note=note)]
