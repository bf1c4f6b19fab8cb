"""GenEval's rules by hand, and the metric with a tiny detector against transformers' own pipeline."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor, pipeline

from unlearnbench.config.compose import compose
from unlearnbench.config.errors import UserError
from unlearnbench.data.images import Picture
from unlearnbench.data.prompts import read_prompts
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.metrics.geneval import Detection, GenEval, crop, fulfils, places

LABELS = ["church", "tree", "mouse"]
ASKED = [
    {"prompt": "a photo of a tree", "tag": "single_object", "include": [{"class": "tree", "count": 1}]},
    {
        "prompt": "two churches",
        "tag": "counting",
        "include": [{"class": "church", "count": 2}],
        "exclude": [{"class": "church", "count": 3}],
    },
    {"prompt": "a red mouse", "tag": "colors", "include": [{"class": "computer mouse", "count": 1, "color": "red"}]},
]


def box(left, top, size=10.0, score=0.9):
    return Detection((left, top, left + size, top + size), score)


def red(name, things):
    return ["red"] * len(things)


@pytest.mark.parametrize(
    ("include", "exclude", "right"),
    [
        ([{"class": "cat", "count": 1}], [], True),
        ([{"class": "cat", "count": 3}], [], False),
        ([{"class": "dog", "count": 1}], [], False),
        ([{"class": "cat", "count": 2}], [{"class": "cat", "count": 3}], True),
        ([{"class": "cat", "count": 1}], [{"class": "cat", "count": 2}], False),
        ([{"class": "cat", "count": 1, "color": "red"}], [], True),
        ([{"class": "cat", "count": 1, "color": "blue"}], [], False),
        ([{"class": "cat", "count": 1}, {"class": "bird", "count": 1, "position": ["right of", 0]}], [], True),
        ([{"class": "cat", "count": 2}, {"class": "bird", "count": 1, "position": ["right of", 0]}], [], False),
        ([{"class": "cat", "count": 1}, {"class": "bird", "count": 1, "position": ["left of", 0]}], [], False),
    ],
)
def test_an_image_is_correct_if_it_shows_everything_included_and_nothing_excluded(include, exclude, right):
    things = {"cat": [box(0, 0), box(80, 0, score=0.5)], "bird": [box(50, 0)]}  # the bird stands between the cats
    assert fulfils({"include": include, "exclude": exclude}, things, red, 0.1) is right


@pytest.mark.parametrize(
    ("left", "top", "expected"),
    [
        (30, 0, {"right of"}),
        (-30, 0, {"left of"}),
        (0, 30, {"below"}),
        (0, -30, {"above"}),
        (30, -30, {"right of", "above"}),  # apart by 28 of 30 each: .66 of the offset's length
        (30, 10, {"right of"}),  # apart by 8 of 31.6 along y: .25
        (2, 0, set()),  # .1 (10 + 10) = 2
        (3, 0, set()),  # 1 of 3
        (5, 0, {"right of"}),  # 3 of 5
    ],
)
def test_a_direction_counts_if_more_than_half_of_the_offset_points_there(left, top, expected):
    assert places(box(left, top), box(0, 0), 0.1) == expected


def test_a_crop_stays_within_the_image():
    image = torch.arange(8 * 6 * 3).view(8, 6, 3)
    assert torch.equal(crop(image, Detection((1.2, 2.0, 3.5, 4.0), 1)), image[2:4, 1:4])
    assert torch.equal(crop(image, Detection((-5, -5, 99, 99), 1)), image)
    assert crop(image, Detection((9, 9, 9, 9), 1)).shape == (1, 1, 3)


@pytest.fixture
def folder(tmp_path):
    """A tiny random detector that is sure of nothing, and the specs."""
    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[32, 32], patch_size=8,
        num_detection_tokens=6, id2label=dict(enumerate(LABELS)), label2id={name: i for i, name in enumerate(LABELS)},
    )  # fmt: skip
    model = YolosForObjectDetection(config)
    with torch.no_grad():
        for layer in model.class_labels_classifier.layers:
            layer.weight.mul_(20)
    model.save_pretrained(tmp_path / "detector", safe_serialization=True)
    YolosImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "detector")
    (tmp_path / "specs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ASKED))
    return tmp_path


def words(folder, *more):
    given = [
        "metrics=geneval",
        f"metrics.geneval.specs={folder / 'specs.jsonl'}",
        f"metrics.geneval.detector={folder / 'detector'}",
    ]
    return [*given, "metrics.geneval.backbone=clip-pictoworld", f"retain.prompts={folder / 'specs.jsonl'}", *more]


def test_detections_equal_those_of_transformers_pipeline(folder, write_images, metric_inputs):
    rng = np.random.default_rng(0)
    prompts = [line["prompt"] for line in ASKED[:2] for _ in range(6)] + ["something else"]
    before, after = (
        write_images(name, rng.integers(0, 256, (13, 32, 32, 3), dtype=np.uint8), prompts, "far") for name in ("b", "a")
    )
    overrides = words(folder, "metrics.geneval.counting_threshold=0.4")
    metric = RunSpec.of(compose("experiment=smoke", *overrides)).metrics["geneval"]
    inputs = metric_inputs(before, after, *overrides)
    inputs.prepare([metric])
    with pytest.MonkeyPatch.context() as patch:  # the pass that all metrics share has decoded every image
        patch.setattr(Picture, "open", lambda picture: pytest.fail(f"{picture.path} is decoded again"))
        values = {value.metric: value for value in metric.measure(inputs)}
    see = pipeline("object-detection", model=str(folder / "detector"), device="cpu")
    rights = []
    for images in (before, after):
        right = []
        for record in images.where("far"):
            image = images.folder / record.file
            kinds = [actual["label"] for actual in see(str(image), threshold=0.3 if "tree" in record.prompt else 0.4)]
            right.append("tree" in kinds if "tree" in record.prompt else kinds.count("church") == 2)
        rights.append(np.array(right, dtype=float))
    assert 0 < rights[1][:6].mean() < 1
    for name, span in (("geneval_single_object", slice(0, 6)), ("geneval_counting", slice(6, 12))):
        assert (values[name].original, values[name].unlearned, values[name].n) == (
            rights[0][span].mean(),
            rights[1][span].mean(),
            6,
        )
        assert values[name].low <= values[name].unlearned <= values[name].high
    whole = values["geneval"]
    assert whole.unlearned == pytest.approx((rights[1][:6].mean() + rights[1][6:12].mean()) / 2)
    assert (whole.n, set(values)) == (12, {"geneval", "geneval_single_object", "geneval_counting"})


def test_a_colour_is_read_from_the_box(folder, metric_inputs, write_images):
    metric = RunSpec.of(compose("experiment=smoke", *words(folder))).metrics["geneval"]
    image = torch.full((64, 64, 3), 255, dtype=torch.uint8)
    image[:, 32:] = torch.tensor([220, 40, 40], dtype=torch.uint8)
    image[:, :32] = torch.tensor([40, 90, 220], dtype=torch.uint8)
    halves = [Detection((0, 0, 32, 64), 1), Detection((32, 0, 64, 64), 1)]
    inputs = metric_inputs(*[write_images(n, image[None]) for n in "cd"])
    left, right = metric._colors(inputs.original_images.pictures()[0], inputs, "square", halves)
    assert left != right


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("metrics.geneval.specs=none.jsonl", "metrics.geneval.specs=none.jsonl: no such file; GenEval's is"),
        ("metrics.geneval.detector=some/detector", "some/detector is not in the hub's cache; fetch it once with"),
        (
            "metrics.geneval.names={computer mouse: maus}",
            "has no label 'maus'; map it to the detector's label in metrics.geneval",
        ),
        ("retain.prompts=retain/pictoworld.csv", "geneval: no retain prompt is in"),
        ("seed=0", None),
    ],
)
def test_a_missing_requirement_is_reported_before_any_work(folder, change, expected):
    spec = RunSpec.of(compose("experiment=smoke", "concept=nudity", *words(folder, change)))
    lacks = spec.metrics["geneval"].unavailable_reason(spec.evaluation_setting)
    assert lacks is None if expected is None else expected in lacks


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"prompt": "a", "tag": "x", "include": [{"class": "tree"}]}', "line 1: clause 1 has no class or count"),
        (
            '{"prompt": "a", "tag": "x", "include": [{"class": "tree", "count": 1, "position": ["above", 0]}]}',
            "refers to a clause that",
        ),
        ('{"prompt": "a"}', "line 1: no text 'tag'"),
        ("[1]", "line 1: not an object"),
        ('{"prompt": ', "line 1: no JSON"),
    ],
)
def test_an_unreadable_spec_is_reported_with_its_line(tmp_path, line, expected):
    (tmp_path / "specs.jsonl").write_text(line)
    with pytest.raises(UserError, match=expected):
        GenEval(specs=str(tmp_path / "specs.jsonl"))._read_specs()


def test_prompts_are_read_from_the_same_file(folder):
    assert [prompt.text for prompt in read_prompts(str(folder / "specs.jsonl"), "generic")] == [line["prompt"] for line in ASKED]
