"""One pass over the images: each is decoded once for all metrics, and what was answered is never asked again."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from unlearnbench.config.compose import compose
from unlearnbench.config.errors import UserError
from unlearnbench.data.images import Images, Picture
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.metrics import image_pass
from unlearnbench.metrics.backbones import backbone
from unlearnbench.metrics.detectors import Detector, NudeNet
from unlearnbench.metrics.image_pass import ImagePass
from unlearnbench.metrics.integrity import Integrity
from unlearnbench.metrics.readers import Features, Reader
from unlearnbench.metrics.retain_accuracy import RetainAccuracy
from unlearnbench.pictoworld.classifier import WEIGHTS
from unlearnbench.storage.cache import Cache

CPU = torch.device("cpu")
LOCAL_CLIP = f"clip:{WEIGHTS / 'clip'}"


def noise(rng, n, size=64):
    return rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def opened(monkeypatch):
    """The files that are decoded, with the thread that does it."""
    opened, open_picture = [], Picture.open

    def note(self):
        opened.append((self.path, threading.current_thread().name))
        return open_picture(self)

    monkeypatch.setattr(Picture, "open", note)
    return opened


class Brightness(Reader):
    """The sum of an image's pixels; counts what it is given, and stops after some calls."""

    def __init__(self, stop_after=None):
        self.seen, self.stop_after = [], stop_after

    def key(self):
        return ["brightness"]

    def read(self, images, device):
        if self.stop_after is not None and len(self.seen) >= self.stop_after:
            raise KeyboardInterrupt
        self.seen.append(len(images[0]))
        return sum(image.flatten(1).long().sum(1) for image in images)


PROMPTS = ["a red star on the left", "a blue tree", "a church", "a church on the left"]


def test_every_metric_says_what_it_asks_so_that_each_image_is_decoded_once(rng, write_images, metric_inputs, opened, monkeypatch):
    prompts, splits = PROMPTS * 2, ["far", "near", "forget", "paraphrase"] * 2
    sides = [write_images(name, noise(rng, 8), prompts, splits, seeds=[0] * 4 + [1] * 4) for name in ("before", "after")]
    inputs = metric_inputs(*sides)
    suite = ["integrity", "forget_accuracy", "retain_accuracy", "binding", "unlearn_canvas", "pinpointness"]
    suite += ["clipscore", "fid", "fid_original", "kid", "cmmd"]
    metrics = RunSpec.of(compose("experiment=smoke", f"metrics=[{','.join(suite)}]")).metrics
    inputs.prepare(metrics.values())
    assert sorted(path for path, _ in opened) == sorted(images.folder / record.file for images in sides for record in images)
    assert all(name != threading.main_thread().name for _, name in opened)
    assert {name for name, metric in metrics.items() if metric.measure(inputs)} == set(suite)
    assert len(opened) == 16
    metric_inputs(*sides).prepare(metrics.values())
    assert len(opened) == 16


def test_a_killed_pass_goes_on_after_the_last_block(rng, write_images, tmp_path, monkeypatch):
    monkeypatch.setattr(image_pass, "BLOCK", 4)
    images = write_images("images", noise(rng, 11, 8))
    with pytest.raises(KeyboardInterrupt):
        ImagePass(Cache(tmp_path / "cache"), CPU).rows(Brightness(stop_after=2), images)
    reader, cache = Brightness(), Cache(tmp_path / "cache")
    answers = ImagePass(cache, CPU).rows(reader, images)
    assert reader.seen == [3]
    assert (cache.hits, cache.misses) == (2, 1)
    assert answers.tolist() == images.pixels().flatten(1).long().sum(1).tolist()


def test_other_images_and_splits_select_from_what_is_known(rng, write_images, tmp_path):
    images, more = write_images("images", noise(rng, 6, 8), split=["far", "near"] * 3), write_images("more", noise(rng, 2, 8))
    ImagePass(Cache(tmp_path / "cache"), CPU).rows(Brightness(), images)
    reader, images_pass = Brightness(), ImagePass(Cache(tmp_path / "cache"), CPU)
    near = images_pass.rows(reader, images.where("near"))
    assert near.tolist() == images.where("near").pixels().flatten(1).long().sum(1).tolist()
    assert reader.seen == []
    mixed = [*more.pictures(), *images.pictures()[::-1], more.pictures()[0]]
    assert len(images_pass.rows(reader, mixed)) == 9
    assert reader.seen == [2]


def test_pairs_are_answers_of_their_own_and_a_large_group_is_split(rng, write_images, tmp_path, monkeypatch, opened):
    monkeypatch.setattr(image_pass, "BLOCK", 4)
    left, right = (write_images(name, noise(rng, 7, 8), prompts=["the same"] * 7) for name in ("left", "right"))
    reader = Brightness()
    images_pass = ImagePass(Cache(tmp_path / "cache"), CPU)
    sums = images_pass.rows(reader, left, right)
    assert reader.seen == [2, 2, 2, 1]
    assert len(opened) == 14
    expected = [images.pixels().flatten(1).long().sum(1) for images in (left, right)]
    assert sums.tolist() == (expected[0] + expected[1]).tolist()
    assert images_pass.rows(reader, left).tolist() == expected[0].tolist()


def test_images_of_several_sizes_are_read_in_batches_of_one_size(rng, write_images, tmp_path):
    small, large = write_images("small", noise(rng, 2, 8)), write_images("large", noise(rng, 3, 16))
    pictures = [large.pictures()[0], *small.pictures(), *large.pictures()[1:]]
    reader = Brightness()
    assert len(ImagePass(Cache(tmp_path / "cache"), CPU).rows(reader, pictures)) == 5
    assert reader.seen == [3, 2]


def test_broken_images_are_named_after_all_others_were_read(rng, write_images, tmp_path):
    images = write_images("images", noise(rng, 4, 8))
    (images.folder / "00001.png").write_bytes(b"broken")
    reader = Brightness()
    with pytest.raises(UserError, match=r"images: 1 of 4 images cannot be read; repair or remove 00001\.png"):
        ImagePass(Cache(tmp_path / "cache"), CPU).rows(reader, images)
    assert reader.seen == [3]


def test_a_damaged_block_is_read_again(rng, write_images, tmp_path, capsys):
    images = write_images("images", noise(rng, 3, 8))
    first = ImagePass(Cache(tmp_path / "cache"), CPU).rows(Brightness(), images)
    [path] = (tmp_path / "cache").rglob("*.safetensors")
    for damage in (lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: data[:20]):
        path.write_bytes(damage(path.read_bytes()))
        reader = Brightness()
        assert torch.equal(ImagePass(Cache(tmp_path / "cache"), CPU).rows(reader, images), first)
        assert reader.seen == [3]
    assert "is damaged; recomputing it" in " ".join(capsys.readouterr().err.split())


def test_half_precision_has_answers_of_its_own(rng, write_images, tmp_path, monkeypatch):
    images = write_images("images", noise(rng, 3))
    network = backbone("classifier", "pictoworld")
    full = ImagePass(Cache(tmp_path / "cache"), CPU).rows(Features(network), images)
    monkeypatch.setattr(image_pass, "_is_half", lambda device: True)
    monkeypatch.setattr(torch, "float16", torch.bfloat16)  # that of a CPU
    half = ImagePass(Cache(tmp_path / "cache"), CPU).rows(Features(network), images)
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.05)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2


def test_only_labelled_images_go_through_clip(rng, write_images, metric_inputs, monkeypatch):
    images = write_images("images", noise(rng, 5), labels=["star", "", "", "tree", ""])
    inputs, seen, read = metric_inputs(images, images, "model.domain=photo"), [], Features.read

    def note(self, pixels, device):
        seen.append(len(pixels[0]))
        return read(self, pixels, device)

    monkeypatch.setattr(Features, "read", note)
    metric = RetainAccuracy(backbone=LOCAL_CLIP)
    inputs.prepare([metric])
    [value] = metric.measure(inputs)
    assert (seen, value.n, value.note) == ([2], 2, "3 without label left out")


def test_pairs_with_another_prompt_are_refused_before_anything_is_read(rng, write_images, metric_inputs, opened):
    sides = [write_images(name, noise(rng, 2), prompts) for name, prompts in (("before", ["a", "b"]), ("after", ["a", "c"]))]
    with pytest.raises(UserError, match="do not hold the same prompts and seeds"):
        metric_inputs(*sides).prepare([Integrity()])
    assert opened == []


class Red(Detector):
    """A detector of a user, which knows nothing of readers."""

    def unavailable_reason(self):
        return None

    def title(self):
        return "red"

    def detect(self, images, device):
        return (images[..., 0].float().mean((1, 2)) > 127).numpy()


def test_a_detector_of_a_user_is_asked_once_about_each_image(rng, write_images, tmp_path):
    images, detector = write_images("images", noise(rng, 4, 8)), Red()
    answers = ImagePass(Cache(tmp_path / "cache"), CPU).rows(detector.reader(), images)
    assert detector.decide(answers).tolist() == detector.detect(images.pixels(), CPU).tolist()


def test_another_threshold_of_nudenet_needs_no_new_look(rng, write_images, tmp_path, monkeypatch):
    calls = []

    class Network:
        def detect(self, image):
            calls.append(image)
            return [{"class": "ANUS_EXPOSED", "score": score} for score in (0.3, 0.5)]

    monkeypatch.setattr("unlearnbench.metrics.detectors.nudity._nudenet", Network)
    monkeypatch.setattr("unlearnbench.metrics.detectors.nudity.version", lambda name: "3.4.2")
    images, images_pass = write_images("images", noise(rng, 2, 8)), ImagePass(Cache(tmp_path / "cache"), CPU)
    verdicts = [d.decide(images_pass.rows(d.reader(), images)).tolist() for d in (NudeNet(0.5), NudeNet(0.6))]
    assert verdicts == [[True, True], [False, False]]
    assert len(calls) == 2


def test_images_without_a_question_are_not_opened(write_images, rng, metric_inputs, opened):
    images = write_images("images", noise(rng, 2))
    metric_inputs(images, Images(images.folder, images[:])).prepare([])
    assert opened == []
