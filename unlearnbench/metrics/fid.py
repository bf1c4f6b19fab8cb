"""Frechet and kernel distances: to real images, and to the original model's images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from unlearnbench.config.errors import UserError
from unlearnbench.data.image_reader import image_files, reading_key
from unlearnbench.data.images import Picture
from unlearnbench.data.prompt_sets import prompt_set
from unlearnbench.data.prompts import RETAIN_SPLITS
from unlearnbench.metrics.backbones import CLIP, Backbone, Inception, backbone
from unlearnbench.metrics.base import EvaluationSetting, Metric, MetricInputs
from unlearnbench.metrics.readers import Features, Question
from unlearnbench.results.run import Value
from unlearnbench.storage.cache import digest
from unlearnbench.storage.downloads import Download
from unlearnbench.storage.tensors import float64_device
from unlearnbench.worlds import embedded_world

FEW_IMAGES = 2000  # below so many, the Frechet distance is biased
PAIRS = 2**22  # pairs of images in one block of the kernel matrix


def frechet_distance(left: Tensor, right: Tensor) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2) of two sets of features (n, d) and (m, d) (Heusel et al. 2017).

    With A and B the centred features over sqrt(n - 1), S_a = A^T A, the trace of (S_a S_b)^1/2 is the sum of the singular
    values of A B^T: exact for any n, and without the square root of a d x d matrix. If n > d, a QR step comes first. Singular
    values are LAPACK's, on the CPU, where a GPU's would be less exact.
    """
    if torch.equal(left, right):
        return 0.0
    means, roots = [], []
    for features in (left, right):
        root = features.to(torch.float64, copy=True)
        mean = root.mean(0)
        root.sub_(mean).div_((len(root) - 1) ** 0.5)  # in place: features of many images are large
        means.append(mean)
        roots.append(torch.linalg.qr(root, mode="r").R if root.shape[0] > root.shape[1] else root)
    a, b = roots
    cross = torch.linalg.svdvals((a @ b.T).cpu()).sum()
    return max(0.0, float((means[0] - means[1]).square().sum() + a.square().sum() + b.square().sum()) - 2 * float(cross))


def kernel_distance(left: Tensor, right: Tensor, gamma: float | None = None) -> float:
    """KID (Binkowski et al. 2018): the unbiased MMD^2 with kernel (gamma x.y + 1)^3 over all features, no subsets.

    Args:
        left: features (n, d).
        right: features (m, d).
        gamma: 1 / d, as in the paper, unless given.
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
    """The sum of a kernel over all pairs of (n, d) and (m, d), in blocks of rows, so that no n x m matrix is allocated.

    Args:
        kernel: from (n, d) and (m, d) to (n, m).
        left: (n, d).
        right: (m, d).
    """
    rows = left.split(max(1, PAIRS // len(right)))
    return torch.stack([kernel(block, right).sum() for block in rows]).sum()


def real_pictures(setting: EvaluationSetting, network: Backbone) -> list[Picture]:
    """The retain set's real images as a network takes them: a folder's or a set's; empty where the world renders its own."""
    images = setting.real_images
    if images is None:
        return []
    images_set = prompt_set(images)
    files = image_files(images_set.unpack(setting.cache) if images_set else Path(images))
    keys = zip(files, reading_key(files), strict=True)
    size = None if network.whole_images else setting.size
    return [Picture(digest(key, size), str(file), file, size) for file, key in keys]


def real_features(inputs: MetricInputs, name: str) -> Tensor:
    """Features of the retain set's real images: a folder, a prompt set's images, or four renders of each prompt of a world."""
    network = inputs.backbone(name)
    if pictures := real_pictures(inputs.setting, network):
        return inputs.answers(Features(network), pictures).to(float64_device(inputs.device))
    world = embedded_world(inputs.setting.domain)
    assert world is not None
    prompts = sorted({record.prompt for record in inputs.original_images.where(*RETAIN_SPLITS)})

    def make() -> dict[str, Tensor]:
        rng, features = np.random.default_rng(0), []
        network.load(inputs.device)
        for i in range(0, len(prompts), 16):
            renders = [world.render(p, rng) for p in prompts[i : i + 16] for _ in range(4)]
            features.append(network.features(torch.from_numpy(np.stack(renders))))
        return {"features": torch.cat(features).cpu()}

    with torch.no_grad():
        key = [world.name, world.rendering_version(), network.name, network.version(), prompts]
        features = inputs.cache.get("renders", key, make)["features"]
    return features.to(float64_device(inputs.device))


@dataclass
class FeatureDistance(Metric):
    """A distance between two sets of features.

    Attributes:
        backbone: auto (Pictoworld: its classifier; Pictoscenes: its detector; photographs: Inception), classifier, detector,
            inception, inception-clean (as clean-fid resizes), clip, clip:<path>.
    """

    backbone: str = "auto"
    table: ClassVar[str] = "FID"
    better: ClassVar[str] = "lower"
    least_retain_images: ClassVar[int] = 2  # a covariance, or a pair

    def unavailable_reason(self, setting: EvaluationSetting) -> str | None:
        """See `Metric.unavailable_reason`."""
        return backbone(self.backbone, setting.domain).unavailable_reason()

    def downloads(self, setting: EvaluationSetting) -> list[Download]:
        """See `Metric.downloads`."""
        return backbone(self.backbone, setting.domain).downloads()

    @abstractmethod
    def measure(self, inputs: MetricInputs) -> list[Value]:
        """See `Metric.measure`."""

    def questions(self, inputs: MetricInputs) -> Iterable[Question]:
        """See `Metric.questions`."""
        reader = Features(inputs.backbone(self.backbone))
        return [Question(reader, (images,)) for images in inputs.both(*RETAIN_SPLITS)]

    def retain_features(self, inputs: MetricInputs) -> tuple[Tensor, Tensor]:
        """Features of the original's and of the unlearned model's retain images."""
        device = float64_device(inputs.device)
        original, unlearned = (inputs.features(images, self.backbone).to(device) for images in inputs.both(*RETAIN_SPLITS))
        return original, unlearned

    def distance(self, metric: str, inputs: MetricInputs, original: float, unlearned: float, *, note: str) -> Value:
        """The value of a distance on the retain prompts."""
        n = len(inputs.unlearned_images.where(*RETAIN_SPLITS))
        name = inputs.backbone(self.backbone).name
        return self.value(metric, "retain", unlearned, n=n, backbone=name, original=original, note=note)


class DistanceToReal(FeatureDistance):
    """A distance that needs real images of the retain set."""

    def unavailable_reason(self, setting: EvaluationSetting) -> str | None:
        """See `Metric.unavailable_reason`."""
        name = type(self).__name__.lower()
        images = setting.real_images
        try:
            images_set = prompt_set(images)
            if self.may_be_left_out(setting) and (images_set is None or not images_set.is_local()):
                repair = f"set retain.images=FOLDER, or remove it with '~metrics.{name}'"
                return f"{name} needs real images of the retain set: {repair}"
            if images_set is not None:
                images_set.has_images()
            elif images is not None and (count := len(image_files(Path(images)))) < self.least_retain_images:
                return (
                    f"retain.images={images}: {name} needs at least {self.least_retain_images} real images, and there is {count}"
                )
        except UserError as error:
            return f"retain.images={error}"
        return super().unavailable_reason(setting)

    def downloads(self, setting: EvaluationSetting) -> list[Download]:
        """See `Metric.downloads`; also the real images, if they are a set of the hub."""
        images_set = prompt_set(setting.real_images)
        images = images_set.download() if images_set is not None else None
        return [*super().downloads(setting), *([images] if images else [])]

    def questions(self, inputs: MetricInputs) -> Iterable[Question]:
        """See `Metric.questions`; also the real images."""
        network = inputs.backbone(self.backbone)
        return [*super().questions(inputs), Question(Features(network), (real_pictures(inputs.setting, network),))]

    def may_be_left_out(self, setting: EvaluationSetting) -> bool:
        """Where the user names no real images: those of `DEFAULT_IMAGES` are taken where they can be had."""
        return setting.retain.images is None and embedded_world(setting.domain) is None


def _foreign_features(network: Backbone) -> str:
    """The name of features that are neither Inception's nor CLIP's: their distances do not compare to published numbers."""
    return "" if isinstance(network, (Inception, CLIP)) else f"{network.name} features"


def _frechet_note(inputs: MetricInputs, name: str) -> str:
    few = len(inputs.unlearned_images.where(*RETAIN_SPLITS)) < FEW_IMAGES
    bias = f"biased below {FEW_IMAGES} images" if few else ""
    return ", ".join(filter(None, (_foreign_features(inputs.backbone(name)), bias)))


@dataclass
class FID(DistanceToReal):
    """The Frechet distance of the models' retain images to real images of the retain set.

    Only on Inception's features it is the FID of the literature; on others the table's remark names them.
    """

    def measure(self, inputs: MetricInputs) -> list[Value]:
        """fid, original and unlearned."""
        sides = self.retain_features(inputs)
        real = real_features(inputs, self.backbone)
        note = _frechet_note(inputs, self.backbone)
        return [self.distance("fid", inputs, *(frechet_distance(features, real) for features in sides), note=note)]


@dataclass
class FIDOriginal(FeatureDistance):
    """The Frechet distance of the unlearned model's retain images to the original's (FID-SD of HUB, arXiv 2410.05664)."""

    def measure(self, inputs: MetricInputs) -> list[Value]:
        """fid_original; the original's own is 0."""
        note = _frechet_note(inputs, self.backbone)
        return [self.distance("fid_original", inputs, 0.0, frechet_distance(*self.retain_features(inputs)), note=note)]


@dataclass
class KID(DistanceToReal):
    """The kernel distance to the real images, times 1000: unbiased, for small sets.

    On Inception's features the kernel is that of the paper, gamma = 1 / d. Features of other networks have another scale,
    on which the cubic would be unreadable: there gamma = 1 / the mean of |x|^2 over the real images, so that the kernel of
    a real image with itself is about 8, whatever the scale.
    """

    unit: ClassVar[str] = "x 1000"

    def measure(self, inputs: MetricInputs) -> list[Value]:
        """kid, original and unlearned."""
        sides = self.retain_features(inputs)
        real = real_features(inputs, self.backbone)
        network = inputs.backbone(self.backbone)
        inception = isinstance(network, Inception)
        gamma = None if inception else 1 / float(real.double().square().sum(1).mean())
        note = "" if inception else f"{_foreign_features(network) or 'features'} scaled to the norm of the real images'"
        distances = (1000 * kernel_distance(features, real, gamma) for features in sides)
        return [self.distance("kid", inputs, *distances, note=note)]
