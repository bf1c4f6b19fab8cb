"""Image classifiers as detectors: transformers' and timm's."""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from unlearnbench.config.errors import UserError, first_line, suggest
from unlearnbench.config.paths import at_home
from unlearnbench.config.ranges import at_least, share_above_zero
from unlearnbench.metrics.backbones import (
    network_downloads,
    network_problem,
    network_version,
)
from unlearnbench.metrics.detectors.base import ReadDetector
from unlearnbench.metrics.devices import move
from unlearnbench.metrics.readers import Reader
from unlearnbench.storage.downloads import Download


class LabelClassifier(ReadDetector):
    """A detector that also says which of its labels each image shows; its reader answers with their probabilities."""

    @abstractmethod
    def names_in_order(self) -> list[str]:
        """The labels, in the order of the reader's answers."""

    def likeliest(self, answers: Tensor) -> list[str]:
        """The likeliest label of each image, from the reader's answers, (n, labels)."""
        names = self.names_in_order()
        return [names[i] for i in answers.argmax(1).tolist()]

    def classify(self, images: Tensor, device: torch.device) -> list[str]:
        """The likeliest label of each image, uint8 (n, h, w, 3)."""
        return self.likeliest(self.answers(images, device))


@dataclass
class ImageClassifier(LabelClassifier):
    """Any image classifier in transformers' layout: one of some labels is among the most likely, or likely enough.

    Attributes:
        path: a folder or a hub id.
        labels: the labels that mean the concept, as the model's config names them.
        top: one of them must be among so many most likely labels; UnlearnDiffAtk takes 1 for objects, 3 for styles.
        threshold: the minimum of the labels' summed probability, used instead of `top` unless null.
        revision: the hub's branch, tag or commit.
    """

    path: str = "???"
    labels: list[str] = field(default_factory=list)
    top: int = 1
    threshold: float | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        if not self.labels:
            raise ValueError("labels: name at least one")
        at_least(self, 1, "top")
        if self.threshold is not None:
            share_above_zero(self, "threshold")
        self.path = at_home(self.path)

    def unavailable_reason(self) -> str | None:
        """See `Detector.unavailable_reason`."""
        from transformers import AutoConfig

        if reason := network_problem("classifier", self.path, self.revision):
            return reason
        known = AutoConfig.from_pretrained(self.path, revision=self.revision, local_files_only=True).id2label.values()
        if unknown := [label for label in self.labels if label not in known]:
            return f"{self.path} has no label {unknown[0]!r}; {suggest(unknown[0], known)}"
        others = sum(label not in self.labels for label in known)
        if others < (self.top if self.threshold is None else 1):
            rule = (
                "every label means the concept"
                if others == 0
                else f"one of the top {self.top} of {len(known)} labels always does"
            )
            return f"{self.path}: {rule}, so that every image would count; name fewer labels, or a smaller top"
        return None

    def downloads(self) -> list[Download]:
        """See `Detector.downloads`."""
        return network_downloads("classifier", self.path, self.revision)

    def title(self) -> str:
        """See `Detector.title`."""
        rule = f"in the top {self.top}" if self.threshold is None else f">= {self.threshold}"
        return f"{self.path}{f'@{self.revision}' if self.revision else ''} {', '.join(self.labels)} {rule}"

    def reader(self) -> Reader:
        """See `Detector.reader`."""
        return Probabilities(self.path, self.revision)

    def names_in_order(self) -> list[str]:
        """See `LabelClassifier.names_in_order`."""
        labels = _image_classifier(self.path, self.revision)[1].config.id2label
        return [labels[i] for i in range(len(labels))]

    def decide(self, answers: Tensor) -> np.ndarray:
        """See `Detector.decide`."""
        chosen = [i for i, label in enumerate(self.names_in_order()) if label in self.labels]
        if self.threshold is not None:
            return (answers[:, chosen].sum(1) >= self.threshold).numpy()
        return _among_likeliest(answers, chosen, self.top)


class Probabilities(Reader):
    """The probability of each label by an image classifier in transformers' layout, (n, labels)."""

    kind = "detections"

    def __init__(self, path: str, revision: str | None) -> None:
        self.path, self.revision = path, revision

    def key(self) -> list[Any]:
        """See `Reader.key`."""
        processor, model = _image_classifier(self.path, self.revision)
        return [self.path, network_version(model), processor.to_json_string()]

    def read(self, images: Sequence[Tensor], device: torch.device) -> Tensor:
        """See `Reader.read`."""
        processor, model = _image_classifier(self.path, self.revision)
        inputs = processor(images=list(images[0].numpy()), return_tensors="pt").to(device)
        return move(model, device)(**inputs).logits.float().softmax(-1)


@dataclass
class TimmClassifier(LabelClassifier):
    """A classifier of timm with weights of your own, as UnlearnCanvas publishes its ViTs (timm is an extra).

    Images are resized to `size` by Pillow's bilinear filter and brought to [-1, 1], as in UnlearnCanvas' accuracy.py. Its
    files are pickles: `unlearnbench convert style50.pth style50.safetensors` first.

    Attributes:
        path: the weights, a .safetensors file.
        names: all classes of the classifier, in the order of its last layer.
        labels: the names that mean the concept.
        architecture: its name in timm.
        top: one of the labels must be among so many most likely ones.
        size: the side of its input, in pixels.
    """

    path: str = "???"
    names: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    architecture: str = "vit_large_patch16_224.augreg_in21k"
    top: int = 1
    size: int = 224

    def __post_init__(self) -> None:
        at_least(self, 1, "top", "size")
        if len(self.names) < 2:
            raise ValueError("names: name all classes of the classifier, at least two")
        if unknown := [label for label in self.labels if label not in self.names]:
            raise ValueError(f"labels: {unknown[0]!r} is not one of the names; {suggest(unknown[0], self.names)}")
        self.path = at_home(self.path)

    def unavailable_reason(self) -> str | None:
        """See `Detector.unavailable_reason`."""
        if importlib.util.find_spec("timm") is None:
            return "timm is not installed; pip install 'unlearnbench[timm]'"
        if not Path(self.path).is_file():
            return f"classifier {self.path}: no such file"
        if Path(self.path).suffix != ".safetensors":
            return f"classifier {self.path}: pickles are not opened; {pickle_repair(self.path)}"
        try:
            with safe_open(self.path, framework="pt") as file:
                names = [name for name in file.keys() if name.endswith("head.weight")]  # noqa: SIM118
                classes = file.get_slice(names[0]).get_shape()[0] if names else len(self.names)
        except (SafetensorError, OSError) as error:
            return f"classifier {self.path}: damaged or cut short ({first_line(error)})"
        if classes != len(self.names):
            return f"classifier {self.path}: it has {classes} classes, and names has {len(self.names)}"
        return None

    def title(self) -> str:
        """See `Detector.title`."""
        return f"{self.architecture} {Path(self.path).name} {', '.join(self.labels)} in the top {self.top}"

    def reader(self) -> Reader:
        """See `Detector.reader`."""
        return TimmProbabilities(self)

    def names_in_order(self) -> list[str]:
        """See `LabelClassifier.names_in_order`."""
        return self.names

    def decide(self, answers: Tensor) -> np.ndarray:
        """See `Detector.decide`."""
        return _among_likeliest(answers, [self.names.index(label) for label in self.labels], self.top)


class TimmProbabilities(Reader):
    """The probability of each class by a classifier of timm, (n, classes)."""

    kind = "detections"

    def __init__(self, classifier: TimmClassifier) -> None:
        self.classifier = classifier

    def key(self) -> list[Any]:
        """See `Reader.key`."""
        return [self.classifier.architecture, network_version(self._model()), self.classifier.size]

    def read(self, images: Sequence[Tensor], device: torch.device) -> Tensor:
        """See `Reader.read`."""
        side = (self.classifier.size, self.classifier.size)
        resized = [np.asarray(Image.fromarray(image).resize(side, Image.Resampling.BILINEAR)) for image in images[0].numpy()]
        pixels = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 127.5 - 1
        return move(self._model(), device)(pixels.to(device)).float().softmax(-1)

    def _model(self) -> Any:
        return _timm_model(self.classifier.architecture, len(self.classifier.names), self.classifier.path)


def pickle_repair(path: str) -> str:
    """The command that converts a pickle."""
    return f"convert it once: `unlearnbench convert {path} {Path(path).with_suffix('.safetensors')}`"


def _among_likeliest(probabilities: Tensor, chosen: list[int], top: int) -> np.ndarray:
    """Whether one of the chosen classes is among the `top` likeliest of each row, bool (n,)."""
    return torch.isin(probabilities.topk(min(top, probabilities.shape[1])).indices, torch.tensor(chosen)).any(1).numpy()


@cache
def _timm_model(architecture: str, classes: int, path: str) -> Any:
    import timm

    model = timm.create_model(architecture, pretrained=False, num_classes=classes)
    tensors, prefix = load_file(path), "model_state_dict."
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    try:
        model.load_state_dict(own or tensors)
    except RuntimeError as error:
        raise UserError(f"classifier {path}: its weights are not those of {architecture} ({first_line(error)})") from error
    return model.eval()


@cache
def _image_classifier(path: str, revision: str | None) -> tuple[Any, Any]:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    source = {"revision": revision, "local_files_only": True}
    model = AutoModelForImageClassification.from_pretrained(path, use_safetensors=True, **source)
    return AutoImageProcessor.from_pretrained(path, **source), model.eval()
