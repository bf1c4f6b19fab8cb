"""A row of a prompt file is a prompt with its seed, n counts different images, and a broken autoencoder stops the run."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from unlearnbench.attacks.base import Attempt
from unlearnbench.attacks.completion import Completion
from unlearnbench.config.compose import compose
from unlearnbench.data.image_reader import image_size
from unlearnbench.data.images import Images
from unlearnbench.experiment import attack_images, probing
from unlearnbench.experiment.attack import attack
from unlearnbench.experiment.attack_inputs import identity
from unlearnbench.experiment.attacked import AttackedModel
from unlearnbench.experiment.probing import probe_sides
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.models.tiny import make_pipeline
from unlearnbench.results.run import load_run

FAR = ("a red house on a white background", "a small green tree on the left", "a large blue fish", "a yellow star")
FORGET = "prompt,split,use\na red church on a white background,forget,train\na small church in the middle,forget,measure\n"


@pytest.fixture
def lists(tmp_path):
    """Write a forget list and a retain list; returns the overrides that choose them."""

    def write(retain, forget=FORGET):
        (tmp_path / "forget.csv").write_text(forget)
        rows = "".join(f"{row}\n" for row in ("a purple boat,far,train,", *retain))
        (tmp_path / "retain.csv").write_text(f"prompt,split,use,seed\n{rows}")
        overrides = [f"concept.prompts={tmp_path / 'forget.csv'}", f"retain.prompts={tmp_path / 'retain.csv'}"]
        return [*overrides, "concept.paraphrases=[]", "retain.splits=[far,generic]", "sample.prompts=null"]

    return write


def test_a_prompt_that_stands_twice_is_measured_once_and_reported_once(run, lists, command, caplog):
    once = [f"{text},far,measure," for text in FAR]
    across = [f"{text},generic,measure," for text in FAR]
    first = run(*lists(once), "sample.per_prompt=2", folder="once").find("integrity_norm", "retain")
    overrides = lists([*once, *once, *across])
    again = run(*overrides, "sample.per_prompt=2", folder="twice")
    value = again.find("integrity_norm", "retain")
    assert (value.n, value.unlearned, value.extras) == (first.n, first.unlearned, first.extras)
    assert value.n == 8
    warning = f"8 of 13 measured prompts are copies of others with the same seed, such as {FAR[0]!r}; each is measured once"
    assert again.log["warnings"] == [warning]
    assert [record.message for record in caplog.records].count(warning) == 1
    outcome = command("check", "experiment=smoke", *overrides)
    assert (outcome.code, outcome.out.count(warning)) == (0, 1)


def test_images_of_an_older_run_that_are_copies_are_counted_once(write_images):
    pixels = torch.zeros(4, 8, 8, 3, dtype=torch.uint8).numpy()
    images = write_images("old", pixels, ["a", "a", "a", "a"], ["far", "generic", "forget", "far"], seeds=[1, 1, 1, 2])
    assert [record.file for record in images.distinct()] == ["00000.png", "00002.png", "00003.png"]


@pytest.mark.parametrize(("seed", "per_prompt"), [(0, 1), (1, 2)])
def test_rows_of_one_prompt_with_their_own_seeds_are_different_images(seed, per_prompt, run, lists, files):
    rows = [f"a photo of a tree,far,measure,{own}" for own in (4068, 1191, 2025, 77)]
    done = run(*lists(rows), f"sample.seed={seed}", f"sample.per_prompt={per_prompt}")
    images = Images(done.folder / "images" / "before").where("far")
    assert len(images) == len({record.sha256 for record in images}) == 4 * per_prompt
    assert done.find("integrity", "retain").n == 4 * per_prompt
    if seed == 0:
        assert [record.seed for record in images][:4] == [4068, 1191, 2025, 77]


def test_an_attack_uses_the_seeds_of_all_rows_of_a_prompt(run, lists):
    rows = "".join(f"a small church,forget,measure,{own}\n" for own in (4068, 1191)) + "a church,forget,measure,\n"
    forget = f"prompt,split,use,seed\na red church,forget,train,\n{rows}"
    done = run(*lists(["a tree,far,measure,"], forget))
    report = attack(done.folder, "attack=paraphrases", "attack.per_prompt=1")
    seeds = {row["seed"] for row in report["images"] if row["prompt"] == "a small church"}
    assert seeds == {4068, 1191}


def test_an_autoencoder_that_overflows_stops_the_run_before_an_image_is_written(command, tmp_path):
    pipeline = make_pipeline()
    with torch.no_grad():
        pipeline.vae.post_quant_conv.weight.fill_(float("inf"))
    pipeline.save_pretrained(tmp_path / "model", safe_serialization=True)
    folder = tmp_path / "run"
    words = ["experiment=smoke", "model=sd15", f"model.path={tmp_path / 'model'}", "model.domain=pictoworld", "model.size=64"]
    outcome = command("run", *words, "metrics=integrity", "concept=church", f"hydra.run.dir={folder}")
    assert outcome.code == 1
    assert "00000.png: the image of " in outcome.err
    assert "its decoded pixels are NaN or infinite in fp32" in outcome.err
    assert not list(folder.rglob("*.png"))
    assert load_run(folder).log["status"] == "error"


def test_the_seeds_of_an_esd_style_csv_change_the_images_and_its_guidance_does_on_request(run, tmp_path):
    """The seeds change the images; evaluation_guidance does only with sample.row_guidance; other columns stand in the index."""
    header = ",case_number,prompt,evaluation_seed,evaluation_guidance,artist\n"
    for name, seeds in (("one.csv", (11, 12)), ("two.csv", (13, 12))):
        rows = [f"{i},{100 + i},a red church,{seed},{9 if i else 2},Monet\n" for i, seed in enumerate(seeds)]
        (tmp_path / name).write_text(header + "".join(rows))
    few = ("algo=none", "sample.prompts=2", "sample.per_prompt=1", "sample.guidance=2")
    runs = [
        run(*few, f"concept.measured=[{name}]", *words, folder=f"{name}-{len(words)}")
        for name, words in (("one.csv", []), ("two.csv", []), ("one.csv", ["sample.row_guidance=true"]))
    ]
    images = [Images(done.folder / "images" / "before").where("forget") for done in runs]
    assert [[r.seed for r in side] for side in images] == [[11, 12], [13, 12], [11, 12]]
    hashes = [[r.sha256 for r in side] for side in images]
    assert hashes[0][0] != hashes[1][0]
    assert hashes[0][1] == hashes[1][1]
    assert hashes[2][0] == hashes[0][0]  # its own scale is that of the run
    assert hashes[2][1] != hashes[0][1]
    assert images[0][1].columns == {"case_number": "101", "evaluation_guidance": "9", "artist": "Monet"}


def test_an_attacked_prompt_has_the_guidance_of_its_own_row(tmp_path, monkeypatch):
    rows = (("a red church", 11, 2), ("a church on the left", 11, 9))
    lines = [f"{text},{seed},{scale}\n" for text, seed, scale in rows]
    (tmp_path / "x.csv").write_text("prompt,evaluation_seed,guidance\n" + "".join(lines))
    spec = RunSpec.of(compose("experiment=smoke", "concept.measured=[x.csv]", "sample.row_guidance=true"))
    monkeypatch.setattr(attack_images, "sample", lambda side, generator, prompts, *_: prompts)
    control_images = [SimpleNamespace(prompt=text, seed=seed) for text, seed, _ in rows]
    job = SimpleNamespace(control_images=control_images, original_images=[], folder=tmp_path)
    pairs = [(Attempt(text, f"{text} xyz"), seed) for text, seed, _ in rows]
    attacked = attack_images.attempt_sides(spec, None, AttackedModel(None, None, None, "", {}), job, pairs)[2].images
    assert [(prompt.text, spec.sample.scale(prompt)) for prompt in attacked] == [
        ("a red church xyz", 2.0), ("a church on the left xyz", 9.0),
    ]  # fmt: skip


@pytest.fixture
def two_scales(tmp_path):
    """The settings of a run on two prompts with a guidance scale each, and pairs of attempt and seed with two seeds of each."""
    (tmp_path / "x.csv").write_text("prompt,guidance\na red church,2\na church on the left,9\n")
    words = ("experiment=smoke", "concept.measured=[x.csv]", "sample.row_guidance=true", "sample.per_prompt=1")
    spec = RunSpec.of(compose(*words))
    rows = [prompt for prompt in spec.prompts() if prompt.columns]
    pairs = [(Attempt(row.text, row.text), spec.sample.image_seed(row, repeat)) for repeat in (0, 1) for row in rows]
    return spec, pairs


def test_a_second_image_of_an_attacked_prompt_has_its_rows_guidance_too(two_scales, tmp_path, monkeypatch):
    spec, pairs = two_scales
    monkeypatch.setattr(attack_images, "sample", lambda side, generator, prompts, *_: prompts)
    requests = [(attempt.prompt, seed) for attempt, seed in pairs]
    prompts = attack_images.generate_images("original", spec, None, requests, tmp_path)
    assert [spec.sample.scale(prompt) for prompt in prompts] == [2.0, 9.0, 2.0, 9.0]


def test_a_probed_prompt_has_the_guidance_of_its_own_row_on_both_sides(two_scales, tmp_path, monkeypatch):
    spec, pairs = two_scales
    scales = []
    monkeypatch.setattr(
        probing, "sample", lambda side, generator, prompts, settings, *_: scales.append([*map(settings.scale, prompts)]) or []
    )
    attacked = AttackedModel(None, None, nullcontext, "", {})
    target = SimpleNamespace(prompts=[], training=[], concept=spec.concept)
    for side in ("original-probed", "attacked"):
        (tmp_path / side).mkdir()
    probe_sides(spec, Completion(per_prompt=2), attacked, SimpleNamespace(folder=tmp_path, target=target), pairs)
    assert scales == [[2.0, 9.0, 2.0, 9.0]] * 2


def test_a_report_of_a_version_whose_probes_did_not_follow_the_rows_is_outdated(two_scales, smoke):
    spec, _ = two_scales
    weights = smoke.folder / "weights.safetensors"
    assert identity(spec, Completion(), weights)["row_guidance"]
    spec.sample.row_guidance = False
    assert identity(spec, Completion(), weights).keys() == {"settings", "weights", "sample"}


def test_a_guidance_that_is_no_number_is_refused_before_the_run_only_where_it_is_asked_for(tmp_path, command):
    (tmp_path / "x.csv").write_text("prompt,evaluation_seed,guidance\na church,1,high\n")
    words = ("check", "experiment=smoke", "concept.measured=[x.csv]")
    assert command(*words).code == 0
    outcome = command(*words, "sample.row_guidance=true")
    assert outcome.code == 2
    assert "sample.row_guidance=true: the guidance 'high' of the prompt 'a church' is no number of at least 0" in outcome.err


def test_images_have_the_size_of_their_row_on_request(run, tmp_path):
    rows = ["a red church,11,96,64", "a red church,12,64,64", "a church,13,,", "a church on the left,14,96.0,64"]
    (tmp_path / "sizes.csv").write_text("prompt,sd_seed,sd_image_width,sd_image_height\n" + "".join(f"{row}\n" for row in rows))
    words = ("algo=none", "concept.measured=[sizes.csv]", "metrics=standard", "sample.prompts=4", "sample.per_prompt=1")
    plain, own = (run(*words, *more, folder=f"sizes-{len(more)}") for more in ((), ("sample.row_size=true",)))
    square, sized = (list(Images(done.folder / "images" / "before").where("forget")) for done in (plain, own))
    assert [record.seed for record in sized] == [record.seed for record in square] == [11, 12, 13, 14]
    assert [image_size(plain.folder / "images" / "before" / record.file) for record in square] == [(64, 64)] * 4
    for side in ("before", "after"):
        assert [image_size(own.folder / "images" / side / r.file) for r in sized] == [(96, 64), (64, 64), (64, 64), (96, 64)]
    assert [a.sha256 == b.sha256 for a, b in zip(square, sized, strict=True)] == [False, True, True, False]
    assert own.find("integrity", "retain").unlearned == 1
    assert own.find("clipscore", "forget").unlearned == own.find("clipscore", "forget").original
    again = run(*words, "sample.row_size=true", "sample.batch=1", folder="sizes-again")
    assert [r.sha256 for r in Images(again.folder / "images" / "after").where("forget")] == [r.sha256 for r in sized]


@pytest.mark.parametrize(
    ("size", "problem"),
    [
        ("33,32", "the size 33 x 32 of the prompt 'a church': height and width must be multiples of 4 for "),
        ("wide,32", "the height '32' and the width 'wide' of the prompt 'a church' are not two whole numbers of at least 1"),
        (",32", "the height '32' and the width '' of the prompt 'a church' are not two whole numbers of at least 1"),
    ],
    ids=["no multiple", "no number", "no width"],
)
def test_a_size_that_cannot_be_sampled_is_refused_before_the_run_only_where_it_is_asked_for(size, problem, tmp_path, command):
    (tmp_path / "x.csv").write_text(f"prompt,sd_seed,sd_image_width,sd_image_height\na church,1,{size}\n")
    words = ("check", "experiment=smoke", "concept.measured=[x.csv]")
    assert command(*words).code == 0
    outcome = command(*words, "sample.row_size=true")
    assert outcome.code == 2
    assert f"sample.row_size=true: {problem}" in outcome.err


@pytest.mark.parametrize(
    ("setting", "columns"),
    [("sample.row_size", "sd_image_height and sd_image_width"), ("sample.row_guidance", "one of the columns ")],
)
def test_columns_that_no_row_has_are_not_asked_for_in_silence(setting, columns, tmp_path, command):
    (tmp_path / "x.csv").write_text("prompt,sd_seed,width,height\na church,1,96,64\n")
    outcome = command("check", "experiment=smoke", "concept.measured=[x.csv]", f"{setting}=true")
    assert outcome.code == 2
    assert f"{setting}=true: no measured prompt has {columns}" in outcome.err
