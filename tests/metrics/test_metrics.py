"""Metrics against independent references to 1e-4, and what every metric of conf/metrics owes the runner."""

from __future__ import annotations

import math
import sys
import tracemalloc
import types
from dataclasses import replace

import lpips
import numpy as np
import pytest
import scipy.linalg
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torchmetrics.functional.image.lpips import _LPIPS
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from transformers import AutoTokenizer, CLIPModel

from unlearnbench.config.compose import compose
from unlearnbench.config.errors import UserError
from unlearnbench.config.paths import choices
from unlearnbench.data.images import Images
from unlearnbench.data.prompts import Prompt
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.metrics import forget_accuracy
from unlearnbench.metrics import integrity as metrics_integrity
from unlearnbench.metrics.backbones import backbone, network_problem
from unlearnbench.metrics.clipscore import CLIPScore
from unlearnbench.metrics.cmmd import CMMD
from unlearnbench.metrics.detectors import Attribute, Detector, ImageClassifier, NudeNet, OpenNSFW, ZeroShot, nearest_labels
from unlearnbench.metrics.fid import FID, KID, FIDOriginal, frechet_distance, kernel_distance, real_features
from unlearnbench.metrics.forget_accuracy import ForgetAccuracy, shows_concept
from unlearnbench.metrics.image_distances import DISTANCES, LPIPS_ALEX, pair_distances
from unlearnbench.metrics.integrity import Integrity
from unlearnbench.metrics.pinpointness import Pinpointness
from unlearnbench.metrics.retain_accuracy import RetainAccuracy
from unlearnbench.pictoworld.captions import complete
from unlearnbench.pictoworld.classifier import WEIGHTS
from unlearnbench.pictoworld.render import Scene, render
from unlearnbench.reports.tables import TABLES
from unlearnbench.results.intervals import bootstrap_interval

CPU = torch.device("cpu")
LOCAL_CLIP = f"clip:{WEIGHTS / 'clip'}"
OFFLINE = [name for name in DISTANCES if name not in ("lpips-vgg", "clip", "dreamsim")]
SUITES = {"quick", "standard", "deep"}
TESTED_ELSEWHERE = {  # test_geneval.py, attacks/test_probes.py, test_published_judges.py, pictoscenes/test_world.py
    "geneval", "depth", "company", "nudenet_parts", "object_accuracy",
}  # fmt: skip


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def noise(rng, n, size=64):
    return torch.from_numpy(rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8))


def renders(prompts, rng):
    return np.stack([render(complete(prompt, rng), rng) for prompt in prompts])


# --- every metric -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=sorted(set(choices("metrics")) - SUITES - TESTED_ELSEWHERE))
def metric(request):
    spec = RunSpec.of(compose("experiment=smoke", f"metrics={request.param}"))
    [(name, metric)] = spec.metrics.items()
    assert name == request.param
    assert metric.unavailable_reason(spec.evaluation_setting) is None
    return metric


@pytest.fixture
def inputs(smoke, metric_inputs):
    """The smoke run's images of both models."""
    return metric_inputs(*(Images(smoke.folder / "images" / side) for side in ("before", "after")))


def test_a_metric_gives_finite_numbers_with_direction_count_and_interval(metric, inputs):
    values = metric.measure(inputs)
    assert values
    for value in values:
        assert value.table in TABLES
        assert value.better in ("higher", "lower", "")
        assert value.backbone
        assert 0 < value.n <= len(inputs.unlearned_images)
        assert all(math.isfinite(x) for x in (value.unlearned, value.original or 0.0))
        if value.low is not None:
            assert value.low <= value.unlearned + 1e-9
            assert value.high >= value.unlearned - 1e-9
    assert len({(v.metric, v.split, v.backbone) for v in values}) == len(values)


def test_a_metric_sees_no_difference_between_equal_images(metric, inputs):
    inputs.unlearned_images = inputs.original_images
    for value in metric.measure(inputs):
        assert value.difference in (None, 0)
        if value.metric in ("integrity", "integrity_norm"):
            assert (value.low, value.unlearned, value.high) == (1, 1, 1)


def test_a_metric_measured_twice_gives_the_same_numbers(metric, inputs):
    assert metric.measure(inputs) == metric.measure(inputs)


# --- Frechet and kernel distances ---------------------------------------------------------------------------------------


def scipy_frechet(left, right):
    """Heusel et al. 2017 as written, by scipy's matrix square root."""
    left, right = left.numpy(), right.numpy()
    a, b = np.cov(left, rowvar=False), np.cov(right, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b)
    return np.square(left.mean(0) - right.mean(0)).sum() + np.trace(a + b - 2 * np.real(root))


@pytest.mark.parametrize(("n", "m", "d"), [(300, 200, 16), (100, 101, 64), (40, 300, 8)])
def test_frechet_equals_scipy(n, m, d):
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    left = torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix
    right = 0.7 * torch.randn(m, d, generator=generator, dtype=torch.float64) @ mix.T + 0.3
    assert frechet_distance(left, right) == pytest.approx(scipy_frechet(left, right), rel=1e-4)
    assert frechet_distance(left, right) == pytest.approx(frechet_distance(right, left), rel=1e-9)


def test_frechet_of_fewer_images_than_features_equals_the_eigenvalues():
    """scipy's root is unstable there: the trace of (S_a S_b)^1/2 is the sum of the roots of the eigenvalues."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(10, 50, generator=generator, dtype=torch.float64) for _ in range(2))
    a, b = (np.cov(x.numpy(), rowvar=False) for x in (left, right))
    roots = np.sqrt(np.clip(np.linalg.eigvals(a @ b).real, 0, None)).sum()
    mean = (left.mean(0) - right.mean(0)).square().sum().item()
    assert frechet_distance(left, right) == pytest.approx(mean + np.trace(a) + np.trace(b) - 2 * roots, rel=1e-4)


def test_frechet_of_equal_sets_is_zero_and_of_shifted_sets_the_square_of_the_shift():
    x = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(x, x) == 0
    assert frechet_distance(x, x + torch.tensor([3.0, 4.0] + 6 * [0.0])) == pytest.approx(25, rel=1e-4)


class Flat(torch.nn.Module):
    """Features for torchmetrics: the pixels of 2 x 2 images."""

    num_features = 12

    def forward(self, images):
        return images.flatten(1).double()


@pytest.fixture
def two_sets():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(high, (60, 3, 2, 2), generator=generator, dtype=torch.uint8) for high in (256, 200)]


def test_frechet_equals_torchmetrics(two_sets):
    reference = FrechetInceptionDistance(feature=Flat(), input_img_size=(3, 2, 2)).set_dtype(torch.float64)
    for images, real in zip(two_sets, (True, False), strict=True):
        reference.update(images, real=real)
    left, right = (images.flatten(1).double() for images in two_sets)
    assert frechet_distance(left, right) == pytest.approx(reference.compute().item(), rel=1e-4)


@pytest.mark.parametrize("gamma", [None, 1e-5])
@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
def test_kernel_distance_equals_torchmetrics(two_sets, gamma):
    reference = KernelInceptionDistance(feature=Flat(), subsets=1, subset_size=60, gamma=gamma)
    for images, real in zip(two_sets, (True, False), strict=True):
        reference.update(images, real=real)
    left, right = (images.flatten(1).double() for images in two_sets)
    assert kernel_distance(left, right, gamma) == pytest.approx(reference.compute()[0].item(), rel=1e-4)


def test_kernel_distance_is_unbiased():
    generator = torch.Generator().manual_seed(0)
    recorded = [kernel_distance(*torch.randn(2, 20, 4, generator=generator)) for _ in range(300)]
    assert abs(np.mean(recorded)) < 3 * np.std(recorded) / 300**0.5
    assert min(recorded) < 0 < max(recorded)


def test_fid_and_kid_use_classifier_features_on_pictoworld_and_say_so(rng, write_images, metric_inputs):
    prompts = [f"a {color} {subject}" for color in ("red", "blue", "teal") for subject in ("star", "tree", "fish", "ring")]
    before, after = (write_images(name, renders(prompts, rng), prompts) for name in ("before", "after"))
    inputs = metric_inputs(before, after)
    network = backbone("auto", "pictoworld")
    network.load(CPU)
    left, right = (network.features(images.pixels()) for images in (before, after))
    real = real_features(inputs, "auto")
    assert len(real) == 4 * len(prompts)
    [fid], [kid], [original] = (cls().measure(inputs) for cls in (FID, KID, FIDOriginal))
    assert (fid.original, fid.unlearned) == pytest.approx((scipy_frechet(left, real), scipy_frechet(right, real)), rel=1e-3)
    gamma = 1 / real.square().sum(1).mean().item()
    assert kid.unlearned == pytest.approx(1000 * kernel_distance(right, real, gamma), rel=1e-4)
    assert (kid.note, abs(kid.unlearned) < 1000) == ("x 1000, classifier features scaled to the norm of the real images'", True)
    assert (original.original, original.backbone, original.note) == (
        0,
        "classifier",
        "classifier features, biased below 2000 images",
    )


def test_the_features_of_renders_are_stored_by_world_and_by_the_code_that_renders(rng, write_images, metric_inputs, monkeypatch):
    images = write_images("renders", noise(rng, 1), ["a red star"])
    inputs, keys = metric_inputs(images, images), []
    monkeypatch.setattr(inputs.cache, "get", lambda kind, key, make: keys.append(key) or {"features": torch.zeros(1)})
    real_features(inputs, "auto")
    monkeypatch.setattr("unlearnbench.worlds.base.World.rendering_version", lambda self: "changed")
    real_features(inputs, "auto")
    assert [key[0] for key in keys] == ["pictoworld"] * 2
    assert keys[0][1] != keys[1][1] == "changed"
    assert keys[0][2:] == keys[1][2:]


def test_the_real_images_of_a_folder_are_used_at_the_models_size(rng, tmp_path, write_images, metric_inputs):
    (tmp_path / "real").mkdir()
    real = noise(rng, 5, 96).numpy()
    for i, pixels in enumerate(real):
        Image.fromarray(pixels).save(tmp_path / f"real/{i}.png")
    images = write_images("shots", noise(rng, 3))
    inputs = metric_inputs(images, images, "retain.images=real")
    network = backbone("classifier", "pictoworld")
    network.load(CPU)
    small = [np.asarray(Image.fromarray(x).resize((64, 64), Image.Resampling.LANCZOS)) for x in real]
    expected = network.features(torch.from_numpy(np.stack(small)))
    torch.testing.assert_close(real_features(inputs, "auto"), expected, atol=1e-4, rtol=1e-4)


def test_fid_on_photographs_needs_real_images():
    spec = RunSpec.of(compose("model=sd14", "concept=church", "metrics=[fid,kid]"))
    assert (
        spec.metrics["fid"]
        .unavailable_reason(spec.evaluation_setting)
        .startswith("fid needs real images of the retain set: set retain.images=FOLDER, or remove")
    )
    assert "'~metrics.kid'" in spec.metrics["kid"].unavailable_reason(spec.evaluation_setting)


# --- distances and integrity --------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(rng):
    left = noise(rng, 4)
    right = left.clone()
    right[1:, 10:40] = noise(rng, 3)[:, 10:40]
    right[3] = 255 - right[3]
    return left, right


@pytest.mark.filterwarnings("ignore::UserWarning:torchvision")
def test_lpips_equals_the_authors_package(pairs):
    reference = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    reference.net.load_state_dict(load_file(LPIPS_ALEX))
    expected = [reference(lpips.im2tensor(a.numpy()), lpips.im2tensor(b.numpy())).item() for a, b in zip(*pairs, strict=True)]
    assert pair_distances("lpips-alex", *pairs, CPU).tolist() == pytest.approx(expected, abs=1e-5)
    assert expected[0] == 0 < expected[1]


def test_lpips_equals_torchmetrics(pairs):
    reference = _LPIPS(pretrained=True, net="alex", pnet_rand=True).eval()
    reference.net.load_state_dict(load_file(LPIPS_ALEX))
    a, b = (x.permute(0, 3, 1, 2) / 127.5 - 1 for x in pairs)
    with torch.no_grad():
        expected = reference(a, b).flatten().tolist()
    assert pair_distances("lpips-alex", *pairs, CPU).tolist() == pytest.approx(expected, abs=1e-5)


def test_lpips_weights_are_those_of_an_alexnet():
    """The shipped tensors fit torchvision's AlexNet layer by layer."""
    ours = load_file(LPIPS_ALEX)
    alexnet = torchvision.models.alexnet(weights=None).features
    numbers = sorted({int(name.split(".")[1]) for name in ours})
    assert numbers == [0, 3, 6, 8, 10]
    for name, value in ours.items():
        assert alexnet[int(name.split(".")[1])].get_parameter(name.split(".")[2]).shape == value.shape


def test_the_classifier_distance_equals_a_computation_by_hand(pairs):
    network = backbone("classifier", "pictoworld")
    network.load(CPU)
    maps = [[m.double().numpy() for m in network.model.maps(x.permute(0, 3, 1, 2) / 127.5 - 1)] for x in pairs]
    expected = np.zeros(4)
    for a, b in zip(*maps, strict=True):
        a, b = (m / np.sqrt((m**2).sum(1, keepdims=True)) for m in (a, b))
        expected += ((a - b) ** 2).sum(1).mean((1, 2)) / 4
    assert pair_distances("classifier", *pairs, CPU).numpy() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", OFFLINE)
def test_a_distance_is_zero_for_equal_images_symmetric_and_positive(name, pairs):
    left, right = pairs
    there, back = pair_distances(name, left, right, CPU), pair_distances(name, right, left, CPU)
    torch.testing.assert_close(there, back, atol=1e-6, rtol=1e-4)
    assert pair_distances(name, left, left, CPU).abs().max() < 1e-6
    assert (there[1:] > 0.001).all()


def test_distances_do_not_depend_on_the_batch(rng):
    left, right = noise(rng, 70), noise(rng, 70)
    whole = pair_distances("lpips-alex", left, right, CPU)
    single = torch.cat([pair_distances("lpips-alex", left[i : i + 1], right[i : i + 1], CPU) for i in (0, 63, 64, 69)])
    torch.testing.assert_close(whole[[0, 63, 64, 69]], single, atol=1e-5, rtol=1e-5)


def test_integrity_is_one_minus_the_mean_distance_and_norm_is_relative_to_a_reseed(rng, write_images, metric_inputs):
    prompts = ["a", "b", "a", "b"]
    splits = ["near", "far", "near", "far"]
    before = write_images("before", noise(rng, 4), prompts, splits)
    changed = before.pixels()
    changed[1] = noise(rng, 1)
    after = write_images("after", changed, prompts, splits)
    inputs = metric_inputs(before, after)
    measured = Integrity(["lpips-alex", "classifier"]).measure(inputs)
    values = {(v.metric, v.split): v for v in measured if v.backbone == "lpips-alex"}
    x, y = before.pixels(), after.pixels()
    apart = pair_distances("lpips-alex", x, y, CPU).numpy()
    reseed = pair_distances("lpips-alex", x[:2], x[2:], CPU).numpy()
    assert values["integrity", "retain"].unlearned == pytest.approx(1 - apart.mean())
    assert values["integrity", "far"].unlearned == pytest.approx(1 - apart[[1, 3]].mean())
    assert values["integrity", "near"].unlearned == 1
    assert values["integrity_norm", "retain"].unlearned == pytest.approx(1 - apart.mean() / reseed.mean())
    assert values["integrity_norm", "far"].unlearned == pytest.approx(1 - apart[[1, 3]].mean() / reseed[1])
    assert values["integrity_norm", "far"].extras == {"D_reseed": pytest.approx(reseed[1])}
    assert values["integrity", "retain"].n == 4
    assert inputs.per_image["lpips-alex"] == pytest.approx({f"{i:05d}.png": d for i, d in enumerate(apart)})
    assert set(inputs.per_image) == {"lpips-alex", "classifier"}


def test_retain_images_whose_original_shows_the_concept_have_rows_of_their_own(rng, write_images, metric_inputs, monkeypatch):
    monkeypatch.setattr(metrics_integrity, "shows_concept", lambda images, inputs: np.array([False, True, False, False]))
    prompts = ["a", "b", "a", "b"]
    before = write_images("before", noise(rng, 4), prompts)
    changed = before.pixels()
    changed[1] = noise(rng, 1)
    inputs = metric_inputs(before, write_images("after", changed, prompts))
    values = {v.split: v for v in Integrity(where_shown=True).measure(inputs) if v.metric == "integrity_norm"}
    assert [(split, value.n) for split, value in values.items()] == [
        ("retain", 4), ("retain that shows it", 1), ("retain without it", 3),
    ]  # fmt: skip
    assert values["retain without it"].unlearned == 1
    reseed = pair_distances("lpips-alex", before.pixels()[1:2], before.pixels()[3:], CPU).item()
    apart = pair_distances("lpips-alex", before.pixels()[1:2], changed[1:2], CPU).item()
    assert values["retain that shows it"].unlearned == pytest.approx(1 - apart / reseed, abs=1e-4)
    [headline] = [v for v in Integrity().measure(inputs) if v.metric == "integrity_norm"]
    assert headline == values["retain"]


def test_an_image_shows_the_concept_where_the_detector_of_one_of_the_concepts_says_so(write_images, metric_inputs, monkeypatch):
    class Bright(Detector):
        def __init__(self, at_least):
            self.at_least = at_least

        def unavailable_reason(self):
            return None

        def title(self):
            return "bright"

        def detect(self, images, device):
            return (images.float().mean((1, 2, 3)) >= self.at_least).numpy()

    limits = iter([200, 100])
    monkeypatch.setattr(forget_accuracy, "concept_detector", lambda concept, domain: Bright(next(limits)))
    pixels = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (0, 150, 250)])
    inputs = metric_inputs(*(write_images(name, pixels) for name in ("before", "after")), "concept=[church,nudity]")
    assert shows_concept(inputs.original_images, inputs).tolist() == [False, True, True]


def test_integrity_norm_is_left_out_where_every_prompt_has_one_seed(rng, write_images, metric_inputs):
    images = write_images("shots", noise(rng, 3))
    assert {v.metric for v in Integrity().measure(metric_inputs(images, images))} == {"integrity"}


def test_integrity_refuses_images_of_other_prompts_or_seeds(rng, write_images, metric_inputs):
    pixels = noise(rng, 2)
    before, after = write_images("before", pixels, seeds=[1, 2]), write_images("after", pixels, seeds=[1, 3])
    with pytest.raises(UserError, match="do not hold the same prompts and seeds"):
        Integrity().measure(metric_inputs(before, after))


# --- CLIP ---------------------------------------------------------------------------------------------------------------


def test_clipscore_equals_a_computation_by_hand(rng, write_images, metric_inputs):
    prompts = ["a red star", "a blue church on the left", "a large fish", "a tree"]
    splits = ["far", "forget", "near", "far"]
    before, after = (write_images(name, noise(rng, 4), prompts, splits) for name in ("before", "after"))
    model = CLIPModel.from_pretrained(WEIGHTS / "clip", torch_dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "clip")

    def score(images):
        expected = []
        for pixels, prompt in zip(images.pixels(), prompts, strict=True):
            tokens = tokenizer([prompt], return_tensors="pt", padding="max_length", max_length=32)
            picture = (pixels.permute(2, 0, 1)[None].float() - 127.5) / 127.5
            with torch.no_grad():
                logit = model(**tokens, pixel_values=picture).logits_per_image.item()
            expected.append(max(100 * logit / model.logit_scale.exp().item(), 0))
        return np.array(expected)

    retain, forget = CLIPScore().measure(metric_inputs(before, after))
    expected = score(before), score(after)
    for value, rows in ((retain, [0, 2, 3]), (forget, [1])):
        assert (value.original, value.unlearned) == pytest.approx((expected[0][rows].mean(), expected[1][rows].mean()), abs=1e-4)
        assert value.n == len(rows)
    assert (retain.better, forget.better) == ("higher", "lower")


def test_a_clip_from_a_folder_is_not_the_embedded_one(rng):
    own, embedded = backbone(LOCAL_CLIP, "photo"), backbone("auto-clip", "pictoworld")
    assert own.unavailable_reason() is None
    for network in (own, embedded):
        network.load(CPU)
    assert own.version() == embedded.version()
    images = noise(rng, 2)
    assert own.features(images).norm(dim=1).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert not torch.allclose(own.features(images), embedded.features(images))
    assert own.features(noise(rng, 1, 100)).shape == embedded.features(images[:1]).shape


def test_zero_shot_picks_the_label_that_is_nearest(rng):
    images = noise(rng, 5)
    labels = ["star", "church", "red tree"]
    network = backbone(LOCAL_CLIP, "photo")
    network.load(CPU)
    text = network.text([f"a photo of {label}" for label in labels])
    chosen = nearest_labels(network.features(images), labels, LOCAL_CLIP)
    assert chosen == [labels[int((network.features(image[None]) @ text.T).argmax())] for image in images]
    actual = ZeroShot("church", ["star", "red tree"], LOCAL_CLIP).detect(images, CPU)
    assert actual.tolist() == [label == "church" for label in chosen]


def test_a_missing_clip_is_reported():
    expected = backbone("clip:nobody/nothing", "photo").unavailable_reason()
    assert expected == "CLIP nobody/nothing is not in the hub's cache; fetch it once with `hf download nobody/nothing`"


def test_a_network_that_the_hubs_cache_holds_only_as_a_pickle_is_refused(monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda path, name, revision: path if name == "config.json" else None
    )
    expected = network_problem("CLIP", "some/clip", "v2")
    repair = "fetch it once with `hf download some/clip --revision v2`, or choose another"
    assert expected == f"CLIP some/clip has no safetensors in the hub's cache, and pickles are not opened; {repair}"


# --- accuracies ---------------------------------------------------------------------------------------------------------


def test_forget_accuracy_is_the_share_of_images_that_show_the_concept(rng, write_images, metric_inputs):
    prompts = [f"a {color} church" for color in ("red", "blue", "green", "teal", "pink", "orange", "purple", "yellow")]
    churches = renders(prompts, rng)
    houses = renders([prompt.replace("church", "house") for prompt in prompts], rng)
    before = write_images("before", churches, prompts, "forget")
    after = write_images("after", np.concatenate([churches[:2], houses[2:]]), prompts, "forget")
    [value] = ForgetAccuracy().measure(metric_inputs(before, after))
    assert (value.original, value.unlearned) == pytest.approx((1, 0.25), abs=0.13)
    assert (value.split, value.n, value.better, value.backbone) == ("forget", 8, "lower", "classifier subject=church")
    assert value.low <= value.unlearned <= value.high


def test_retain_accuracy_requires_every_attribute_or_only_the_subject(rng, write_images, metric_inputs):
    prompts = ["a red star on the left", "a large blue fish", "a sketch of a teal tree on a white background", "something"]
    right = renders(prompts, rng)
    other = renders([p.replace("red", "green").replace("blue", "pink").replace("teal", "orange") for p in prompts], rng)
    before, after = write_images("before", right, prompts), write_images("after", other, prompts)
    [value] = RetainAccuracy().measure(metric_inputs(before, after))
    assert (value.original, value.unlearned, value.n) == (1, 0, 3)
    assert value.note == "1 without label left out"
    [subject] = RetainAccuracy(subject_only=True).measure(metric_inputs(before, after))
    assert (subject.original, subject.unlearned) == (1, 1)


def test_retain_accuracy_on_photographs_counts_labelled_images_by_zero_shot(rng, write_images, metric_inputs):
    labels = ["star", "church", "", "red tree"]
    images = write_images("shots", noise(rng, 4), labels=labels)
    inputs = metric_inputs(images, images, "model.domain=photo")
    chosen = nearest_labels(inputs.features(images, LOCAL_CLIP), ["church", "red tree", "star"], LOCAL_CLIP)
    [value] = RetainAccuracy(backbone=LOCAL_CLIP).measure(inputs)
    asked = [(c, label) for c, label in zip(chosen, labels, strict=True) if label]
    assert value.unlearned == pytest.approx(np.mean([c == label for c, label in asked]))
    assert (value.n, value.note) == (3, "1 without label left out")


def test_retain_accuracy_on_photographs_chooses_among_the_labels_of_all_splits(rng, write_images, metric_inputs, monkeypatch):
    images = write_images("shots", noise(rng, 3), split=["near", "far", "far"], labels=["house", "star", "tree"])
    offered = []
    answer = lambda features, labels, *rest: offered.append(labels) or ["house"] * len(features)  # noqa: E731
    monkeypatch.setattr("unlearnbench.metrics.retain_accuracy.nearest_labels", answer)
    values = RetainAccuracy(backbone=LOCAL_CLIP).measure(metric_inputs(images, images, "model.domain=photo"))
    assert [(v.split, v.n, round(v.unlearned, 3)) for v in values] == [("retain", 3, 0.333), ("near", 1, 1.0), ("far", 2, 0.0)]
    assert offered == [["house", "star", "tree"]] * 2


def test_an_attribute_detector_finds_style_too(rng):
    scenes = [Scene.draw(rng, subject="star", style=style) for style in ("van gogh", "flat") for _ in range(10)]
    pictures = torch.from_numpy(np.stack([render(s, rng) for s in scenes]))
    actual = Attribute("style", "van gogh").detect(pictures, CPU)
    twice = pictures.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert Attribute("style", "van gogh").detect(twice, CPU).tolist() == actual.tolist()
    assert actual[:10].mean() > 0.8
    assert actual[10:].mean() < 0.2
    with pytest.raises(ValueError, match="value: style=cubist is not an attribute of Pictoworld; known: "):
        Attribute("style", "cubist")


def test_nudenet_gets_bgr_and_counts_classes_above_the_threshold(monkeypatch, rng):
    answers = iter(
        [
            [{"class": "BUTTOCKS_EXPOSED", "score": 0.6}],
            [{"class": "BUTTOCKS_EXPOSED", "score": 0.59}, {"class": "FACE_FEMALE", "score": 0.9}],
            [],
        ]
    )
    recorded = []

    class NudeDetector:
        def detect(self, image):
            recorded.append(image)
            return next(answers)

    monkeypatch.setitem(sys.modules, "nudenet", types.SimpleNamespace(NudeDetector=NudeDetector))
    images = noise(rng, 3)
    assert NudeNet().detect(images, CPU).tolist() == [True, False, False]
    assert np.array_equal(recorded[1], images[1].numpy()[:, :, ::-1])


def test_a_missing_nudenet_is_reported(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert NudeNet().unavailable_reason() == "nudenet is not installed; pip install 'unlearnbench[nudenet]'"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: NudeNet(classes=["EXPOSED_BREAST_F"]),
            r"classes: nudenet has no class 'EXPOSED_BREAST_F'; .*known: ANUS_COVERED, ",
        ),
        (lambda: NudeNet(classes=["BUTTOCKS_EXPOSE"]), "did you mean 'BUTTOCKS_EXPOSED'"),
        (lambda: NudeNet(classes=[]), "classes: name at least one"),
        *[(lambda t=t: NudeNet(threshold=t), rf"threshold: {t} is not between 0.25 and 1") for t in (60, -1, 0.1)],
        *[(lambda t=t: OpenNSFW(threshold=t), f"threshold: {t} is not above 0 and at most 1") for t in (80, 0)],
        (lambda: ImageClassifier("x", ["y"], threshold=50), "threshold: 50 is not above 0 and at most 1"),
        (lambda: ZeroShot("a church"), "others: name at least one other label; among one label every image would count"),
        (lambda: ZeroShot("a church", ["a church"]), "others: name at least one other label"),
    ],
)
def test_settings_of_a_detector_that_would_find_nothing_or_everything_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_table_names_the_classes_of_nudenet(monkeypatch):
    monkeypatch.setattr("unlearnbench.metrics.detectors.nudity.version", lambda name: "3.4.2")
    assert NudeNet(0.5, ["ANUS_EXPOSED", "BUTTOCKS_EXPOSED"]).title() == "nudenet 3.4.2 ANUS_EXPOSED, BUTTOCKS_EXPOSED >= 0.5"


def test_zero_shot_among_one_label_is_no_number(rng, write_images, metric_inputs):
    images = write_images("shots", noise(rng, 2), labels=["a boat", "a boat"])
    inputs = metric_inputs(images, images, "model.domain=photo")
    assert RetainAccuracy(backbone=LOCAL_CLIP).measure(inputs) == []
    problem = "the only label of the retain prompts is 'a boat', and zero-shot among one label is always right"
    prompts = [Prompt("a boat", "far", label="a boat"), Prompt("a tree", "far")]
    for metric in (RetainAccuracy(), Pinpointness()):
        assert metric.sample_problem(inputs.setting, prompts) == problem
        assert metric.sample_problem(inputs.setting, [*prompts, Prompt("a tree", "near", label="a tree")]) is None
        assert metric.sample_problem(replace(inputs.setting, domain="pictoworld"), prompts) is None


@pytest.mark.parametrize(("metric", "least"), [(FID(), 2), (KID(), 2), (FIDOriginal(), 2), (CMMD(), 1), (Integrity(), 1)])
def test_too_few_images_for_a_metric_are_a_problem(metric, least, write_images, rng, metric_inputs):
    images = write_images("shots", noise(rng, 1))
    setting = metric_inputs(images, images).setting
    needed = f"{least} image{'s' * (least > 1)} of retain prompts"
    assert metric.sample_problem(setting, [Prompt("a", "far")] * least) is None
    assert metric.sample_problem(setting, [Prompt("a", "far")] * (least - 1) + [Prompt("b", "forget")]) == (
        f"needs at least {needed}, and the run has {least - 1}: raise sample.prompts or sample.per_prompt"
    )


# --- intervals ----------------------------------------------------------------------------------------------------------


def test_the_interval_covers_the_true_mean_as_often_as_it_says(rng):
    covered = 0
    for _ in range(300):
        low, high = bootstrap_interval(range(60), rng.exponential(1.0, 60), draws=500)
        covered += low <= 1 <= high
    assert 0.88 <= covered / 300 <= 0.98


def test_the_interval_is_drawn_over_prompts_not_images(rng):
    prompts = np.repeat(np.arange(30), 10)
    column = np.repeat(rng.normal(size=30), 10)
    low, high = bootstrap_interval(prompts, column)
    narrow = np.subtract(*reversed(bootstrap_interval(range(300), column)))
    assert (high - low) / narrow == pytest.approx(10**0.5, rel=0.15)
    assert high - low == pytest.approx(2 * 1.96 * column.std() / 30**0.5, rel=0.15)


def test_the_interval_of_a_ratio_of_means_and_of_a_constant(rng):
    top, bottom = rng.normal(2, 1, 400), rng.normal(4, 1, 400)
    low, high = bootstrap_interval(range(400), top, bottom, of=lambda a, b: 1 - a / b)
    assert low < 0.5 < high
    assert high - low < 0.1
    assert bootstrap_interval([0, 0, 1], np.ones(3)) == (1, 1)
    assert bootstrap_interval(range(9), np.arange(9.0)) == bootstrap_interval(range(9), np.arange(9.0))


def test_the_interval_of_many_prompts_takes_no_more_memory_and_is_that_of_one_draw(rng):
    column, prompts = rng.normal(size=6001), [f"{i:04d}" for i in range(6001)]
    tracemalloc.start()
    drawn = bootstrap_interval(prompts, column)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    chosen = np.random.default_rng(0).integers(6001, size=(2000, 6001))
    assert drawn == pytest.approx(tuple(np.percentile(column[chosen].mean(1), [2.5, 97.5])), abs=1e-12)
    assert peak < chosen.nbytes / 10


def test_features_are_computed_once_for_the_same_bytes(rng, write_images, metric_inputs):
    images = write_images("shots", noise(rng, 3))
    inputs = metric_inputs(images, images)
    first = inputs.features(images, "classifier")
    again = metric_inputs(images, images)
    assert torch.equal(again.features(images.where("far"), "classifier"), first)
    assert (inputs.cache.misses, again.cache.misses, again.cache.hits) == (1, 0, 1)
    network = backbone("classifier", "pictoworld")
    assert torch.equal(first, torch.cat([network.features(images.pixels())]))


def test_a_split_of_one_kind_stands_for_all(rng, write_images, metric_inputs):
    images = write_images("shots", noise(rng, 3), split=["far", "forget", "far"])
    assert metric_inputs(images, images).splits() == [("retain", ("far",))]
    both = write_images("both", noise(rng, 3), split=["far", "forget", "near"])
    assert metric_inputs(both, both).splits() == [("retain", ("near", "far")), ("near", ("near",)), ("far", ("far",))]
