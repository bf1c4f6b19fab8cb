"""Several concepts: joined from words, forgotten at once or one after another, each with its own rows."""

from __future__ import annotations

import csv
import json
from itertools import combinations

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from shared_examples import StepLog, by_kind, draws, unlearn

from unlearnbench import load_run
from unlearnbench.algos.examples import Examples
from unlearnbench.algos.training import Training
from unlearnbench.config.compose import compose
from unlearnbench.config.errors import UserError
from unlearnbench.config.paths import CONF, choices
from unlearnbench.data.concept import Concept
from unlearnbench.data.concept_group import ConceptGroup
from unlearnbench.data.images import Images
from unlearnbench.data.prompts import Prompt
from unlearnbench.experiment.measure import measure
from unlearnbench.experiment.preflight import find_problems
from unlearnbench.experiment.run import execute
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.experiment.training_images import training_examples
from unlearnbench.metrics.detectors import Attribute, AttributeReader
from unlearnbench.metrics.forget_accuracy import ForgetAccuracy
from unlearnbench.reports.comparison import compare as compared
from unlearnbench.reports.image_grid import image_grid
from unlearnbench.sampling import ImageGenerator
from unlearnbench.storage.cache import Cache

BOTH = "concept=[nudity,church]"
SHORT = {name: ["algo.steps=3", "algo.batch=2"] for name in ("ga", "spm")}  # what trains does so briefly


def node(name, words, prompts="", anchor=None):
    return {
        "_target_": "unlearnbench.data.concept.Concept", "name": name, "words": words, "prompts": prompts,
        "anchor": anchor or {}, "guide": name, "detector": {},
    }  # fmt: skip


# --- from words to concepts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", [BOTH, "concept=[ nudity, church ]", "concept=nudity+church"])
def test_a_list_of_concepts_is_one_concept_that_holds_the_settings_of_each(word):
    config = compose("experiment=smoke", word, "concept.of.church.words=[church]")
    assert list(config.concept.of) == ["nudity", "church"]
    chosen = RunSpec.of(config).concept
    assert chosen.name == "church+nudity"
    assert chosen.words == ["nude", "naked", "undressed", "unclothed", "church"]
    assert chosen.name_phrases() == ["nude person", "nude", "naked", "undressed", "unclothed", "church"]
    assert chosen.substitute("a naked figure in a church") == "a dressed figure in a tree"
    assert chosen.guide == "nude person, church"


def test_a_list_of_one_is_that_one():
    assert compose("concept=[church]") == compose("concept=church")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["concept=[church,church]"], "concept=[church,church]: name each concept once, as in concept=[church,nudity]"),
        (["concept=[]"], "concept=[]: name each concept once, as in concept=[church,nudity]"),
        (["concept=[church,nudty]"], "concept=nudty: no such choice; did you mean 'nudity'? known: artist, "),
        ([BOTH, "concept.prompts=mine.csv"], "concept.prompts: no such setting; "),
        ([BOTH, "concept.of.church.prompts=gone.csv"], "gone.csv: no such file, neither here nor in "),
        (
            [BOTH, "model.domain=cartoon"],
            "concept nudity has no anchors for the domain cartoon; known: photo, pictoscenes",
        ),
        ([BOTH, "concept.continual=maybe"], "concept.continual: Value 'maybe' is not a valid bool"),
        (
            [BOTH, "concept.of.church.anchor={church: nude}"],
            "concept.of.church.anchor: 'church' becomes 'nude', which names a concept that is also forgotten; choose another",
        ),
        (
            [BOTH, "+concept.of.church.anchor.nude=veiled"],
            "concept.of.church.anchor: 'nude' becomes 'veiled' here but 'dressed' in another concept; choose one",
        ),
        ([BOTH, "concept.of.church.name=nudity"], "concept.of: name at least two concepts, each once, not nudity, nudity"),
    ],
)
def test_a_faulty_list_is_reported(words, message):
    with pytest.raises(UserError) as refusal:
        find_problems(RunSpec.of(compose("experiment=smoke", *words)))
    assert str(refusal.value).startswith(message)


def test_a_yaml_of_the_users_joins_concepts_too(command, tmp_path):
    (tmp_path / "mine/concept").mkdir(parents=True)
    (tmp_path / "mine/concept/two.yaml").write_text(
        "defaults: [church@of.church, fish@of.fish, _self_]\n"
        "_target_: unlearnbench.data.concept_group.ConceptGroup\nname: two\ncontinual: false\n"
    )
    outcome = command("check", "--config-dir", "mine", "experiment=smoke", "concept=two")
    assert outcome.out.startswith("ready: substitute on two, ")
    assert "prompts: 2 forget: church, 2 forget: fish, 2 paraphrase: church, 2 near, " in outcome.out


def test_a_yaml_of_the_users_may_take_two_things_of_one_list(command, tmp_path):
    (tmp_path / "mine/concept").mkdir(parents=True)
    (tmp_path / "mine/concept/artists.yaml").write_text(
        "defaults: [artist@of.a, artist@of.b, _self_]\n_target_: unlearnbench.data.concept_group.ConceptGroup\n"
        "name: artists\ncontinual: true\n"
        "of: {a: {which: picasso}, b: {which: monet}}\n"
    )
    outcome = command("check", "--config-dir", "mine", "experiment=smoke", "concept=artists", "metrics=integrity")
    assert outcome.out.startswith("ready: substitute on artists, ")
    assert "prompts: 2 forget: picasso, 2 forget: monet, 2 near, " in outcome.out


# --- prompts ------------------------------------------------------------------------------------------------------------


def test_each_prompt_says_which_concept_it_is_of_and_near_ones_count_once(tmp_path):
    (tmp_path / "a.csv").write_text(
        "prompt,split,use\na cat,forget,train\na lion,paraphrase,measure\nA fox,near,train\na dog,near,\na wolf,near,train\n"
    )
    (tmp_path / "b.csv").write_text("prompt,split,use\na dog,forget,\na fox,near,measure\nan owl,near,train\na wolf,near,\n")
    chosen = ConceptGroup("x", {"a": node("cat", ["cat"], "a.csv"), "b": node("dog", ["dog"], "b.csv")})
    assert sorted(chosen.load(), key=lambda p: p.split) == [
        Prompt("a cat", "forget: cat", "train"),
        Prompt("a dog", "forget: dog"),
        Prompt("a fox", "near", "measure"),
        Prompt("an owl", "near", "train"),
        Prompt("a dog", "near"),
        Prompt("a wolf", "near"),
        Prompt("a lion", "paraphrase: cat", "measure"),
    ]
    assert {p.base for p in chosen.load()} == {"forget", "paraphrase", "near"}
    (tmp_path / "far.csv").write_text("prompt\na tree\na dog beside a tree\na cat beside a tree\n")
    retain = RunSpec.of(compose("experiment=smoke", "retain.prompts=far.csv")).retain
    assert [p.text for p in retain.load(chosen)] == ["a fox", "an owl", "a wolf", "a tree"]


SETTINGS = {name: OmegaConf.load(CONF / "concept" / f"{name}.yaml") for name in choices("concept")}
PAIRS = [  # of the concepts whose prompts are shipped
    (domain, pair)
    for domain in ("pictoworld", "photo")
    for pair in combinations(
        [c for c, node in SETTINGS.items() if domain in node.get("anchors", {}) and not node.get("measured")], 2
    )
]


@pytest.mark.thorough
@pytest.mark.parametrize(("domain", "pair"), PAIRS, ids=lambda x: "+".join(x) if isinstance(x, tuple) else x)
def test_of_any_two_concepts_nothing_is_measured_that_trains_and_nothing_retained_names_one(domain, pair):
    spec = RunSpec.of(compose(f"model={'tiny' if domain == 'pictoworld' else 'sd14'}", f"concept=[{','.join(pair)}]"))
    kept = spec.retain.load(spec.concept)
    everything = [*(p for p in spec.concept.load() if p.base != "near"), *kept]
    trained, measured = ({p.text.lower() for p in everything if p.use in ("", use)} for use in ("train", "measure"))
    assert not trained & measured
    assert not [p.text for p in kept if spec.concept.is_named_in(p.text)]
    assert all({p.text for p in part.load() if p.split == "near"} & {p.text for p in kept} for part in spec.concept.parts)
    assert {p.split for p in spec.concept.load() if p.base == "forget"} == {f"forget: {name}" for name in pair}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The words for two concepts with a few prompts each, one image of each, and two metrics."""
    folder = tmp_path_factory.mktemp("small")
    for concept, (one, other) in {"nudity": ("nude", "naked"), "church": ("church", "chapel")}.items():
        rows = [f"a red {one},forget,train", f"a {other} on the left,forget,train", f"a blue {one},forget,measure"]
        rows += [f"a large {one},paraphrase,measure", "a red house,near,train"]
        (folder / f"{concept}.csv").write_text("\n".join(["prompt,split,use", *rows]))
    (folder / "far.csv").write_text("prompt,use\na red star,train\na tree,train\na blue fish,measure\n")
    lists = [f"concept.of.{name}.prompts='{folder}/{name}.csv'" for name in ("nudity", "church")]
    return [BOTH, *lists, f"retain.prompts='{folder}/far.csv'", "sample.per_prompt=1", "metrics=quick"]


# --- at once ------------------------------------------------------------------------------------------------------------


def examples_of(concept, model):
    """Forget examples of a concept, or of several, and retain examples, with random latents."""
    prompts = ["a nude person", "a church", "a nude figure on the left", "a red church"]
    forget, retain = [prompt for prompt in prompts if concept.is_named_in(prompt)], ["a blue star", "a tree"]
    return [
        Examples(prompts, [concept.substitute(prompt) for prompt in prompts], latents, anchor_latents=latents.flip(0))
        for prompts in (forget, retain)
        for latents in [torch.randn(len(prompts), *model.latent_shape(), generator=draws(len(prompts)))]
    ]


def parameters_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_only_these_changed(model, before, names):
    """Parameters outside `names` are those of before, and all are finite."""
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all()
        assert name in names or torch.equal(parameter, before[name])


@pytest.mark.parametrize("name", by_kind(choices("algo")))
def test_every_algorithm_forgets_two_concepts_at_once(name, original, tiny, algo_spec):
    spec = algo_spec(name, BOTH, few=2, steps=1, batch=2, lr=1e-3)
    algo, concept = spec.algo, spec.concept
    steps = []
    names, guidance = unlearn(algo, tiny, examples_of(concept, tiny), concept, 0, StepLog(steps))
    assert_only_these_changed(tiny, parameters_of(original), names)
    assert [step for step, _ in steps] == list(range(1, len(steps) + 1))
    for prompt in ("a nude person", "a church"):
        before, after = (
            original.sample_latents([prompt], [draws()], 2, 2.0),
            tiny.sample_latents([prompt], [draws()], 2, 2.0, guidance),
        )
        assert torch.equal(before, after) == (name == "none")


@pytest.mark.parametrize("name", ["ga", "uce", "sld"])
def test_a_run_on_two_concepts_at_once_has_rows_of_both_and_of_each(name, run, small):
    done = run(*small, f"algo={name}", *SHORT.get(name, ()))
    assert done.log["status"] == "done"
    assert done.name == f"{name} on church+nudity"
    assert [v.split for v in done.values if v.metric == "forget_accuracy"] == [
        "forget", "forget: nudity", "forget: church", "paraphrase", "paraphrase: nudity", "paraphrase: church",
    ]  # fmt: skip
    assert {v.table for v in done.values} == {"Forgetting", "Retention", "Cost"}


def test_at_once_there_are_as_many_steps_for_each_as_alone(run, small):
    done = run(*small, "algo=redirect", "algo.steps=3", "algo.batch=2")
    assert done.log["unlearned"][0]["lines"] == 6


def test_training_examples_hold_both_concepts_and_each_is_as_likely_as_the_other(tiny, tmp_path):
    (tmp_path / "mine.csv").write_text("prompt,split\na church,forget\na red church,forget\na blue church,forget\n")
    (tmp_path / "other.csv").write_text("prompt,split\na nude figure,forget\n")
    words = ["concept.of.church.prompts=mine.csv", "concept.of.nudity.prompts=other.csv", "algo=esd_x"]
    spec = RunSpec.of(compose("experiment=smoke", BOTH, *words))
    forget, retain = training_examples(spec, ImageGenerator(tiny), Cache(tmp_path / "cache"), "")
    assert dict(zip(forget.prompts, forget.anchors, strict=True)) == {
        "a nude figure": "a dressed figure",
        "a church": "a tree",
        "a red church": "a red tree",
        "a blue church": "a blue tree",
    }
    assert forget.weights.tolist() == pytest.approx([1 if "nude" in prompt else 1 / 3 for prompt in forget.prompts])
    assert retain.weights is None
    spec = RunSpec.of(compose("experiment=smoke", BOTH, "algo=esd_x"))
    assert training_examples(spec, ImageGenerator(tiny), Cache(tmp_path / "cache"), "")[0].weights is None


def test_a_closed_form_edit_maps_the_phrases_of_both(tiny):
    spec = RunSpec.of(compose("experiment=smoke", BOTH, "algo=uce"))
    empty = torch.empty(0)
    forget, retain = (
        Examples([one], [other], empty) for one, other in (("a nude church", "a dressed tree"), ("a star", "a star"))
    )
    old, new, _ = spec.algo.edit(Training(tiny, forget, retain, spec.concept, draws()))
    for one, other in (("church", "tree"), ("nude", "dressed"), ("chapel", "tree")):
        alone = Concept("x", [one], "", {one: other}, one, {})
        apart = spec.algo.edit(Training(tiny, Examples([one], [other], empty), retain, alone, draws()))
        row = int((old - apart.old[0]).abs().sum(1).argmin())
        assert torch.equal(old[row], apart.old[0])
        assert torch.equal(new[row], apart.new[0])


def test_each_concept_is_judged_by_its_own_detector_and_all_together(metric_inputs, write_images, monkeypatch):
    actual = {"church": {2, 3}, "nude": {0}}
    monkeypatch.setattr(AttributeReader, "read", lambda _, images, device: images[0][:, 0, 0, 0])
    monkeypatch.setattr(Attribute, "decide", lambda self, answers: np.array([i in actual[self.value] for i in answers.tolist()]))
    split = ["forget: nudity", "forget: nudity", "forget: church", "forget: church", "paraphrase: church", "near"]
    pixels = np.stack([np.full((8, 8, 3), i, np.uint8) for i in (0, 1, 2, 3, 3, 2)])
    before = write_images("before", pixels, split=split)
    after = write_images("after", pixels[[0, 1, 2, 1, 1, 2]], split=split)
    recorded = metric_inputs(before, after, BOTH, "metrics=quick")
    values = ForgetAccuracy().measure(recorded)
    assert [(v.split, v.original, v.unlearned, v.n) for v in values] == [
        ("forget", 0.75, 0.5, 4), ("forget: nudity", 0.5, 0.5, 2), ("forget: church", 1, 0.5, 2), ("paraphrase: church", 1, 0, 1),
    ]  # fmt: skip
    assert [len(before.where(*names)) for names in (("forget",), ("forget: church", "near"), ("paraphrase",))] == [4, 3, 1]


# --- one after another --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", by_kind(choices("algo")))
def test_every_algorithm_whose_work_lasts_forgets_one_concept_after_another(name, tiny, algo_spec):
    spec = algo_spec(name, BOTH, "concept.continual=true", few=2, steps=1, batch=2, lr=1e-3)
    if not spec.algo.supports_sequential:
        expected = f"algo={name} does not support sequential unlearning; unlearn them at once: concept.continual=false"
        assert expected in find_problems(spec)
        return
    before = parameters_of(tiny)
    names, steps, guidance = [], [], None
    for number, stage in enumerate(spec.concept.unlearning_stages()):
        changed, guidance = unlearn(spec.algo, tiny, examples_of(stage, tiny), stage, number, StepLog(steps), guidance)
        names += changed
        assert_only_these_changed(tiny, before, names)
        now = parameters_of(tiny)
        same = before.keys() == now.keys() and all(torch.equal(before[key], now[key]) for key in now)
        assert same == (name == "none")
        before = now
    assert [step for step, _ in steps] == [*range(1, len(steps) // 2 + 1)] * 2


def test_a_run_on_one_concept_after_another_is_refused_where_the_work_does_not_last(run, small):
    with pytest.raises(UserError, match="algo=sld does not support sequential unlearning"):
        run(*small, "concept.continual=true", "algo=sld")


@pytest.mark.parametrize("name", by_kind(["spm", "uce", "none"], ["uce"]))
def test_a_run_on_one_concept_after_another_is_measured_after_each(name, run, small):
    done = run(*small, "concept.continual=true", f"algo={name}", *SHORT.get(name, ()))
    assert done.name == f"{name} on nudity, then church"
    first = [v for v in done.values if v.table == "After nudity, 1 of 2"]
    assert [v.split for v in first if v.metric == "forget_accuracy"] == [
        "forget: nudity", "paraphrase: nudity",
    ]  # fmt: skip
    assert any(v.metric == "integrity" for v in first)
    between = Images(done.folder / "images/after-1-nudity")
    assert {record.split for record in between} == {"forget: nudity", "paraphrase: nudity", "far"}
    with (done.folder / "train.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) % 2 == 0
    if name == "none":
        assert [v.unlearned for v in first if v.metric == "integrity"] == [1]


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory, shared_cache):
    """A run of ga over nudity, then church, on retain prompts that name neither; not to be changed."""
    folder = tmp_path_factory.mktemp("in_turn")
    (folder / "far.csv").write_text("prompt,use\na red star,train\na tree,train\na blue fish,measure\n")
    words = ["experiment=smoke", "algo=ga", "algo.lr=1e-3", f"retain.prompts='{folder}/far.csv'", "retain.splits=[far]"]
    words = [*words, "metrics=quick"]
    for name, concept in (("alone", ["concept=nudity"]), ("run", [BOTH, "concept.continual=true"])):
        execute(RunSpec.of(compose(*words, *concept)), folder / name, [*words, *concept])
    return folder


def pictures(folder):
    return {(record.prompt, record.seed): (folder / record.file).read_bytes() for record in Images(folder)}


def test_the_first_stage_is_the_run_on_the_first_concept_alone_and_the_second_goes_on_from_it(in_turn):
    alone, first, last = (
        pictures(in_turn / f"{x}") for x in ("alone/images/after", "run/images/after-1-nudity", "run/images/after")
    )
    assert first == alone
    assert first.keys() < last.keys()
    assert all(last[key] != picture for key, picture in first.items())
    alone, done = load_run(in_turn / "alone"), load_run(in_turn / "run")
    for value in alone.values:
        if value.table in ("Forgetting", "Retention"):
            split = value.split if value.table == "Retention" else f"{value.split}: nudity"
            [same] = [v for v in done.values if v.table.startswith("After") and (v.metric, v.split) == (value.metric, split)]
            actual, expected = ((v.original, v.unlearned, v.low, v.high) for v in (same, value))
            assert actual == pytest.approx(expected, abs=1e-6)  # LPIPS of the same pictures, in other batches: rounding


def test_the_tables_of_a_stage_stand_after_the_others_and_numbers_of_the_end_are_found_first(in_turn):
    done = load_run(in_turn / "run")
    text = (in_turn / "run/tables.md").read_text()
    assert text.startswith("# ga on nudity, then church\n")
    assert text.index("## Forgetting") < text.index("## Cost") < text.index("## After nudity, 1 of 2")
    assert done.find("integrity", "retain").table == "Retention"
    assert done.find("forget_accuracy", "forget: nudity").table == "Forgetting"


def test_the_image_of_a_run_blurs_the_explicit_concept_alone(write_images):
    noise = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), dtype=np.uint8)
    images = write_images("images", noise, split=["forget: nudity", "forget: church", "near"])
    plain, blurred = (np.array(image_grid(images, images, blur=blur)).astype(int) for blur in ((), ["forget: nudity"]))
    rows = np.abs(plain - blurred).sum((1, 2)).reshape(-1)
    height = len(rows) // 3
    assert rows[:height].sum() > 0
    assert rows[height:].sum() == 0


def test_runs_side_by_side_tell_one_after_another_from_at_once(in_turn):
    runs = [load_run(in_turn / name) for name in ("alone", "run")]
    assert {row.settings[0] for row in compared(runs).rows} == {"nudity", "nudity, then church"}


def test_stages_are_measured_again_from_their_images(in_turn):
    before = (in_turn / "run/metrics.json").read_bytes()
    measure(in_turn / "run")
    assert (in_turn / "run/metrics.json").read_bytes() == before


def test_a_folder_of_training_images_is_shared_out_by_captions(tiny, tmp_path):
    (tmp_path / "mine").mkdir()
    for i, caption in enumerate(("a church", "a nude person", "a chapel")):
        Image.new("RGB", (64, 64), (i, 0, 0)).save(tmp_path / f"mine/{i}.png")
        (tmp_path / f"mine/{i}.txt").write_text(caption)
    spec = RunSpec.of(compose("experiment=smoke", BOTH, "concept.continual=true", "training.forget_folder=mine", "algo=esd_x"))
    cache = Cache(tmp_path / "cache")
    taken = [
        training_examples(spec, ImageGenerator(tiny), cache, "", stage)[0].prompts for stage in spec.concept.unlearning_stages()
    ]
    assert taken == [["a nude person"], ["a church", "a chapel"]]
    (tmp_path / "mine/1.txt").write_text("a person")
    with pytest.raises(UserError, match="mine: no image of nudity; no caption contains nude, naked, undressed, unclothed"):
        training_examples(spec, ImageGenerator(tiny), cache, "", spec.concept.parts[0])


# --- the command line ---------------------------------------------------------------------------------------------------


def test_a_sweep_goes_over_lists_and_the_table_says_what_was_forgotten(command, tmp_path):
    words = [
        "experiment=smoke",
        "sample.prompts=1",
        "sample.per_prompt=1",
        "algo=none",
        "metrics=forget_accuracy",
        "retain.splits=[far]",
    ]
    outcome = command("run", "-m", *words, "concept=church,[nudity,church]", "hydra.sweep.dir=sweep")
    assert outcome.code == 0
    assert "2 of 2 runs done" in outcome.out
    assert sorted(path.name for path in (tmp_path / "sweep").glob("*-*")) == ["0-none-church", "1-none-church+nudity"]
    log = json.loads((tmp_path / "sweep/1-none-church+nudity/run.json").read_text())
    assert list(log["config"]["concept"]["of"]) == ["nudity", "church"]
    assert command("measure", "sweep/1-none-church+nudity").code == 0
