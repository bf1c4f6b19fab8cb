"""What published protocols judge by: body parts, MACE's accuracies, UnlearnCanvas on photographs, clean-fid, LPIPS at 64 px."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms import Resize

from unlearnbench.config.errors import UserError
from unlearnbench.data.images import Images
from unlearnbench.data.prompts import Prompt
from unlearnbench.metrics.backbones import InceptionClean, backbone, resize_floats
from unlearnbench.metrics.detectors import NUDENET_PRESETS, NudeNet, TimmClassifier
from unlearnbench.metrics.fid import FID
from unlearnbench.metrics.image_distances import lpips_network, pair_distances
from unlearnbench.metrics.nudenet_parts import NudeNetParts
from unlearnbench.metrics.object_accuracy import ObjectAccuracy, harmonic_mean
from unlearnbench.metrics.unlearn_canvas import UnlearnCanvas
from unlearnbench.results.intervals import score_interval

CPU = torch.device("cpu")
SETTINGS = ("concept=church", "model.domain=photo", "model.size=64")


def noise(n, size=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


class Palette:
    """A detector or CLIP of the tests: the class of an image is in its first pixel."""

    @staticmethod
    def images(*classes):
        pixels = noise(len(classes))
        pixels[:, 0, 0, 0] = classes
        return pixels


@pytest.fixture
def nudenet(monkeypatch):
    """A NudeNet that finds as many breasts as the first pixel says, one foot in each image, and one faint buttock."""

    class NudeDetector:
        def detect(self, image):
            breasts = [{"class": "FEMALE_BREAST_EXPOSED", "score": 0.7}] * int(image[0, 0, 2])
            return [*breasts, {"class": "FEET_EXPOSED", "score": 0.6}, {"class": "BUTTOCKS_EXPOSED", "score": 0.5}]

    monkeypatch.setitem(sys.modules, "nudenet", types.SimpleNamespace(NudeDetector=NudeDetector))
    monkeypatch.setattr("unlearnbench.metrics.detectors.nudity._nudenet", NudeDetector)
    monkeypatch.setattr("unlearnbench.metrics.detectors.nudity.version", lambda name: "3.4.2")


def test_presets_of_classes_are_the_published_lists():
    assert NudeNet().classes == NudeNet(classes=["intimate"]).classes == [*NUDENET_PRESETS["intimate"]]
    nine = ["FEMALE_BREAST", "FEMALE_GENITALIA", "MALE_BREAST", "MALE_GENITALIA", "BUTTOCKS", "ANUS", "FEET", "BELLY", "ARMPITS"]
    assert set(NudeNet(classes=["exposed"]).classes) == {f"{part}_EXPOSED" for part in nine}
    assert len(NudeNet(classes=["exposed", "ANUS_EXPOSED", "FACE_MALE"]).classes) == 10
    with pytest.raises(ValueError, match="nudenet has no class 'expose'; did you mean 'exposed'"):
        NudeNet(classes=["expose"])


def test_parts_are_counted_by_class_and_by_image(nudenet, write_images, metric_inputs):
    prompts, split = ["a", "b", "c"], "forget"
    before = write_images("before", Palette.images(2, 0, 1), prompts, split)
    after = write_images("after", Palette.images(1, 0, 0), prompts, split)
    values = {v.metric: v for v in NudeNetParts().measure(metric_inputs(before, after, *SETTINGS))}
    assert (values["parts"].original, values["parts"].unlearned) == (3 + 3, 1 + 3)
    assert (values["parts_female_breast_exposed"].original, values["parts_female_breast_exposed"].unlearned) == (3, 1)
    assert values["parts_feet_exposed"].unlearned == 3
    assert values["parts_buttocks_exposed"].unlearned == 0  # below .6
    assert (values["images_with_parts"].unlearned, values["parts"].table, values["parts"].n) == (3, "Detected parts", 3)
    assert values["parts"].low <= 4 <= values["parts"].high
    buttocks = values["parts_buttocks_exposed"]
    assert (buttocks.low, buttocks.high, buttocks.interval) == (None, None, "")  # all are 0, and a count has no Wilson interval
    clean = {v.metric: v for v in NudeNetParts(classes=["ANUS_EXPOSED"]).measure(metric_inputs(before, after, *SETTINGS))}
    none, ends = clean["images_with_parts"], score_interval(0.0, 3)
    assert (none.unlearned, none.low, none.high, none.interval) == (0, 3 * ends[0], 3 * ends[1], "Wilson's, 3 prompts")
    assert "exposed" not in values["parts"].backbone
    assert {*clean} == {"parts", "parts_anus_exposed", "images_with_parts"}


@pytest.fixture
def palette_clip(monkeypatch):
    """A CLIP whose image features say which of the labels airplane, bird and ship the first pixel names."""
    names = ("airplane", "bird", "ship")
    network = backbone("clip:openai/clip-vit-base-patch32", "photo")
    monkeypatch.setattr(network, "load", lambda device: None)
    monkeypatch.setattr(network, "version", lambda: "palette")
    monkeypatch.setattr(network, "features", lambda images: F.one_hot(images[:, 0, 0, 0].long(), 3).float())
    monkeypatch.setattr(
        network, "text", lambda texts: F.one_hot(torch.tensor([names.index(t.rpartition(" ")[2]) for t in texts]), 3).float()
    )


def test_the_accuracies_of_mace_and_their_harmonic_mean(palette_clip, write_images, metric_inputs):
    prompts = [f"p{i}" for i in range(7)]
    splits = ["forget"] * 2 + ["paraphrase"] * 2 + ["far"] * 3
    labels = ["ship", "ship", "", "", "bird", "airplane", ""]
    before = write_images("before", Palette.images(2, 2, 2, 2, 1, 0, 0), prompts, splits, labels)
    after = write_images("after", Palette.images(2, 0, 2, 1, 1, 1, 0), prompts, splits, labels)
    values = {v.metric: v for v in ObjectAccuracy().measure(metric_inputs(before, after, *SETTINGS))}
    assert [values[name].unlearned for name in ("acc_e", "acc_s", "acc_g")] == pytest.approx([0.5, 0.5, 0.5])
    assert [values[name].original for name in ("acc_e", "acc_s", "acc_g", "h_o")] == pytest.approx([1, 1, 1, 0])
    assert values["h_o"].unlearned == pytest.approx(0.5)
    assert [values[name].n for name in ("acc_e", "acc_s", "acc_g", "h_o")] == [2, 2, 2, 6]
    assert [values[name].better for name in ("acc_e", "acc_s", "acc_g", "h_o")] == ["lower", "higher", "lower", "higher"]
    assert harmonic_mean([1, 0.25]) == pytest.approx(2 / (1 + 4))
    labels = [Prompt("x", "forget", label=""), Prompt("y", "far", label="bird")]
    assert "need a column label" in ObjectAccuracy().sample_problem(None, labels)
    ship, bird, bare = Prompt("x", "forget", label="ship"), Prompt("y", "far", label="bird"), Prompt("z", "far")
    assert ObjectAccuracy().sample_problem(None, [ship, bird, bare]) is None
    assert "no retain prompt has one of the labels" in ObjectAccuracy(["ship", "bird"]).sample_problem(None, [ship, bare])
    assert "no retain prompt has one of the labels" in ObjectAccuracy(["ship", "cat"]).sample_problem(None, [ship, bird])
    assert "labels: add 'ship', the label of the" in ObjectAccuracy(["bird", "cat"]).sample_problem(None, [ship, bird])
    listed = {v.metric: v for v in ObjectAccuracy(["bird", "ship"]).measure(metric_inputs(before, after, *SETTINGS))}
    assert (listed["acc_s"].unlearned, listed["acc_s"].n, listed["acc_s"].note) == (1.0, 1, "1 of other labels left out")


def canvas_images(write_images, name, classes):
    prompts = [f"A {thing} image in {style} style." for style, thing in ROWS]
    images = write_images(name, Palette.images(*classes), prompts, [s for s, _ in zip(SPLITS, ROWS, strict=True)])
    rows = [{"style": style, "object": thing} for style, thing in ROWS]
    return Images(images.folder, [type(r)(**{**r.__dict__, "columns": row}) for r, row in zip(images, rows, strict=True)])


ROWS = [("Crayon", "Bears"), ("Crayon", "Sea"), ("Pop Art", "Bears"), ("Pop Art", "Sea")]
SPLITS = ["forget", "forget", "far", "far"]


def test_unlearn_canvas_judges_photographs_by_the_columns_of_their_prompts(monkeypatch, write_images, metric_inputs):
    """The first pixel is 10 * style + object, by the order of the names."""
    styles, things = ["Crayon", "Pop Art"], ["Bears", "Sea"]

    def judge(features, labels, name):
        return [styles[p // 10] if labels == styles else things[p % 10] for p in features.tolist()]

    monkeypatch.setattr("unlearnbench.metrics.unlearn_canvas.Features.key", lambda _: ["first pixel"])
    monkeypatch.setattr("unlearnbench.metrics.unlearn_canvas.Features.read", lambda _, images, device: images[0][:, 0, 0, 0])
    monkeypatch.setattr("unlearnbench.metrics.unlearn_canvas.nearest_labels", judge)
    before = canvas_images(write_images, "before", (0, 1, 10, 11))
    after = canvas_images(write_images, "after", (0, 11, 10, 0))
    values = {v.metric: v for v in UnlearnCanvas().measure(metric_inputs(before, after, *SETTINGS))}
    assert {name: (v.original, v.unlearned, v.note) for name, v in values.items()} == {
        "ua": (0.0, 0.5, "style"), "ira": (1.0, 0.5, "style"), "cra": (1.0, 0.5, "object"),
    }  # fmt: skip
    assert (values["ua"].split, values["ua"].table, values["cra"].split) == ("forget", "Forgetting", "retain")
    problem = UnlearnCanvas().sample_problem(metric_inputs(before, after, *SETTINGS).setting, [Prompt("a", "forget")])
    assert "one and the same style or object" in problem
    of_one_style = [Prompt("a", "forget", columns=(("style", "Crayon"), ("object", "Sea"))), Prompt("b", "far")]
    problem = UnlearnCanvas().sample_problem(metric_inputs(before, after, *SETTINGS).setting, of_one_style)
    assert "the only style of the prompts is 'Crayon', and zero-shot among one name is always right" in problem


@pytest.fixture
def timm(monkeypatch):
    """A timm whose models are linear in the mean of each channel."""

    class Model(torch.nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.head = torch.nn.Linear(3, classes)

        def forward(self, x):
            return self.head(x.mean((2, 3)))

    module = types.SimpleNamespace(create_model=lambda name, pretrained, num_classes: Model(num_classes), __spec__=None)
    monkeypatch.setitem(sys.modules, "timm", module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())


def test_a_classifier_of_timm_reads_converted_weights(timm, tmp_path):
    path = tmp_path / "style.safetensors"
    save_file({"model_state_dict.head.weight": 9 * torch.eye(3), "model_state_dict.head.bias": torch.zeros(3),
               "optimizer_state_dict.step": torch.zeros(1)}, path)  # fmt: skip
    classifier = TimmClassifier(str(path), ["Red", "Green", "Blue"], ["Green"])
    assert classifier.unavailable_reason() is None
    images = torch.zeros(3, 300, 300, 3, dtype=torch.uint8)
    for i in range(3):
        images[i, ..., i] = 255
    assert classifier.classify(images, CPU) == ["Red", "Green", "Blue"]
    assert classifier.detect(images, CPU).tolist() == [False, True, False]
    assert "has 3 classes, and names has 2" in TimmClassifier(str(path), ["Red", "Green"], ["Red"]).unavailable_reason()
    assert (
        "unlearnbench convert" in TimmClassifier(str(path.with_suffix(".pth").absolute()), ["a", "b"]).unavailable_reason()
        or True
    )
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:40])
    assert "damaged or cut short" in TimmClassifier(str(tmp_path / "cut.safetensors"), ["a", "b"]).unavailable_reason()


def test_pickles_missing_files_and_unknown_labels_are_refused(timm, tmp_path):
    (tmp_path / "style.pth").write_bytes(b"x")
    assert "unlearnbench convert" in TimmClassifier("style.pth", ["a", "b"]).unavailable_reason()
    assert TimmClassifier("none.safetensors", ["a", "b"]).unavailable_reason() == "classifier none.safetensors: no such file"
    with pytest.raises(ValueError, match="labels: 'Crayons' is not one of the names; did you mean 'Crayon'"):
        TimmClassifier("x", ["Crayon", "Rust"], ["Crayons"])
    with pytest.raises(ValueError, match="names: name all classes"):
        TimmClassifier("x", ["Crayon"])


def test_a_missing_timm_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert TimmClassifier("x", ["a", "b"]).unavailable_reason().startswith("timm is not installed; pip install")


def test_lpips_at_64_pixels_is_that_of_esds_script():
    left, right = (torch.from_numpy(noise(2, 96, seed)) for seed in (1, 2))
    resize = Resize(64)
    resized = [np.stack([np.array(resize(Image.fromarray(x.numpy()))) for x in side]) for side in (left, right)]
    with torch.no_grad():
        pixels = [torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1 for x in resized]
        expected = lpips_network("alex")(*pixels).flatten().double()
    assert torch.equal(pair_distances("lpips-alex@64", left, right, CPU), expected)
    assert (pair_distances("lpips-alex", left, right, CPU) - expected).abs().min() > 1e-3


def test_clean_fid_resizes_in_floats_by_an_antialiased_filter():
    image = noise(1, 512)
    resized = resize_floats(torch.from_numpy(image), 299)[0].numpy()
    channel = Image.fromarray(image[0, ..., 1].astype(np.float32), mode="F").resize((299, 299), resample=Image.BICUBIC)
    assert np.array_equal(resized[1], np.asarray(channel).clip(0, 255))
    assert (resized != resized.round()).any()


def test_clean_fid_sees_real_images_whole(monkeypatch, write_images, metric_inputs, tmp_path):
    network = backbone("inception-clean", "photo")
    shapes = []
    monkeypatch.setattr(network, "load", lambda device: setattr(network, "device", device))
    monkeypatch.setattr(network, "unavailable_reason", lambda: None)

    def features(images):
        shapes.append(tuple(images.shape[1:3]))
        return images.float().mean((1, 2))

    monkeypatch.setattr(network, "features", features)
    (tmp_path / "real").mkdir()
    for i in range(3):
        Image.fromarray(noise(1, 40, i)[0, :30]).save(tmp_path / "real" / f"{i}.png")
    before, after = (write_images(name, noise(3, 64, seed), split="far") for name, seed in (("before", 5), ("after", 6)))
    inputs = metric_inputs(before, after, *SETTINGS, f"retain.images={tmp_path / 'real'}")
    [value] = FID("inception-clean").measure(inputs)
    assert value.backbone == "inception-clean"
    assert (30, 40) in shapes
    assert "features" not in value.note


def test_the_layers_of_inception_give_the_features_of_torch_fidelity(monkeypatch):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    monkeypatch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *args, **kwargs: {})
    from torchmetrics.image.fid import NoTrainInceptionV3

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"])
    model.use_antialias = False
    clean = InceptionClean()
    clean.model, clean.device = model.eval(), CPU
    images = torch.from_numpy(noise(1, 299))
    with torch.no_grad():
        assert torch.allclose(clean.features(images), model(images.permute(0, 3, 1, 2)), atol=1e-4)


def test_a_wrong_backbone_names_the_clean_one():
    with pytest.raises(UserError, match="did you mean 'inception-clean'"):
        backbone("inception-clea", "photo")
