"""Pictoscenes as a domain: prompts are read, its detector judges, concepts have prompts, and the model's folder is found."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import build_pictoscenes_prompts
import numpy as np
import pytest
import torch
from build_pictoscenes_prompts import content

from unlearnbench.config.build import build
from unlearnbench.config.compose import compose
from unlearnbench.config.errors import UserError
from unlearnbench.config.paths import CONF, read_yaml
from unlearnbench.data.concept import Concept
from unlearnbench.data.prompts import Prompt, read_prompts
from unlearnbench.experiment.measure import measure
from unlearnbench.experiment.run import execute
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.metrics.backbones import backbone
from unlearnbench.metrics.binding import Binding
from unlearnbench.metrics.company import MARGIN, Company
from unlearnbench.metrics.detectors import AttributeReader, InScene, concept_detector
from unlearnbench.metrics.fid import real_features
from unlearnbench.metrics.image_distances import pair_distances
from unlearnbench.metrics.retain_accuracy import RetainAccuracy
from unlearnbench.pictoscenes.captions import UNSEEN, caption
from unlearnbench.pictoscenes.detector import GRID, OF_IMAGE, OF_SUBJECT, Detection, decode, packed, unpacked
from unlearnbench.pictoscenes.pictograms import SUBJECTS
from unlearnbench.pictoscenes.prompts import complete, correct, parse
from unlearnbench.pictoscenes.render import SIZE, render
from unlearnbench.pictoscenes.scenes import CONCEPTS, Scene, SceneObject, scene
from unlearnbench.pictoworld.classifier import to_unit
from unlearnbench.recipes.quality import embedded_model
from unlearnbench.results.metric_names import headline
from unlearnbench.results.settings import without_classes
from unlearnbench.sampling import generate
from unlearnbench.worlds import embedded_world, embedded_worlds
from unlearnbench.worlds.pictoscenes import WORLD

CPU = torch.device("cpu")
CHURCH, HOUSE = SceneObject("church", "red", "plain", "large"), SceneObject("house", "red", "plain", "large")
FISH, TREE = SceneObject("fish", "blue", "plain", "large"), SceneObject("tree", "green", "plain", "large")
NAMES = tuple(CONCEPTS)


def beside(*objects, style="flat"):
    return Scene(objects, "beside" if len(objects) == 2 else "row", "middle", "white", style)


def alone(obj, position="middle", style="flat"):
    return Scene((obj,), "alone", position, "white", style)


@cache
def drawn(one, seed=0):
    return render(one, np.random.default_rng(seed))


def pixels(*scenes):
    return torch.from_numpy(np.stack([drawn(one)[0] for one in scenes]))


def ideal(one):
    """What a detector without errors reads in an image of the scene."""
    attributes = [{name: getattr(obj, name) for name in OF_SUBJECT} for obj in one.objects]
    found = [Detection(a, box, 1.0) for a, box in zip(attributes, drawn(one)[1], strict=True)]
    return {name: getattr(one, name) for name in OF_IMAGE}, sorted(found, key=lambda subject: subject.box.x)


# --- prompts ------------------------------------------------------------------------------------------------------------


def test_a_caption_is_read_back_as_what_it_names():
    for index in range(120):
        one = scene(index)
        named = parse(text := caption(one, np.random.default_rng(index), keep=1.0))
        assert sorted(obj["subject"] for obj in named.objects) == sorted(obj.subject for obj in one.objects), text
        for obj in named.objects:
            assert any(all(getattr(own, name) == value for name, value in obj.items()) for own in one.objects), (text, obj)
        assert named.whole["background"] == one.background
        assert named.whole.get("style", "flat") == one.style
        assert all(correct(named, *ideal(one)).values()), text


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("a red church left of a blue fish on a white background", set()),
        ("a red church right of a blue fish", {"position"}),
        ("a red church and a fish", set()),
        ("a blue church left of a red fish", {"color"}),
        ("a red church left of a dotted fish", {"pattern"}),
        ("a church", {"count"}),
        ("a church left of a tree", {"subject", "position"}),
        ("two churches", {"subject"}),
        ("a cathedral left of a fish in the style of van gogh on a black background", {"style", "background"}),
    ],
)
def test_an_image_is_right_in_each_attribute_that_the_prompt_names(text, wrong):
    flags = correct(parse(text), *ideal(beside(CHURCH, FISH)))
    assert {name for name, right in flags.items() if not right} == wrong


def test_a_single_subject_is_to_be_at_its_named_place():
    for shown in ("left", "middle", "right"):
        for named in ("on the left", "in the middle", "on the right in the style of van gogh"):
            flags = correct(parse(f"a church {named}"), *ideal(alone(CHURCH, shown)))
            assert flags["position"] == (shown in named)


def test_words_that_no_training_caption_has_are_read_as_their_subject():
    for subject, words in UNSEEN.items():
        for word in words:
            assert [obj["subject"] for obj in parse(f"a {word} on the left").objects] == [subject]
    assert parse("a building").objects == ()
    assert correct(parse("a building"), *ideal(alone(CHURCH))) == {}


def test_a_completed_prompt_is_a_scene_of_what_it_names():
    rng = np.random.default_rng(0)
    one = complete("a red church above a striped fish", rng)
    assert [(t.subject, one.arrangement) for t in one.objects] == [("church", "stacked"), ("fish", "stacked")]
    assert (one.objects[0].color, one.objects[1].pattern, one.style) == ("red", "striped", "flat")
    copies = complete("three blue cups on a black background", rng)
    assert (copies.arrangement, len(copies.objects), len(set(copies.objects)), copies.background) == ("several", 3, 1, "black")
    assert complete("something", rng).objects
    assert len(complete("a dog, a cat, a wolf and a bird", rng).objects) == 3


# --- the detector -------------------------------------------------------------------------------------------------------


def test_answers_are_packed_into_numbers_and_back():
    shown = [ideal(beside(CHURCH, FISH)), ideal(alone(TREE, style="sketch"))]
    again = unpacked(packed(shown))
    for (whole, found), (whole_again, found_again) in zip(shown, again, strict=True):
        assert whole_again == whole
        assert [one.attributes for one in found_again] == [one.attributes for one in found]
        assert [tuple(one.box) for one in found_again] == [pytest.approx(tuple(one.box), abs=1e-4) for one in found]


def test_the_detector_reads_rendered_scenes_as_concepts():
    blue = SceneObject("church", "blue", "plain", "large")
    images = pixels(beside(CHURCH, FISH), beside(FISH, blue), alone(TREE), alone(FISH, style="van gogh"))
    expected = {
        "church": [True, True, False, False], "red_church": [True, False, False, False],
        "van_gogh": [False, False, False, True], "nudity": [False] * 4, "parachute": [False] * 4,
    }  # fmt: skip
    for name, shows in expected.items():
        spec = RunSpec.of(compose("model=pictoscenes", f"concept={name}"))
        assert concept_detector(spec.concept, "pictoscenes").detect(images, CPU).tolist() == shows, name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"subject": "chapel"}, "subject: 'chapel' is not one of circle, square"),
        ({}, "subject: name one, or a style"),
        ({"style": "flat", "color": "red"}, "color: name the subject, too"),
    ],
)
def test_a_detector_of_what_is_not_there_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        InScene(**settings)


def test_the_backbone_of_the_domain_is_the_detector(metric_inputs, write_images):
    network = backbone("auto", "pictoscenes")
    network.load(CPU)
    assert (network.name, network.features(pixels(alone(TREE))).shape) == ("detector", (1, 256))
    images = write_images("images", pixels(alone(TREE), alone(FISH)), ["a green tree", "a blue fish"])
    inputs = metric_inputs(images, images, "concept=church", "model.domain=pictoscenes")
    assert real_features(inputs, "auto").shape == (8, 256)


# --- metrics ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def inputs(write_images, metric_inputs):
    """Rendered images of both models for prompts, with the kind of each prompt."""

    def make(prompts, split, original, unlearned, *words, kinds=None):
        folders = []
        for name, scenes in (("before", original), ("after", unlearned)):
            images = write_images(name, pixels(*scenes), prompts, split)
            for record, kind in zip(images, kinds or [""] * len(prompts), strict=True):
                record.columns.update({"kind": kind} if kind else {})
            folders.append(images)
        return metric_inputs(*folders, "model.domain=pictoscenes", "concept=church", *words)

    return make


RETAIN = ["a red house left of a blue fish", "a green tree on a white background", "a blue fish"]


def test_retain_accuracy_and_binding_judge_every_subject(inputs):
    original = [beside(HOUSE, FISH), alone(TREE), alone(FISH)]
    swapped = beside(SceneObject("house", "blue", "plain", "large"), SceneObject("fish", "red", "plain", "large"))
    given = inputs(RETAIN, "far", original, [swapped, alone(TREE), alone(TREE)])
    [accuracy, *_] = RetainAccuracy().measure(given)
    assert (accuracy.original, accuracy.unlearned, accuracy.backbone) == (1, pytest.approx(1 / 3), "detector")
    [subjects, *_] = RetainAccuracy(subject_only=True).measure(given)
    assert subjects.unlearned == pytest.approx(2 / 3)
    [binding, *pairs] = Binding(["subject", "color", "position"]).measure(given)
    assert (binding.original, binding.unlearned, binding.n) == (1, pytest.approx(1 / 3), 3)
    assert {value.metric: value.unlearned for value in pairs}["binding_subject_position"] == 1


COMPANY = ["a red church left of a blue fish"] * 3 + ["a red church"]
KINDS = ["company", "company", "company", "alone"]
ORIGINAL = [beside(CHURCH, FISH)] * 3 + [alone(CHURCH)]
UNLEARNED = [
    beside(HOUSE, FISH),
    beside(FISH, HOUSE),
    beside(HOUSE, SceneObject("fish", "pink", "plain", "large")),
    alone(CHURCH),
]


def test_what_stays_of_the_company_is_counted_by_place_and_colour(inputs):
    given = inputs(COMPANY, "forget", ORIGINAL, UNLEARNED, kinds=KINDS)
    values = {(value.metric, value.split): value for value in Company().measure(given)}
    kept, bound = values["rest_kept", "forget, company"], values["rest_binding", "forget, company"]
    assert (kept.unlearned, kept.original, kept.n) == (pytest.approx(1 / 3), None, 3)
    assert (bound.original, bound.unlearned, bound.n) == (1, pytest.approx(2 / 3), 3)
    shares = {split: (v.original, v.unlearned, v.n) for (metric, split), v in values.items() if metric == "forget_accuracy"}
    assert shares == {"forget, company": (1, 0, 3), "forget, alone": (1, 1, 1)}


@pytest.mark.parametrize("distance", ["detector", "lpips-alex"])
def test_integrity_of_the_rest_is_the_distance_with_the_concepts_place_from_the_original(inputs, distance):
    given = inputs(COMPANY, "forget", ORIGINAL, UNLEARNED, kinds=KINDS)
    values = {value.metric: value for value in Company(distance).measure(given)}
    distances = []
    for before, after in zip(pixels(*ORIGINAL)[:3], pixels(*UNLEARNED)[:3], strict=True):
        [box] = [one.box for one in WORLD.network().read(before.permute(2, 0, 1)[None] / 127.5 - 1)[0][1] if one.box.x < SIZE / 2]
        reach = 1.1 * box.half + MARGIN
        mixed, count = after.clone(), 0
        for y in range(SIZE):
            for x in range(SIZE):
                if abs(x + 0.5 - box.x) <= reach and abs(y + 0.5 - box.y) <= reach:
                    mixed[y, x], count = before[y, x], count + 1
        [d] = pair_distances(distance, before[None], mixed[None], CPU).tolist()
        distances.append(d / (1 - count / SIZE**2))
    assert distances[0] < 0.05 * min(distances[1:])
    assert values["rest_integrity"].unlearned == pytest.approx(1 - np.mean(distances), abs=1e-5)
    assert (values["rest_integrity"].n, values["rest_integrity"].backbone) == (3, f"{distance} outside")


def test_unchanged_images_keep_all_and_another_seed_is_the_scale(inputs):
    moved = beside(CHURCH, SceneObject("fish", "blue", "dotted", "small"))
    original = [beside(CHURCH, FISH), moved]
    given = inputs(COMPANY[:2], "forget", original, original, kinds=KINDS[:2])
    values = {value.metric: value.unlearned for value in Company().measure(given)}
    assert (values["rest_kept"], values["rest_integrity"], values["rest_integrity_norm"]) == (1, 1, 1)


def test_company_gives_each_value_once_with_its_interval_and_the_same_again(inputs):
    given = inputs(COMPANY, "forget", ORIGINAL, UNLEARNED, kinds=KINDS)
    values = Company().measure(given)
    assert values == Company().measure(given)
    assert len({(v.metric, v.split, v.backbone) for v in values}) == len(values)
    assert {v.table for v in values} == {"Forgetting", "Retention"}
    for value in values:
        assert np.isfinite(value.unlearned)
        assert value.low is None or value.low - 1e-9 <= value.unlearned <= value.high + 1e-9


def test_images_whose_original_shows_no_concept_do_not_count(inputs):
    original = [beside(CHURCH, FISH), beside(HOUSE, FISH)]
    given = inputs(COMPANY[:2], "forget", original, [beside(HOUSE, FISH)] * 2, kinds=KINDS[:2])
    values = {value.metric: value for value in Company().measure(given)}
    assert (values["rest_kept"].n, values["rest_integrity"].n) == (1, 1)


def test_of_a_style_the_subjects_are_counted_and_no_pixels(inputs):
    prompts = ["a red house left of a blue fish in the style of van gogh"]
    before, after = [beside(HOUSE, FISH, style="van gogh")], [beside(HOUSE, FISH)]
    given = inputs(prompts, "forget", before, after, "concept=van_gogh", kinds=["company"])
    values = {value.metric: value for value in Company().measure(given)}
    assert values.keys() == {"rest_kept", "rest_binding", "forget_accuracy"}
    assert (values["rest_kept"].unlearned, values["forget_accuracy"].unlearned) == (1, 0)


def test_company_is_refused_where_no_detector_finds_places_and_where_no_prompt_is_in_company():
    spec = RunSpec.of(compose("concept=church", "metrics=company"))
    reason = spec.metrics["company"].unavailable_reason(spec.evaluation_setting)
    assert reason == (
        "company reads the subjects of a scene, and the concept's detector for pictoworld finds no places; "
        "remove it with '~metrics.company', or set model=pictoscenes"
    )
    assert "no prompt of forget is in company" in Company().sample_problem(spec.evaluation_setting, spec.concept.load())
    ours = RunSpec.of(compose("experiment=pictoscenes"))
    assert Company().sample_problem(ours.evaluation_setting, ours.concept.load()) is None


# --- concepts, model, settings ------------------------------------------------------------------------------------------


def test_the_prompt_lists_are_those_that_the_script_writes(monkeypatch, tmp_path):
    for folder in ("concept", "retain", "lists"):
        (tmp_path / "conf" / folder).mkdir(parents=True)
    monkeypatch.setattr(build_pictoscenes_prompts, "ROOT", tmp_path)
    build_pictoscenes_prompts.main()
    written = sorted(path.relative_to(tmp_path / "conf") for path in tmp_path.rglob("*.csv"))
    assert written == sorted(path.relative_to(CONF) for path in CONF.glob("*/*pictoscenes*.csv"))
    for path in written:
        assert (tmp_path / "conf" / path).read_text() == (CONF / path).read_text(), path


def test_no_two_prompts_of_all_lists_have_the_same_content():
    contents = [content(row.text) for path in CONF.glob("*/*pictoscenes*.csv") for row in read_prompts(str(path))]
    assert len(set(contents)) == len(contents) > 700
    assert content("a photo of a red church") == content("there is a red church") == content("a red church")


@pytest.mark.parametrize(
    "overrides", [*((f"concept={name}", "experiment=implicit") for name in NAMES), ("concept=pictoscenes_subject",)]
)
def test_a_run_measures_no_content_that_it_trains_on(overrides):
    spec = RunSpec.of(compose("model=pictoscenes", *overrides))
    rows = [*spec.concept.load(), *spec.retain.load(spec.concept)]
    contents = {use: {content(row.text) for row in rows if row.use == use} for use in ("train", "measure")}
    assert {row.use for row in rows} == contents.keys()
    assert not contents["train"] & contents["measure"]


def test_near_prompts_are_of_the_concepts_kind_and_far_ones_of_no_kind():
    sketches = [parse(row.text) for row in read_prompts("concept/van_gogh-pictoscenes.csv") if row.split == "near"]
    assert {named.whole["style"] for named in sketches} == {"sketch"}
    far = [parse(row.text) for row in read_prompts("retain/pictoscenes.csv") if row.split == "far"]
    assert len(far) == 80
    kinds = {"church", "mosque", "castle", "house", "person", "nude", "parachute", "balloon", "mushroom", "bird"}
    for named in far:
        assert named.objects
        assert "style" not in named.whole
        assert not [obj for obj in named.objects if obj["subject"] in kinds or obj.get("color") == "red"]


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_with_the_anchor_in_place_of_the_concept_is_english(name):
    concept = RunSpec.of(compose("model=pictoscenes", f"concept={name}")).concept
    texts = [row.text for row in concept.load() if row.split in ("forget", "paraphrase")]
    texts += [caption(one, np.random.default_rng(i)) for i, one in enumerate(map(scene, range(600))) if CONCEPTS[name](one)]
    texts += ["two unclothed people", "an unclothed person left of a house"]
    wrong = re.compile(r"\ban [^aeiou]|\ba [aeiou]|in blues|\b(two|three|a pair of) (small |large )?(person|human)\b|  ")
    assert [text for text in map(concept.substitute, texts) if wrong.search(text)] == []


def test_a_concept_of_another_world_is_refused_with_those_of_this_one(command):
    known = "pictoworld; concepts of pictoscenes: church, nudity, parachute, pictoscenes_subject, red_church, van_gogh\n"
    fish = command("check", "model=pictoscenes", "concept=fish").err
    assert fish == f"error: concept fish has no anchors for the domain pictoscenes; known: {known}"
    subject = command("check", "experiment=interference", "model=pictoscenes", "concept.which=fish").err
    assert subject.endswith(f"fish has none for domain pictoscenes; known: {known}")


def test_every_subject_can_be_forgotten_and_becomes_another_one(command, pipeline_folder):
    assert list(read_yaml(CONF / "lists/pictoscenes_subjects.yaml")) == list(SUBJECTS)
    words = ["experiment=interference", "model=pictoscenes", "concept=pictoscenes_subject"]
    config = compose(*words).concept
    for name in SUBJECTS:
        concept = build({**config, "name": name, "which": name}, Concept, "concept")
        assert concept_detector(concept, "pictoscenes") == InScene(name)
        [first, *_] = [row.text for row in concept.load() if row.split == "forget"]
        assert [obj["subject"] for obj in parse(first).objects] == [name]
        assert name not in [obj["subject"] for obj in parse(concept.substitute(first)).objects]
    assert command("check", *words, "algo=uce", f"model.path={pipeline_folder}").out.startswith("ready: ")


def test_a_list_of_no_embedded_world_is_refused():
    with pytest.raises(UserError, match="world: 'mars' is no embedded world; known: pictoscenes, pictoworld"):
        RunSpec.of(compose("concept=pictoscenes_subject", "concept.world=mars"))


@pytest.mark.parametrize("name", NAMES)
def test_a_concepts_prompts_show_it_alone_and_in_company_and_none_trains_and_measures(name):
    concept = RunSpec.of(compose("model=pictoscenes", f"concept={name}")).concept
    rows = read_prompts(f"concept/{name}-pictoscenes.csv")
    assert len({row.text for row in rows}) == len(rows)
    kinds = {row.split: set() for row in rows}
    for row in rows:
        kinds[row.split].add(dict(row.columns)["kind"])
        objects = parse(row.text).objects
        if row.split != "paraphrase":
            assert (len(objects) > 1) == (dict(row.columns)["kind"] == "company"), row.text
        one = complete(row.text, np.random.default_rng(0))
        assert CONCEPTS[name](one) == (row.split != "near"), row.text
        if row.split == "forget":
            assert concept.is_named_in(row.text)
            changed = complete(concept.substitute(row.text), np.random.default_rng(0))
            assert not CONCEPTS[name](changed), row.text
    assert kinds["forget"] == kinds["near"] == {"alone", "company"}
    has_unseen = name in ("church", "red_church", "nudity")
    assert kinds["paraphrase"] == ({"synonym", "unseen"} if has_unseen else {"synonym"})
    retained = RunSpec.of(compose("model=pictoscenes", f"concept={name}")).retain.load(concept)
    assert not any(CONCEPTS[name](complete(row.text, np.random.default_rng(0))) for row in retained if row.split != "generic")
    described = RunSpec.of(compose("model=pictoscenes", f"concept={name}", "experiment=implicit")).concept.load()
    assert sum(row.split == "implicit" for row in described) == 20


def test_a_world_without_weights_names_the_command_that_trains_them(monkeypatch, tmp_path):
    model = RunSpec.of(compose("model=pictoscenes")).model
    assert (model.size, model.steps, model.guidance, model.domain) == (64, 15, 5.0, "pictoscenes")
    monkeypatch.setattr(type(WORLD), "weights", tmp_path)
    assert model.unavailable_reason() == (
        "model.path=pictoscenes: the weights of Pictoscenes are not in this package; train them by "
        "`unlearnbench world train --world pictoscenes`, and set model.path to the folder pipeline that it writes"
    )


def test_the_experiment_runs_on_a_pipeline_from_end_to_end(pipeline_folder, tmp_path):
    words = ["experiment=pictoscenes", f"model.path={pipeline_folder}", "model.steps=2", "algo=substitute", "algo.steps=1"]
    words += ["algo.batch=2", "sample.per_prompt=2"]
    few = [*words, "metrics=[forget_accuracy,retain_accuracy,company,binding,fid_original]"]
    spec = RunSpec.of(compose(*few, "sample.prompts=2"))
    done = execute(spec, tmp_path / "run", few)
    assert done.log["status"] == "done"
    assert done.find("retain_accuracy", "retain").backbone == "detector"
    assert done.find("rest_binding", "forget, company").n > 0
    assert done.find("fid_original", "retain").backbone == "detector"
    assert {"forget, alone", "forget, company"} <= {value.split for value in done.values}
    assert [value.split for value in headline(done.values, ["Forgetting"])] == ["forget"]
    again = measure(done.folder, "metrics=company")
    assert again.find("rest_binding", "forget, company").unlearned == done.find("rest_binding", "forget, company").unlearned


def test_worlds_are_found_by_their_files():
    assert [world.name for world in embedded_worlds()] == ["pictoscenes", "pictoworld"]
    assert embedded_world("pictoscenes") is WORLD
    assert embedded_world("photo") is embedded_world("base") is None
    assert AttributeReader(embedded_world("pictoworld")).key()[0] == "classifier"


def test_anchors_and_detectors_of_a_later_world_change_no_earlier_settings():
    settings = {"concept": {"detector": {"pictoworld": {"value": "a"}, "pictoscenes": {"subject": "b"}}}}
    earlier = {"concept": {"detector": {"pictoworld": {"value": "a"}}}}
    for model in ({"domain": "pictoworld"}, {"domain": "photo"}):
        assert without_classes({**settings, "model": model}) == without_classes({**earlier, "model": model})
    own = without_classes({**settings, "model": {"domain": "pictoscenes"}})
    assert own["concept.detector.pictoscenes.subject"] == "b"


def test_an_attribute_of_another_world_is_no_part_of_binding():
    setting = RunSpec.of(compose("model=pictoworld")).evaluation_setting
    assert "pattern" in str(Binding(["subject", "pattern"]).unavailable_reason(setting))
    assert Binding(["subject", "pattern"]).unavailable_reason(replace(setting, domain="pictoscenes")) is None


def test_of_equal_neighbours_the_detector_reads_one():
    answers = {"peak": torch.full((1, GRID, GRID), -20.0), "place": torch.zeros(1, 3, GRID, GRID)}
    answers |= {name: torch.zeros(1, len(values), GRID, GRID) for name, values in OF_SUBJECT.items()}
    answers |= {name: torch.zeros(1, len(values)) for name, values in OF_IMAGE.items()}
    answers["peak"][0, 5, 5:7] = 12.0
    [(_, subjects)] = decode({name: value.half() for name, value in answers.items()})
    assert [(one.box.x, one.box.y) for one in subjects] == [(22.0, 22.0)]


def test_each_concept_of_a_run_needs_prompts_in_company():
    setting = RunSpec.of(compose("model=pictoscenes", "concept=church")).evaluation_setting
    alone = Prompt("a church", "forget: church", columns=(("kind", "alone"),))
    company = Prompt("a nude person left of a tree", "forget: nudity", columns=(("kind", "company"),))
    assert "no prompt of forget: church is in company" in str(Company().sample_problem(setting, [alone, company]))
    assert Company().sample_problem(setting, [company]) is None


def test_a_pattern_that_a_prompt_does_not_name_is_plain():
    scenes = [complete("a red church left of a fish", np.random.default_rng(seed)) for seed in range(20)]
    assert {obj.pattern for one in scenes for obj in one.objects} == {"plain"}


def test_the_oracle_of_a_concept_lacks_it_and_the_fewest_others(tmp_path, monkeypatch):
    monkeypatch.setattr(type(WORLD), "oracles", tmp_path)
    assert WORLD.oracle("church") is None
    for name in ("church+nudity+van_gogh", "church+nudity", "parachute"):
        (tmp_path / f"{name}.safetensors").touch()
    oracles = {name: WORLD.oracle(name) for name in ("church", "van_gogh", "nudity+church", "parachute", "church+parachute", "")}
    assert {name: path and path.stem for name, path in oracles.items()} == {
        "church": "church+nudity", "van_gogh": "church+nudity+van_gogh", "nudity+church": "church+nudity",
        "parachute": "parachute", "church+parachute": None, "": None,
    }  # fmt: skip


def test_the_included_oracle_generates_its_concepts_no_more_and_the_rest():
    model = embedded_model(WORLD).load(CPU)
    specs = {name: RunSpec.of(compose("model=pictoscenes", "algo=oracle", f"concept={name}")) for name in NAMES}
    assert specs["church"].algo.unlearn(model, None, None, specs["church"].concept, 0)
    prompts = {
        "church": "a red church", "nudity": "a nude person", "van_gogh": "a house in the style of van gogh",
        "parachute": "a blue parachute",
    }  # fmt: skip
    for name, prompt in prompts.items():
        assert WORLD.oracle(name) == WORLD.oracle("+".join(prompts))
        images = generate(model, [prompt] * 4, list(range(4)), 10, 5.0)
        shown = concept_detector(specs[name].concept, "pictoscenes").detect(images, CPU)
        assert not shown.any(), name
    assert WORLD.oracle("red_church") is None
    rest = ["a red house", "a blue fish", "a green tree", "a yellow star"]
    images = generate(model, rest * 2, list(range(8)), 10, 5.0)
    answers = unpacked(WORLD.answers(WORLD.network(), to_unit(images)))
    right = [correct(parse(prompt), *shown)["subject"] for prompt, shown in zip(rest * 2, answers, strict=True)]
    assert sum(right) >= 5
