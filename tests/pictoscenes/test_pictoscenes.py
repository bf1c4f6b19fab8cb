"""Pictoscenes: scenes of several subjects, their images and captions, and what the detector is to answer."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch

from unlearnbench.pictoscenes.architecture import BYTE_PAIRS, LATENT_CHANNELS, LATENT_SIZE, TOKENS, make_tokenizer
from unlearnbench.pictoscenes.captions import PLACES, PLURALS, SYNONYMS, UNSEEN, caption, corpus, plural
from unlearnbench.pictoscenes.detector import GRID, OF_IMAGE, OF_SUBJECT, Detection, Detector, decode, detection_loss
from unlearnbench.pictoscenes.pictograms import SUBJECTS
from unlearnbench.pictoscenes.render import SIZE, render
from unlearnbench.pictoscenes.scenes import CONCEPTS, SHARES, Scene, SceneObject, scene
from unlearnbench.pictoworld.architecture import byte_pairs
from unlearnbench.recipes import pictoscenes_detector, pictoscenes_quality, pictoscenes_training
from unlearnbench.recipes.byte_pairs import train_byte_pairs
from unlearnbench.recipes.pictoscenes_detector import targets_of
from unlearnbench.recipes.pictoscenes_training import LAYOUT, LAYOUT_SIZE, Denoiser, layout_maps, train_world
from unlearnbench.recipes.stages import draw_scenes, draw_timesteps

WORLD = [scene(index) for index in range(100)]
CHURCH, FISH = SceneObject("church", "red", "plain", "large"), SceneObject("fish", "blue", "striped", "small")


@cache
def drawn(scene, seed=0):
    return render(scene, np.random.default_rng(seed))


def of(*objects, arrangement="beside", style="flat"):
    return Scene(objects, arrangement, "middle", "white", style)


def test_there_are_enough_subjects_and_several_of_a_kind():
    assert len(SUBJECTS) >= 24
    for kind in ({"church", "mosque", "castle", "house"}, {"fish", "whale"}, {"dog", "cat", "wolf"}):
        assert kind <= set(SUBJECTS)


def test_the_same_generator_renders_an_image_again_and_another_does_not():
    (first, boxes), (again, _), (other, _) = (drawn(WORLD[0], seed) for seed in (1, 1, 2))
    assert (first.shape, first.dtype) == ((SIZE, SIZE, 3), np.uint8)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len(boxes) == len(WORLD[0].objects)


def test_every_arrangement_occurs_with_its_number_of_subjects_in_its_order():
    assert {s.arrangement for s in WORLD} == set(SHARES)
    for one in WORLD:
        boxes = drawn(one)[1]
        assert len(boxes) in {"alone": (1,), "row": (3,), "several": (2, 3)}.get(one.arrangement, (2,))
        assert (len(set(one.objects)) == 1) == (one.arrangement in ("alone", "several"))
        places = [box.y if one.arrangement == "stacked" else box.x for box in boxes]
        assert places == sorted(places)


def test_subjects_stay_in_the_image_and_apart():
    for one in WORLD:
        boxes = drawn(one)[1]
        for box in boxes:
            assert all(box.half * 0.9 <= centre <= SIZE - box.half * 0.9 for centre in (box.x, box.y))
        for a, b in pairwise(boxes):
            assert max(abs(a.x - b.x), abs(a.y - b.y)) > 0.95 * (a.half + b.half)


def test_a_subject_is_drawn_within_its_box_and_differs_from_every_other():
    scenes = {name: of(SceneObject(name, "red", "plain", "large"), arrangement="alone") for name in SUBJECTS}
    renders = {name: drawn(scene, 3) for name, scene in scenes.items()}
    for name, (image, [box]) in renders.items():
        own = image.astype(int)
        rows, columns = np.nonzero(np.abs(own - own[0, 0]).sum(2) > 60)
        reach = [abs(at - centre) for ats, centre in ((rows, box.y), (columns, box.x)) for at in (ats.min(), ats.max())]
        assert max(reach) <= 1.25 * box.half, name
        apart = {other: np.abs(own - image).mean() for other, (image, _) in renders.items() if other != name}
        assert min(apart.values()) > 1.5, (name, min(apart, key=apart.get))


@pytest.mark.parametrize(
    "other",
    [
        SceneObject("church", "blue", "plain", "large"),
        SceneObject("church", "red", "dotted", "large"),
        SceneObject("church", "red", "plain", "small"),
    ],
)
def test_another_attribute_of_one_subject_changes_its_place_alone(other):
    scene = of(CHURCH, FISH)
    (before, boxes), (after, _) = drawn(scene), drawn(of(other, FISH))
    middle = int((boxes[0].x + boxes[0].half + boxes[1].x - boxes[1].half) / 2)
    assert np.abs(before[:, :middle].astype(int) - after[:, :middle]).mean() > 3
    assert np.abs(before[:, middle:].astype(int) - after[:, middle:]).mean() < 1


def test_a_caption_names_every_subject_and_their_relation():
    rng = np.random.default_rng(0)
    for one in WORLD:
        text = caption(one, rng)
        for obj in one.objects:
            nouns = SYNONYMS.get(obj.subject, (obj.subject,))
            assert any(noun in text or plural(noun) in text for noun in nouns), (text, obj)
        if one.arrangement == "several":
            assert {2: ("two ", "a pair of "), 3: ("three ",)}[len(one.objects)][0] in text or "a pair of " in text
        if one.arrangement == "stacked":
            assert any(word in text for word in (" above ", " over ", " below ", " under "))


def test_the_relation_of_a_caption_is_that_of_the_image():
    rng = np.random.default_rng(0)
    beside, stacked = of(CHURCH, FISH), of(CHURCH, FISH, arrangement="stacked")
    for _ in range(50):
        left, over = caption(beside, rng), caption(stacked, rng)
        church, fish = (min(text.find(w) for w in ("church", "chapel") if w in text) < text.find("fish") for text in (left, over))
        assert not any(word in left for word in (" left of " * (not church), " right of " * church) if word)
        assert not any(word in over for word in (" above ", " over ") if not fish)


def test_no_training_caption_has_an_unseen_word():
    words = set(" ".join(corpus(1500)).split())
    unseen = {word for words in UNSEEN.values() for phrase in words for word in phrase.split()} - {"person"}
    assert not unseen & words
    assert set(UNSEEN) <= set(SUBJECTS)


def test_plurals_are_english():
    assert [plural(name) for name in ("church", "wolf", "fish", "mushroom")] == ["churches", "wolves", "fish", "mushrooms"]
    assert not [name for name in SUBJECTS if name.endswith(("s", "x", "ch", "sh")) and name not in PLURALS]


def test_concepts_are_shown_by_the_scenes_that_have_them():
    blue = SceneObject("church", "blue", "plain", "large")
    assert CONCEPTS["church"](of(FISH, CHURCH))
    assert CONCEPTS["red_church"](of(FISH, CHURCH))
    assert not CONCEPTS["red_church"](of(FISH, blue))
    assert not CONCEPTS["red_church"](of(SceneObject("fish", "red", "plain", "small"), blue))
    assert CONCEPTS["van_gogh"](of(FISH, CHURCH, style="van gogh"))
    assert all(any(shows(one) for one in WORLD) for name, shows in CONCEPTS.items() if name != "red_church")


def boxes_of(scenes):
    padded = torch.full((len(scenes), 3, 3), -1.0)
    for row, one in enumerate(scenes):
        padded[row, : len(one.objects)] = torch.tensor([tuple(box) for box in drawn(one, row)[1]])
    return padded


def perfect_answers(targets):
    """The logits of a detector that is always right."""
    count = len(targets.peak)
    answers = {"peak": torch.where(targets.peak == 1, 20.0, -20.0), "place": torch.zeros(count, 3, GRID, GRID)}
    answers |= {name: torch.zeros(count, len(values), GRID, GRID) for name, values in OF_SUBJECT.items()}
    for row in range(count):
        for number in range(3):
            cell, place = targets.cells[row, number], targets.places[row, number]
            values = [targets.attributes[name][row, number] for name in OF_SUBJECT]
            if cell >= 0:
                answers["place"][row].flatten(1)[:, cell] = place
                for name, value in zip(OF_SUBJECT, values, strict=True):
                    answers[name][row].flatten(1)[max(int(value), 0), cell] = 30.0
    for name, values in OF_IMAGE.items():
        answers[name] = 30.0 * torch.nn.functional.one_hot(targets.attributes[name], len(values))
    return answers


def test_right_answers_cost_nothing_and_are_read_as_the_scenes():
    boxes = boxes_of(WORLD[:60])
    targets = targets_of(WORLD[:60], boxes)
    answers = perfect_answers(targets)
    assert detection_loss(answers, targets) < 1e-3
    for one, own, (whole, found) in zip(WORLD, boxes, decode(answers), strict=False):
        assert whole == {"background": one.background, "style": one.style}
        ranked = sorted(zip(one.objects, own.tolist(), strict=False), key=lambda pair: pair[1][0])
        assert [f.attributes["subject"] for f in found] == [obj.subject for obj, _ in ranked]
        for subject, (obj, box) in zip(found, ranked, strict=True):
            assert tuple(subject.box) == pytest.approx(box, abs=1e-3)
            if obj.subject != "nude":
                assert (subject.attributes["color"], subject.attributes["pattern"]) == (obj.color, obj.pattern)


@pytest.mark.parametrize("name", ["peak", "place", *OF_SUBJECT, *OF_IMAGE])
def test_each_wrong_answer_costs(name):
    targets = targets_of(WORLD[:20], boxes_of(WORLD[:20]))
    answers = perfect_answers(targets)
    answers[name] = -answers[name] if name == "peak" else answers[name].roll(1, 1)
    assert detection_loss(answers, targets) > 0.05


def test_the_detector_answers_in_the_shapes_that_are_read():
    torch.manual_seed(0)
    model, images = Detector(8).eval(), torch.zeros(2, 3, SIZE, SIZE)
    targets = targets_of(WORLD[:2], boxes_of(WORLD[:2]))
    assert torch.isfinite(detection_loss(model(images), targets))
    assert model.features(images).shape == (2, 256)
    assert [found for _, found in model.read(images)] == [[], []]  # before training it finds nothing


# --- the model --------------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_the_tokenizer_is_the_one_that_its_recipe_trains():
    assert train_byte_pairs(corpus()) == byte_pairs(BYTE_PAIRS)


def test_every_word_of_a_caption_is_one_token_and_a_word_held_out_is_several():
    tokenizer = make_tokenizer()
    for index, one in enumerate(WORLD):
        text = caption(one, np.random.default_rng(index))
        assert len(tokenizer.tokenize(text)) == len(text.replace(",", " ,").split())
        assert len(tokenizer(text).input_ids) <= TOKENS
    assert all(len(tokenizer.tokenize(phrase.split()[0])) > 1 for phrases in UNSEEN.values() for phrase in phrases)


def test_the_layout_says_what_stands_where():
    one = of(CHURCH, FISH)
    _, boxes = drawn(one)
    padded = torch.full((1, 3, 3), -1.0)
    padded[0, :2] = torch.tensor(boxes)
    [subject, color, pattern] = layout_maps([one], padded)[0]
    rows, columns = (subject == 1 + SUBJECTS.index("church")).nonzero(as_tuple=True)
    assert len(rows) > 4
    assert columns.max() < LAYOUT_SIZE // 2
    assert (subject[:, LAYOUT_SIZE // 2 :] != 1 + SUBJECTS.index("church")).all()
    assert set(color[rows, columns].tolist()) == {1 + OF_SUBJECT["color"].index("red")}
    assert set(pattern[subject == 0].tolist()) == {0}


def test_one_step_trains_every_part_of_the_denoiser():
    torch.manual_seed(0)
    model = Denoiser()
    velocity, layout = model(
        torch.randn(2, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE), torch.tensor([9, 900]), torch.ones(2, 4).long()
    )
    assert velocity.shape == (2, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE)
    assert {name: logits.shape[1:] for name, logits in layout.items()} == {
        name: (1 + len(OF_SUBJECT[name]), LAYOUT_SIZE, LAYOUT_SIZE) for name in LAYOUT
    }
    (velocity.square().mean() + sum(logits.square().mean() for logits in layout.values())).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


CAPTION = "a picture of a large red church left of a small blue striped fish on a white background"


def read_as(scene, *objects):
    """What the detector would read in an image of the scene that shows these objects, at the places of the scene."""
    boxes = drawn(scene)[1]
    attributes = [{name: getattr(obj, name) for name in OF_SUBJECT} for obj in objects]
    return {name: getattr(scene, name) for name in OF_IMAGE}, [
        Detection(a, box, 1.0) for a, box in zip(attributes, boxes, strict=False)
    ]


class Reads:
    """A detector that reads what is stated."""

    def __init__(self, *answers):
        self.answers = answers

    def read(self, images):
        return self.answers[: len(images)]


@pytest.mark.parametrize(
    ("objects", "wrong"),
    [
        ((CHURCH, FISH), set()),
        ((FISH, CHURCH), {"place"}),
        ((CHURCH,), {"subject", "count", "place", "binding"}),
        ((replace(CHURCH, color="blue"), replace(FISH, color="red")), {"color", "binding"}),
        ((CHURCH, replace(FISH, pattern="dotted")), {"pattern", "binding"}),
        ((CHURCH, replace(FISH, subject="whale")), {"subject", "count", "place", "binding"}),
    ],
)
def test_a_sample_is_judged_by_what_its_caption_names(objects, wrong, monkeypatch, loaded):
    one = of(CHURCH, FISH)
    monkeypatch.setattr(pictoscenes_quality, "generate", lambda *_: np.zeros((1, SIZE, SIZE, 3), np.uint8))
    shares = pictoscenes_quality.sample_quality(loaded, Reads(read_as(one, *objects)), [CAPTION])
    missed = {name for name, (right, of_all) in shares.items() if right < of_all and not name.startswith("subject: ")}
    assert missed == wrong | ({"all that the caption names, 2 subjects"} if wrong else set())
    shown = {obj.subject for obj in objects}
    assert all(shares[f"subject: {obj.subject}"] == (obj.subject in shown, 1) for obj in one.objects)


@pytest.mark.parametrize("position", ["left", "middle", "right"])
@pytest.mark.parametrize("obj", [CHURCH, FISH], ids=["large", "small"])
def test_a_single_subject_is_at_its_named_place_and_at_no_other(position, obj, monkeypatch, loaded):
    shown = Scene((obj,), "alone", position, "white", "flat")
    monkeypatch.setattr(pictoscenes_quality, "generate", lambda *_: np.zeros((1, SIZE, SIZE, 3), np.uint8))
    for named in ("left", "middle", "right"):
        text = f"a {obj.color} {obj.subject} {PLACES[named]}"
        shares = pictoscenes_quality.sample_quality(loaded, Reads(read_as(shown, obj)), [text])
        assert shares["place"] == (named == position, 1)


@pytest.mark.thorough
def test_every_part_trains_and_an_oracle_sees_no_scene_of_its_concept(monkeypatch, tmp_path):
    for module in (pictoscenes_training, pictoscenes_detector):
        monkeypatch.setattr(module, "SCENES", 40)
        monkeypatch.setattr(module, "BATCH", 8)
    monkeypatch.setattr(pictoscenes_detector, "STEPS", 1)
    monkeypatch.setattr(pictoscenes_training, "STEPS", dict.fromkeys(pictoscenes_training.STEPS, 1))
    captioned = []
    monkeypatch.setattr(pictoscenes_training, "caption", lambda s, rng, **keep: captioned.append(s) or caption(s, rng, **keep))
    train_world(tmp_path, tmp_path / "weights")
    written = {path.name for path in (tmp_path / "weights").iterdir()}
    assert written == {"detector.safetensors", "pipeline", "clip"}
    monkeypatch.setattr(pictoscenes_training, "WEIGHTS", tmp_path / "weights")
    captioned.clear()
    train_world(tmp_path, tmp_path / "weights", "church+van_gogh")
    assert captioned
    assert not any(CONCEPTS[name](one) for name in ("church", "van_gogh") for one in captioned)
    assert (tmp_path / "weights/oracles/church+van_gogh.safetensors").is_file()
    assert len(list(tmp_path.rglob("latents.safetensors"))) == 2


def test_timesteps_are_spread_evenly_over_a_batch_with_the_density_of_their_power():
    even, noisy = (draw_timesteps(64, power, torch.Generator().manual_seed(1)) for power in (1.0, 0.5))
    assert torch.equal(torch.bincount(even // 250, minlength=4), torch.full((4,), 16))
    assert torch.bincount(noisy // 250, minlength=4).tolist() == [4, 12, 20, 28]  # shares of the squares 1, 4, 9, 16


def test_scenes_are_drawn_by_weight_and_excluded_ones_are_replaced():
    weights = torch.tensor([0.0, 3.0, 1.0])
    drawn = draw_scenes([0, 1, 0], 4000, weights, torch.Generator().manual_seed(1))
    assert {*drawn} == {0, 1}
    assert drawn.count(1) == pytest.approx(3000, abs=100)
