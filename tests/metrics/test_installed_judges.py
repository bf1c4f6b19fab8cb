"""The judges of extras as their packages are, where these are installed: NudeNet's own weights, timm's own networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from unlearnbench.metrics.detectors import NudeNet
from unlearnbench.metrics.detectors.classifiers import TimmClassifier
from unlearnbench.metrics.detectors.nudity import NUDENET_CLASSES

pytestmark = pytest.mark.thorough  # `make thorough` installs the extras


@pytest.fixture(scope="module")
def portrait():
    """A photograph of Grace Hopper, of those that matplotlib brings along, and noise of its size."""
    matplotlib = pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    photograph = np.asarray(Image.open(path).convert("RGB"))
    noise = np.random.default_rng(0).integers(0, 256, photograph.shape, np.uint8)
    return torch.from_numpy(np.stack([photograph, noise]))


def test_nudenet_finds_a_face_where_one_is(portrait):
    nudenet = pytest.importorskip("nudenet", reason="the extra `nudenet` is not installed")
    package = nudenet.NudeDetector()
    assert set(package.detect(np.zeros((64, 64, 3), np.uint8))) == set()
    faces = NudeNet(0.5, ["FACE_FEMALE", "FACE_MALE"])
    assert faces.detect(portrait, torch.device("cpu")).tolist() == [True, False]
    assert NudeNet(0.5, ["exposed"]).detect(portrait, torch.device("cpu")).tolist() == [False, False]
    theirs = package.detect(np.ascontiguousarray(portrait[0].numpy()[..., ::-1]))
    answers = faces.reader().read([portrait], torch.device("cpu"))[0]
    for detection in theirs:
        assert answers[NUDENET_CLASSES.index(detection["class"]), 0] == pytest.approx(detection["score"])
    assert int((answers > 0).sum()) == len(theirs)


def test_a_vit_of_timm_gives_timms_own_answers(portrait, tmp_path):
    timm = pytest.importorskip("timm", reason="the extra `timm` is not installed")
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=3).eval()
    save_file({f"model_state_dict.{name}": value for name, value in model.state_dict().items()}, tmp_path / "vit.safetensors")
    judge = TimmClassifier(str(tmp_path / "vit.safetensors"), ["a", "b", "c"], ["b"], "vit_tiny_patch16_224")
    assert judge.unavailable_reason() is None
    resized = [Image.fromarray(image).resize((224, 224), Image.Resampling.BILINEAR) for image in portrait.numpy()]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in resized])).permute(0, 3, 1, 2) / 127.5 - 1
    expected = model(pixels).softmax(-1)
    torch.testing.assert_close(judge.reader().read([portrait], torch.device("cpu")), expected)
    assert judge.detect(portrait, torch.device("cpu")).tolist() == (expected.argmax(1) == 1).tolist()
