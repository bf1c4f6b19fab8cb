"""A run from end to end on the tiny model: what it writes, what it shares, and what can be done with it later."""

from __future__ import annotations

import copy
import csv
import json
import math
import re
import shutil
import weakref
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from unlearnbench import load_run
from unlearnbench.algos.base import check_finite
from unlearnbench.config.compose import compose
from unlearnbench.config.errors import RunError, UserError
from unlearnbench.config.paths import choices
from unlearnbench.console.tables import format_number
from unlearnbench.data.images import Images
from unlearnbench.data.prompts import Prompt, image_seed
from unlearnbench.experiment import measure as measure_module
from unlearnbench.experiment import preflight
from unlearnbench.experiment import run as run_module
from unlearnbench.experiment.attack import attack
from unlearnbench.experiment.measure import measure
from unlearnbench.experiment.memory import CLEAR_REFS, peak_memory
from unlearnbench.experiment.preflight import find_warnings
from unlearnbench.experiment.provenance import collect_provenance, recorded_fetch, reopened_config
from unlearnbench.experiment.run import execute, failure_text, run
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.experiment.training_images import TRAINING_SEED, training_examples
from unlearnbench.models.base import TextToImage
from unlearnbench.models.lora_file import save_lora_stage
from unlearnbench.models.parameters import make_trainable
from unlearnbench.models.tiny import Tiny
from unlearnbench.models.weights import load_weights
from unlearnbench.reports.tables import TABLES, run_csv, run_markdown, table_remarks, table_rows, unshown_paraphrases
from unlearnbench.results.metric_names import NAMES
from unlearnbench.results.run import Run, Value, find_runs
from unlearnbench.sampling import ImageGenerator, generate, sample
from unlearnbench.storage.cache import Cache
from unlearnbench.storage.lock import LOCK, run_lock


def pngs(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


# --- what a run writes --------------------------------------------------------------------------------------------------


def test_a_run_leaves_its_log_images_weights_numbers_and_tables(smoke):
    names = {path.name for path in smoke.folder.iterdir()}
    assert {"run.json", "metrics.json", "per_image.json", "tables.md", "tables.csv", "train.csv", "weights.safetensors"} <= names
    assert not [name for name in names if name.startswith(".")]
    spec = RunSpec.of(compose("experiment=smoke"))
    expected = spec.sample.limit(spec.prompts())
    assert {p.use for p in expected} == {"measure"}
    assert [p.split for p in expected[::2]] == ["forget", "paraphrase", "near", "far", "generic"]
    for side in ("before", "after"):
        images = Images(smoke.folder / "images" / side)
        assert [record.prompt for record in images] == spec.sample.per_prompt * [p.text for p in expected]
        assert all(images.intact(record) for record in images)
    assert pngs(smoke.folder / "images/before") != pngs(smoke.folder / "images/after")


def test_the_log_says_what_was_done_with_what(smoke):
    log = json.loads((smoke.folder / "run.json").read_text())
    assert log["status"] == "done"
    assert log["overrides"] == ["experiment=smoke"]
    assert log["config"]["algo"]["steps"] == 2
    assert log["config"]["sample"]["steps"] == log["config"]["model"]["steps"]
    assert log["versions"]["torch"] == version("torch")
    assert log["versions"]["unlearnbench"] == version("unlearnbench")
    assert len(log["fingerprint"]) == 64
    assert log["scheduler"] == "DDIMScheduler"
    assert log["seconds"] >= log["unlearning_seconds"] > 0
    assert log["images"] == {"before": 20, "after": 20}


def test_every_table_is_filled_and_read_back(smoke):
    read = load_run(smoke.folder)
    assert read.values == smoke.values
    assert {value.table for value in read.values} == {*TABLES} - {"Depth"}  # which metrics=deep fills
    with (smoke.folder / "tables.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["unlearned"]) for row in rows] == [value.unlearned for value in read.values]
    text = (smoke.folder / "tables.md").read_text()
    assert all(f"## {table}\n" in text for table in {*TABLES} - {"Depth"})
    assert "church; model tiny" in text


def test_costs_are_counted(smoke):
    weights = load_file(smoke.folder / "weights.safetensors")
    cost = {value.metric: value.unlearned for value in smoke.values if value.table == "Cost"}
    assert cost["trained_parameters"] == sum(value.numel() for value in weights.values())
    assert cost["saved_bytes"] == (smoke.folder / "weights.safetensors").stat().st_size
    assert cost["peak_memory_mb"] > 50
    assert 0 < cost["seconds"] < cost["total_seconds"]


def test_a_low_rank_adapter_is_kept_and_counted(run, loaded):
    done = run("algo=ga", "algo.train=lora2", "algo.lr=1e-2")
    adapter, weights = (load_file(done.folder / name) for name in ("lora.safetensors", "weights.safetensors"))
    original = dict(loaded.named_parameters())
    assert {f"{name.removesuffix('.lora_A.weight')}.weight" for name in adapter if "lora_A" in name} == weights.keys()
    for name, weight in weights.items():
        down, up = (adapter[name.replace("weight", f"lora_{side}.weight")] for side in "AB")
        assert down.shape[0] == up.shape[1] == 2
        torch.testing.assert_close(weight, original[name] + up @ down)
    assert done.find("trained_parameters", "unlearning").unlearned == sum(value.numel() for value in adapter.values())
    assert done.find("saved_bytes", "unlearning").unlearned == (done.folder / "lora.safetensors").stat().st_size


def test_adapters_of_concepts_in_sequence_are_one_adapter_of_their_sum(tmp_path):
    path, generator = tmp_path / "lora.safetensors", torch.Generator().manual_seed(0)
    sizes = {"unet.q.lora_A.weight": (2, 5), "unet.q.lora_B.weight": (4, 2)}
    stages = [{name: torch.randn(size, generator=generator) for name, size in sizes.items()} for _ in range(3)]
    for stage, lora in [(0, stages[0]), (1, stages[2]), (1, stages[1]), (2, stages[2])]:  # the second is repeated
        assert save_lora_stage(path, stage, lora, "tiny") == (stage + 1) * 18
    saved = load_file(path)
    parts = [lora["unet.q.lora_B.weight"] @ lora["unet.q.lora_A.weight"] for lora in stages]
    torch.testing.assert_close(saved["unet.q.lora_B.weight"] @ saved["unet.q.lora_A.weight"], sum(parts))
    path.unlink()
    assert save_lora_stage(path, 2, stages[2], "tiny") == 0
    assert not path.exists()


@pytest.mark.parametrize(("metric", "number", "shown"), [("trained_parameters", 0.0, "0"), ("saved_bytes", 72.0, "72")])
def test_counts_are_whole_numbers(metric, number, shown):
    cost = Value(table="Cost", metric=metric, split="unlearning", unlearned=number, better="lower", n=0)
    assert table_rows(Run(Path("x"), values=[cost]), "Cost") == [[f"{metric} ↓", "unlearning", "", shown, "", "", ""]]


def test_the_table_says_which_intervals_are_wilsons():
    rate = {"table": "Forgetting", "metric": "forget_accuracy", "better": "lower", "n": 8, "backbone": "judge"}
    none = Value(**rate, split="forget", unlearned=0.0, low=0.0, high=0.324, interval="Wilson's, 8 prompts")
    some = Value(**rate, split="paraphrase", unlearned=0.5, low=0.2, high=0.8, interval="bootstrap over 8 prompts")
    remark = table_remarks(Run(Path("x"), values=[none, some]), "Forgetting")
    assert remark == "by judge (detection rate: interval forget Wilson's, 8 prompts)"


def test_prompts_that_do_not_lead_the_original_to_the_concept_are_named():
    rate = {"table": "Forgetting", "metric": "forget_accuracy", "better": "lower", "n": 8, "unlearned": 0.0}
    shown = {"forget": 0.0, "paraphrase": 0.2, "implicit": 0.0, "implicit: church": 0.0}
    run = Run(Path("x"), values=[Value(**rate, split=split, original=original) for split, original in shown.items()])
    assert [warning.partition(": the original")[0] for warning in unshown_paraphrases(run)] == ["implicit", "implicit: church"]


def test_the_training_log_has_a_line_a_step(smoke):
    with (smoke.folder / "train.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2"]
    assert all(np.isfinite(float(row["loss"])) for row in rows)


def test_the_distances_of_single_images_average_to_integrity(smoke):
    apart = json.loads((smoke.folder / "per_image.json").read_text())["lpips-alex"]
    retain = Images(smoke.folder / "images/after").where("near", "far", "generic")
    assert list(apart) == [record.file for record in retain]
    assert smoke.find("integrity", "retain").unlearned == pytest.approx(1 - np.mean(list(apart.values())))


def test_only_what_trained_is_saved_and_it_generates_the_same_images(smoke, tiny, tmp_path):
    weights = load_file(smoke.folder / "weights.safetensors")
    assert set(weights) == set(make_trainable(copy.deepcopy(tiny), "xattn"))
    spec = RunSpec.of(compose("experiment=smoke"))
    load_weights(tiny, smoke.folder / "weights.safetensors")
    sample("", ImageGenerator(tiny), spec.prompts(), spec.sample, tmp_path / "again")
    assert pngs(tmp_path / "again") == pngs(smoke.folder / "images/after")


@pytest.mark.parametrize("name", [name for name in choices("experiment") if name != "pictoscenes"])  # in tests/pictoscenes
def test_every_experiment_runs_on_the_tiny_model(name, tmp_path):
    words = [f"experiment={name}", "model=tiny", "sample.prompts=1", "sample.per_prompt=1", "algo.steps=1", "algo.batch=1"]
    done = execute(RunSpec.of(compose(*words)), tmp_path / "run", words)
    assert done.log["status"] == "done"
    assert load_run(tmp_path / "run").find("integrity", "retain").n > 0


def test_the_python_interface_takes_the_words_of_the_command_line(tmp_path):
    words = ("experiment=smoke", "algo=none", "metrics=integrity", "sample.prompts=1", "retain.splits=[far]")
    done = run(*words)
    assert done.folder.parent.as_posix() == "outputs/none-church"
    assert load_run(done.folder).log["overrides"] == list(words)


# --- the control that does nothing --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nothing(tmp_path_factory, shared_cache):
    """A run of `none` that also saved the pipeline."""
    words = ["experiment=smoke", "algo=none", "save_pipeline=true"]
    return execute(RunSpec.of(compose(*words)), tmp_path_factory.mktemp("none") / "run", words)


def assert_untouched(done):
    assert pngs(done.folder / "images/before") == pngs(done.folder / "images/after")
    for value in done.values:
        if value.metric in ("integrity", "integrity_norm"):
            assert (value.low, value.unlearned, value.high) == (1, 1, 1)
        assert value.difference in (None, 0)


def test_none_gives_integrity_of_exactly_one_and_no_difference(nothing):
    assert_untouched(nothing)
    assert load_file(nothing.folder / "weights.safetensors") == {}
    assert nothing.find("trained_parameters", "unlearning").unlearned == 0


def test_none_gives_exactly_one_where_the_images_in_the_cache_are_of_other_batches(run):
    words = ("algo=none", "cache=cache", "sample.per_prompt=2")
    assert run(*words, "sample.batch=1", folder="first").log["cache"]["misses"] > 0
    second = run(*words, folder="second")
    assert pngs(second.folder / "images/before") == pngs(second.folder / "images/after")
    assert second.find("integrity", "retain").unlearned == 1


def test_none_through_a_saved_pipeline_is_the_same_model(nothing, tmp_path):
    saved = nothing.folder / "pipeline"
    words = ["experiment=smoke", "algo=none", "model=pictoworld", f"model.path='{saved}'", "model.steps=2", "model.guidance=2"]
    again = execute(RunSpec.of(compose(*words)), tmp_path / "run", words)
    assert_untouched(again)
    assert pngs(again.folder / "images/before") == pngs(nothing.folder / "images/before")
    assert again.log["fingerprint"] == nothing.log["fingerprint"]


def test_plain_diffusers_loads_a_saved_pipeline_and_generates_the_same_image(nothing):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(nothing.folder / "pipeline", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    images = Images(nothing.folder / "images/before")
    record = images[0]
    side = pipeline.unet.config.sample_size
    noise = torch.randn(4, side, side, generator=torch.Generator().manual_seed(record.seed))
    [generated] = pipeline(record.prompt, num_inference_steps=2, guidance_scale=2.0, latents=noise[None], output_type="np").images
    ours = images.pixels()[0].numpy()
    assert np.abs(generated * 255 - ours).max() < 1.6


# --- what runs share ----------------------------------------------------------------------------------------------------


def test_a_second_algorithm_never_samples_the_original_again(smoke, tmp_path, monkeypatch):
    words = ["experiment=smoke", "algo=ga"]
    drawn = []
    batch = ImageGenerator.batch
    monkeypatch.setattr(ImageGenerator, "batch", lambda self, asked: drawn.append(asked) or batch(self, asked))
    done = execute(RunSpec.of(compose(*words)), tmp_path / "run", words)
    assert done.log["cache"]["misses"] == 0
    assert done.log["cache"]["hits"] >= 2
    assert len(drawn) == 1
    assert pngs(done.folder / "images/before") == pngs(smoke.folder / "images/before")


def test_the_same_words_give_the_same_images_and_another_seed_others(run):
    first, again, other = (
        run("algo=ga", "algo.lr=1e-3", f"seed={seed}", folder=name) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert pngs(first.folder / "images/after") == pngs(again.folder / "images/after")
    assert (first.folder / "train.csv").read_text().splitlines()[1].split(",")[1] == (
        (again.folder / "train.csv").read_text().splitlines()[1].split(",")[1]
    )
    assert pngs(first.folder / "images/before") == pngs(other.folder / "images/before")
    left, right = (load_file(done.folder / "weights.safetensors") for done in (first, other))
    assert any(not torch.equal(left[name], right[name]) for name in left)


def test_training_images_have_seeds_that_are_never_measured_even_of_the_same_prompts(tiny, tmp_path):
    (tmp_path / "mine.csv").write_text("prompt,seed\na church,1\na red church,\n")
    spec = RunSpec.of(compose("experiment=smoke", "concept.prompts=mine.csv"))
    recorded = []

    class Kept(Cache):
        def get(self, kind, parts, make):
            recorded.append((kind, parts[2]))
            return {"latents": torch.zeros(1)}

    training_examples(spec, ImageGenerator(tiny), Kept(spec.cache), "")
    assert {kind for kind, _ in recorded} == {"training"}
    trained = {seed for _, seeds in recorded for seed in seeds}
    measured = {image_seed(0, prompt, repeat) for prompt in spec.prompts() for repeat in range(2)}
    assert not trained & measured
    assert 1 in measured


# --- the user's own prompts and pictures --------------------------------------------------------------------------------


def test_prompts_of_a_csv_are_trained_on_and_measured(run, tmp_path):
    (tmp_path / "mine.csv").write_text(
        "prompt,split,use,seed\na red church,forget,train,\na blue church,forget,measure,7\na red house,near,,\n"
    )
    done = run("concept.prompts=mine.csv", "retain.splits=[near]", "metrics=quick")
    images = Images(done.folder / "images/before")
    assert [(s.prompt, s.split) for s in images[:2]] == [("a blue church", "forget"), ("a red house", "near")]
    assert images[0].seed == 7


def test_prompts_of_a_text_file_are_all_forget_prompts(run, tmp_path):
    (tmp_path / "mine.txt").write_text("a red church\na chapel\n")
    (tmp_path / "kept.csv").write_text("prompt\na star\na church\n")
    done = run("concept.prompts=mine.txt", "retain.prompts=kept.csv", "sample.prompts=null", "sample.per_prompt=1")
    assert [(s.prompt, s.split) for s in Images(done.folder / "images/after")] == [
        ("a red church", "forget"), ("a chapel", "forget"), ("a star", "far"),
    ]  # fmt: skip


def test_anchors_are_generated_by_the_original_with_seeds_of_their_own(tiny, tmp_path):
    spec = RunSpec.of(compose("experiment=smoke", "algo=ca", "sample.batch=3"))
    forget, _ = training_examples(spec, ImageGenerator(tiny), Cache(tmp_path / "cache"), "")
    assert not len(forget.latents)
    seeds = [image_seed(TRAINING_SEED, Prompt(anchor), 0) for anchor in forget.anchors]
    images = generate(tiny, forget.anchors[:3], seeds[:3], spec.sample.steps, spec.sample.guidance)
    torch.testing.assert_close(forget.anchor_latents[:3], tiny.encode_images(images))


def test_images_of_anchors_in_pairs_begin_from_the_noise_of_their_prompts(tiny, tmp_path):
    words = ("experiment=smoke", "algo=project", "sample.batch=3", "training.per_prompt=2")
    spec = RunSpec.of(compose(*words))
    forget, _ = training_examples(spec, ImageGenerator(tiny), Cache(tmp_path / "cache"), "")
    unique = list(dict.fromkeys(forget.prompts))
    assert len(forget.prompts) == 2 * len(unique)
    seeds = [image_seed(TRAINING_SEED, Prompt(text), repeat) for repeat in range(2) for text in unique]
    for texts, latents in ((forget.prompts, forget.latents), (forget.anchors, forget.anchor_latents)):
        images = generate(tiny, texts[:3], seeds[:3], spec.sample.steps, spec.sample.guidance)
        torch.testing.assert_close(latents[:3], tiny.encode_images(images))


def test_training_images_of_a_folder_take_the_place_of_sampled_ones(run, tiny, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 80, 100, 3), dtype=np.uint8)
    (tmp_path / "mine").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"mine/{i}.png")
        (tmp_path / f"mine/{i}.txt").write_text(f"a church number {i}")
    words = ("training.forget_folder=mine", "training.retain_folder=mine")
    spec = RunSpec.of(compose("experiment=smoke", *words))
    forget, retain = training_examples(spec, ImageGenerator(tiny), Cache(tmp_path / "cache"), "")
    assert forget.prompts == retain.prompts == retain.anchors == ["a church number 0", "a church number 1"]
    assert forget.anchors == ["a tree number 0", "a tree number 1"]
    assert forget.latents.shape == (2, *tiny.latent_shape())
    square = Image.fromarray(pixels[0][:, 10:90]).resize((64, 64), Image.Resampling.LANCZOS)
    expected = tiny.encode_images(torch.from_numpy(np.array(square))[None])
    torch.testing.assert_close(forget.latents[:1], expected)
    assert run(*words).log["status"] == "done"


def test_prompts_of_the_concept_without_one_to_train_on_are_reported(run, tmp_path):
    (tmp_path / "mine.csv").write_text("prompt,split,use\na church,forget,measure\n")
    with pytest.raises(UserError, match="no forget prompt to train on; add rows with use=train"):
        run("concept.prompts=mine.csv")


# --- measuring again ----------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(smoke, tmp_path):
    """A copy of the smoke run."""
    return shutil.copytree(smoke.folder, tmp_path / "finished")


def test_a_run_measured_again_has_the_same_numbers_and_loads_no_model(finished, smoke, files, monkeypatch):
    monkeypatch.setattr(TextToImage, "load", pytest.fail)
    monkeypatch.setattr(type(RunSpec.of(compose("experiment=smoke")).model), "load", pytest.fail)
    before = files(finished)
    done = measure(finished)
    assert done.values == smoke.values
    after = files(finished)
    assert after["metrics.json"] == before["metrics.json"]
    assert after == before


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="Linux forgets a peak")
def test_the_peak_of_one_run_is_not_the_next_ones(run):
    large = np.ones(2**31, dtype=np.uint8)
    del large
    before = peak_memory(torch.device("cpu"))
    after = run("experiment=smoke", "algo=none", "metrics=quick").log["cost"]["peak_memory_mb"]
    assert 50 < after < before - 500


def test_the_model_is_freed_before_the_metrics(run, monkeypatch):
    parts, alive = [], []
    load, measure_images = Tiny.load, run_module.measure_images

    def loaded(self, device):
        model = load(self, device)
        parts.extend(weakref.ref(part) for part in model.modules().values())
        return model

    def measured(*arguments):
        alive.append([part() is not None for part in parts])
        yield from measure_images(*arguments)

    monkeypatch.setattr(Tiny, "load", loaded)
    monkeypatch.setattr(run_module, "measure_images", measured)
    run("experiment=smoke", "algo=ga")
    assert len(parts) >= 3
    assert alive == [[False] * len(parts)]


def test_a_run_may_be_measured_with_other_metrics_and_keeps_its_numbers(finished, smoke):
    apart = json.loads((finished / "per_image.json").read_text())
    words = "metrics=integrity", "metrics.integrity.distances=[classifier]"
    done = measure(finished, *words)
    assert done.values[: len(smoke.values)] != smoke.values
    assert [value for value in done.values if value in smoke.values] == smoke.values
    new = {(value.metric, value.backbone) for value in done.values if value not in smoke.values}
    assert new == {("integrity", "classifier"), ("integrity_norm", "classifier")}
    now = load_run(finished)
    assert now.values == done.values
    assert now.log["config"]["metrics"].keys() == smoke.log["config"]["metrics"].keys()
    assert now.log["measured"] == [list(words)]
    merged = json.loads((finished / "per_image.json").read_text())
    assert merged.keys() == {*apart, "classifier"}
    assert merged["lpips-alex"] == apart["lpips-alex"]


def test_numbers_of_other_real_images_leave_with_them(finished, write_images):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    done = measure(finished, "metrics=kid", f"retain.images={write_images('real', pixels).folder}")
    assert {value.metric for value in done.values if value.table == "FID"} == {"kid"}
    assert load_run(finished).log["config"]["retain"]["images"].endswith("real")


def test_what_a_run_was_made_with_is_not_measured_as_something_else(finished, files):
    before = files(finished)
    with pytest.raises(UserError, match=r"concept=nudity: cannot be changed after the run; allowed: metrics, retain"):
        measure(finished, "concept=nudity", "metrics=forget_accuracy")
    log = json.loads((finished / "run.json").read_text())
    (finished / "run.json").write_text(json.dumps(log | {"status": "error"}))
    with pytest.raises(UserError, match=r"the run is not finished \(failed\); `unlearnbench resume "):
        measure(finished)
    with pytest.raises(UserError, match=r"the run is not finished \(failed\)"):
        attack(finished, "attack=paraphrases")
    (finished / "run.json").write_bytes(before["run.json"])
    with pytest.raises(UserError, match=r"sample.steps=9: cannot be changed after the run; allowed: attack, device"):
        attack(finished, "attack=paraphrases", "sample.steps=9")


def test_a_run_that_may_not_download_may_not_when_it_is_opened_again_either(smoke, finished, monkeypatch):
    run = Run(smoke.folder, {**smoke.log, "fetch": "never"})
    assert [reopened_config(run, words, ("metrics",)).fetch for words in ((), ("fetch=auto",))] == ["never", "auto"]
    assert reopened_config(smoke, (), ("metrics",)).fetch == "auto"
    (finished / "run.json").write_text(json.dumps(run.log | {"status": "interrupted"}))
    monkeypatch.setattr(run_module, "execute", lambda spec, *_: spec)
    assert run_module.resume(finished).fetch == "never"
    with pytest.raises(
        UserError, match=r"cache_limit=1GB: cannot be changed after the run; allowed: metrics, device, cache, fetch"
    ):
        reopened_config(smoke, ("cache_limit=1GB",), ("metrics",))


def test_a_run_of_an_earlier_version_may_download_what_its_overrides_allowed(smoke):
    log = {key: value for key, value in smoke.log.items() if key != "fetch"}
    for words, expected in (([], "auto"), (["fetch=never"], "never"), (["fetch='never'"], "never")):
        run = Run(smoke.folder, {**log, "overrides": [*log["overrides"], *words]})
        assert reopened_config(run, (), ("metrics",)).fetch == expected


def test_a_yaml_of_the_users_that_forbids_downloads_holds_when_the_run_goes_on(tmp_path):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults: [smoke, _self_]\nfetch: never\n"
    (tmp_path / "experiment/quiet.yaml").write_text(text)
    spec = RunSpec.of(compose("experiment=quiet", config_dir=tmp_path))
    log = json.loads(json.dumps(collect_provenance(spec, torch.device("cpu"), ["experiment=quiet"])))
    assert recorded_fetch(Run(tmp_path, log)) == "never"


def test_changed_or_lost_images_are_reported_and_the_numbers_kept(finished):
    numbers = (finished / "metrics.json").read_bytes()
    (finished / "images/after/00003.png").write_bytes(b"other")
    with pytest.raises(UserError, match=r"images.after: 00003.png missing or changed since the run"):
        measure(finished)
    shutil.rmtree(finished / "images/before")
    with pytest.raises(UserError, match=r"images.before: no image missing or changed since the run"):
        measure(finished)
    assert (finished / "metrics.json").read_bytes() == numbers


def test_images_that_the_index_no_longer_lists_are_reported(finished):
    index = finished / "images/before/index.jsonl"
    index.write_text(index.read_text()[:-30])  # a disk that was full when the folder was copied
    before = (finished / "metrics.json").read_text()
    with pytest.raises(UserError, match=r"images/before/index.jsonl: lists 19 images, and the run made 20; repeat the run"):
        measure(finished, "metrics=integrity")
    assert (finished / "metrics.json").read_text() == before


def test_a_run_is_measured_by_one_process_at_a_time(finished):
    with run_lock(finished), pytest.raises(UserError, match="finished: another process is working on this run"):
        measure(finished, "metrics=integrity")
    assert measure(finished, "metrics=integrity").find("integrity", "retain").n == 12
    assert not (finished / LOCK).exists()


def test_damaged_distances_of_single_images_are_named_with_the_repair(finished):
    (finished / "per_image.json").write_text("{")
    with pytest.raises(UserError, match=r"per_image.json: is damaged .*; remove it, and `unlearnbench measure "):
        measure(finished, "metrics=integrity")
    (finished / "per_image.json").unlink()
    measure(finished, "metrics=integrity")
    assert [*json.loads((finished / "per_image.json").read_text())] == ["lpips-alex"]


@pytest.mark.parametrize(
    ("number", "where"),
    [
        ({"unlearned": math.nan}, ""), ({"original": math.inf}, ", original"), ({"low": math.nan, "high": 1.0}, ", low"),
        ({"extras": {"D_reseed": math.nan}}, ", D_reseed"),
    ],
)  # fmt: skip
def test_a_number_that_is_not_finite_is_no_value_of_a_run_nor_of_a_stage(number, where, write_images, tmp_path, monkeypatch):
    value = Value(**({"table": "Retention", "metric": "mine", "split": "far", "unlearned": 0.5, "better": "", "n": 1} | number))
    metric = SimpleNamespace(measure=lambda inputs: [value], questions=lambda inputs: (), each_stage=True)
    pixels = np.zeros((1, 8, 8, 3), np.uint8)
    before, after, stage = (write_images(name, pixels) for name in ("before", "after", "stage"))
    (tmp_path / "run/images").mkdir(parents=True)
    stage.folder.rename(tmp_path / "run/images/after-1-church")
    stages = [SimpleNamespace(name=name) for name in ("church", "fish")]
    spec = SimpleNamespace(
        metrics={"mine": metric}, evaluation_setting=None, concept=SimpleNamespace(unlearning_stages=lambda: stages)
    )
    rest = Cache(tmp_path / "cache"), torch.device("cpu"), tmp_path / "run"
    message = re.escape(f"metrics.mine: mine on far{where} is not a finite number")
    with pytest.raises(RunError, match=message):
        list(measure_module._stage_values(spec, before, *rest))
    monkeypatch.setattr(measure_module, "left_out_metrics", lambda spec: {})
    with pytest.raises(RunError, match=message):
        list(measure_module.measure_images(spec, before, after, *rest))


# --- numbers and tables -------------------------------------------------------------------------------------------------


def a_run(folder, algo="ga", values=(), status="done", **algo_settings):
    log = {
        "status": status,
        "algo": algo,
        "config": {"algo": {"name": algo, **algo_settings}, "concept": {"name": "church"}, "seed": 0, "cache": folder},
    }
    return Run(folder, log, list(values))


def value(metric="integrity", unlearned=0.5, better="higher", split="retain", table="Retention", **more):
    return Value(table=table, metric=metric, split=split, unlearned=unlearned, better=better, n=4, **more)


@pytest.mark.parametrize(
    ("given", "shown"),
    [(None, ""), (0, "0.000"), (0.12345, "0.123"), (-1.5, "-1.500"), (99.99, "99.990"), (123.456, "123.5"), (12345.6, "12346")],
)
def test_a_number_is_shown_with_three_decimals_and_fewer_where_it_is_large(given, shown):
    assert format_number(given) == shown


def test_a_row_points_to_the_better_side_and_shows_change_and_interval():
    shown = value("clipscore", 25.5, "lower", "forget", original=30.0, low=25.0, high=26.0)
    assert table_rows(a_run("r", values=[shown]), "Retention") == [
        ["CLIPScore ↓", "forget", "30.000", "25.500", "-4.500", "25.000..26.000", "4"]
    ]
    assert shown.difference == -4.5
    assert value().difference is None


def test_a_value_is_found_by_metric_split_and_backbone():
    run = a_run("r", values=[value(backbone="lpips-alex"), value(unlearned=0.7, backbone="classifier")])
    assert run.find("integrity", "retain").unlearned == 0.5
    assert run.find("integrity", "retain", "classifier").unlearned == 0.7
    with pytest.raises(KeyError, match="integrity on far"):
        run.find("integrity", "far")


def test_a_failed_run_has_tables_too():
    run = a_run("r", values=[value(backbone="a|b")], status="error")
    run.log["error"] = "no space"
    text = run_markdown(run)
    assert "# ga on church" in text
    assert "status: failed: no space" in text
    assert run_csv(run).splitlines()[1].startswith("Retention,integrity,retain,,0.5,higher,4")


def test_a_remark_says_of_which_metric_and_split_each_note_is():
    values = [
        *(value(split=split, backbone="lpips") for split in ("retain", "near")),
        value("integrity_norm", extras={"D_reseed": 0.25}, backbone="lpips"),
        value("integrity_norm", split="near", extras={"D_reseed": 0.5}, backbone="lpips"),
        value("accuracy", note="1 left out", backbone="judge"),
        value("accuracy", split="near", backbone="judge"),
        *(value(name, note="biased", backbone="judge") for name in ("fid", "fid_original")),
        value("ira", note="style", backbone="judge"),
        value("clipscore", backbone="clip"),
    ]
    assert table_remarks(a_run("r", values=values), "Retention") == (
        "by lpips (D_reseed: retain 0.250, near 0.500); "
        "by judge (accuracy: retain 1 left out; FID, FID to the original: biased; IRA: style); by clip"
    )


def test_the_remarks_of_a_run_of_version_0_1_0_are_those_that_it_was_written_with():
    folder = Path(__file__).parents[1] / "fixtures" / "runs" / "finished-0.1.0"
    run = load_run(folder)
    remarks = [line for line in (folder / "tables.md").read_text(encoding="utf-8").splitlines() if line.startswith("by ")]
    printed = [re.sub(r"\b(kid|fid(_original)?)\b", lambda name: NAMES[name.group()], remark) for remark in remarks]
    assert [remark for table in TABLES if (remark := table_remarks(run, table))] == printed
    assert run_csv(run) == (folder / "tables.csv").read_text(encoding="utf-8")
    assert run.find("integrity_norm", "near").extras == {"D_reseed": 0.168}


def test_integrity_tells_the_distance_of_other_seeds_by_split(smoke):
    assert re.match(
        r"by lpips-alex \(D_reseed: retain [\d.]+, near [\d.]+, far [\d.]+, generic [\d.]+\)", table_remarks(smoke, "Retention")
    )


def test_runs_are_found_at_a_folder_or_below_it(tmp_path):
    for name in ("b/2", "a/1"):
        (tmp_path / name).mkdir(parents=True)
        a_run(tmp_path / name).write()
    assert [str(run.folder) for run in find_runs(["."])] == ["a/1", "b/2"]
    assert [str(run.folder) for run in find_runs(["b/2", "a"])] == ["b/2", "a/1"]


def test_runs_are_found_in_the_order_of_their_numbers(tmp_path):
    names = ["0-ga", "1-ga", "2-ga", "10-ga", "11-ga"]
    for name in reversed(names):
        (tmp_path / name).mkdir()
        a_run(tmp_path / name).write()
    assert [str(run.folder) for run in find_runs(["."])] == names


def test_a_run_opened_again_has_the_cache_that_it_named_as_long_as_it_is_there(run, tmp_path, monkeypatch):
    done = run(f"cache={tmp_path / 'mine'}")
    assert reopened_config(done, [], []).cache == str(tmp_path / "mine")
    assert reopened_config(done, [f"cache={tmp_path / 'other'}"], []).cache == str(tmp_path / "other")
    shutil.rmtree(tmp_path / "mine")
    monkeypatch.setenv("UNLEARNBENCH_CACHE", str(tmp_path / "today"))
    assert reopened_config(done, [], []).cache == str(tmp_path / "today")
    (tmp_path / "mine").mkdir()
    unnamed = replace(done, log={**done.log, "overrides": ["experiment=smoke"]})
    assert reopened_config(unnamed, [], []).cache == str(tmp_path / "today")


def test_a_gpu_without_memory_asks_for_a_smaller_batch_where_the_method_reads_one(tmp_path):
    texts = [failure_text(torch.OutOfMemoryError(), tmp_path, RunSpec.of(compose(f"algo={algo}"))) for algo in ("ga", "uce")]
    assert ["algo.batch" in text for text in texts] == [True, False]
    assert all(text.endswith("model.checkpointing=true or model.dtype=bf16") for text in texts)


@pytest.mark.parametrize(
    ("words", "repair"),
    [
        (["model.dtype=bf16", "algo.batch=1"], "model.checkpointing=true"),
        (["model.dtype=bf16", "model.checkpointing=true"], "a smaller algo.batch"),
        (["model.dtype=bf16", "model.checkpointing=true", "algo.batch=1"], "a smaller model.size or a smaller model"),
        (["model=sdxl", "model.checkpointing=true", "algo.batch=1"], "model.offload_text_encoders=true"),
    ],
)
def test_a_gpu_without_memory_asks_for_nothing_that_is_set(words, repair, tmp_path):
    spec = RunSpec.of(compose("algo=ga", *words))
    assert failure_text(torch.OutOfMemoryError(), tmp_path, spec) == f"the GPU's memory is too small; try {repair}"


def test_training_in_fp16_is_warned_of_and_named_where_the_loss_is_not_finite():
    def warned(*words):
        spec = RunSpec.of(compose("experiment=smoke", "device=cpu", *words))
        return any("gradients are not scaled" in line for line in find_warnings(spec))

    assert warned("model.dtype=fp16")
    assert not any(map(warned, ("model.dtype=bf16", "seed=0")))
    assert not warned("model.dtype=fp16", "algo=uce")
    for dtype, repair in (("fp16", "a smaller algo.lr or model.dtype=bf16"), ("fp32", "a smaller algo.lr")):
        with pytest.raises(RunError, match=rf"the loss became nan at step 1 of 9; try {repair}$"):
            check_finite(torch.tensor(torch.nan), 1, 9, dtype)


@pytest.mark.parametrize(("capability", "is_warned"), [((7, 5), True), ((8, 6), False)])
def test_a_gpu_without_bf16_is_named(capability, is_warned, monkeypatch):
    monkeypatch.setattr(preflight, "select_device", lambda name: torch.device("cuda", 1))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability if device.index == 1 else None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Toy {device.index}")
    warnings = find_warnings(RunSpec.of(compose("experiment=smoke", "model.dtype=bf16")))
    assert any(line.startswith("model.dtype=bf16: Toy 1 has no bf16 and emulates it") for line in warnings) is is_warned
