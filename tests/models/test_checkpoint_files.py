"""Checkpoints that cannot be loaded or are not supported: `check` says so in one line, before anything is loaded."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import save_file

from unlearnbench.config.compose import compose
from unlearnbench.experiment.preflight import find_problems
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.models.prompt_length import cut_prompts
from unlearnbench.models.tiny_pipelines import make_tiny_pipeline, tiny_overrides
from unlearnbench.storage.hub import HubFiles, HubRepository

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 3438167540\n"
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copied(pipeline_folder, tmp_path):
    """A copy of the tiny pipeline's folder."""
    return shutil.copytree(pipeline_folder, tmp_path / "model")


def spec_of(folder, *words):
    return RunSpec.of(compose("experiment=smoke", "model=pictoworld", f"model.path={folder}", *words))


def edited(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGES = {
    "pointer": (
        lambda f: (f / UNET).write_text(LFS),
        f"{UNET}: a pointer of Git LFS in place of the weights; fetch them by `git lfs",
    ),
    "cut": (lambda f: (f / UNET).write_bytes((f / UNET).read_bytes()[:-1]), f"{UNET}: damaged or cut short ("),
    "index": (lambda f: (f / "model_index.json").write_text('{"_class_name": '), "model_index.json: cannot be read as JSON ("),
    "list": (lambda f: (f / "model_index.json").write_text("[]"), "model_index.json: not a mapping of settings; "),
    "config": (lambda f: (f / "vae/config.json").write_bytes(b"\xff"), "vae/config.json: cannot be read as JSON ("),
    "no config": (lambda f: (f / "unet/config.json").unlink(), "unet/config.json missing; fetch the whole folder again"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "tokenizer/tokenizer.json missing; fetch the whole folder"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "scheduler/scheduler_config.json missing; fetch the whole"),
    "no extractor": (
        lambda f: edited(f / "model_index.json", feature_extractor=["transformers", "X"]),
        "feature_extractor/ missing;",
    ),
    "shards": (
        lambda f: (f / f"{UNET}.index.json").write_text('{"weight_map": {"a": "x-00001-of-00002.safetensors"}}'),
        "unet/x-00001-of-00002.safetensors missing; fetch the whole folder",
    ),
    "inpainting": (
        lambda f: edited(f / "unet/config.json", in_channels=9),
        "its unet takes 9 channels, text-to-image takes 4; a",
    ),
    "sample": (
        lambda f: edited(f / "scheduler/scheduler_config.json", prediction_type="sample"),
        "prediction type sample is not",
    ),
    "edm": (
        lambda f: edited(f / "scheduler/scheduler_config.json", _class_name="EDMEulerScheduler", sigma_data=0.5),
        "its scheduler is of EDM, which scales latents",
    ),
    "lcm": (lambda f: edited(f / "unet/config.json", time_cond_proj_dim=8), "its unet reads the guidance scale, as that of a"),
    "width": (lambda f: edited(f / "unet/config.json", cross_attention_dim=768), "its unet reads text embeddings of width 768, "),
    "mean": (lambda f: edited(f / "vae/config.json", latents_mean=[0.0]), "its autoencoder normalises by latents_mean, which"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_that_cannot_be_loaded_is_reported_in_one_line(damage, copied):
    make, message = DAMAGES[damage]
    assert find_problems(spec_of(copied)) == []
    make(copied)
    [problem] = find_problems(spec_of(copied))
    assert problem.startswith(f"model.path={copied}: {message}")
    assert "\n" not in problem


def test_a_variant_that_is_not_loaded_may_be_a_pointer(copied):
    for path in [*copied.glob("*/*.safetensors")]:  # as `git lfs pull --include "*.fp16.safetensors"` leaves a clone
        shutil.copy(path, path.with_suffix(".fp16.safetensors"))
        path.write_text(LFS)
    assert "a pointer of Git LFS" in find_problems(spec_of(copied))[0]
    spec = spec_of(copied, "model.variant=fp16")
    assert find_problems(spec) == []
    spec.model.load(torch.device("cpu"))
    (copied / UNET.replace(".safe", ".fp16.safe")).write_text(LFS)
    assert find_problems(spec)[0].startswith(f"model.path={copied}: {UNET.replace('.safe', '.fp16.safe')}: a pointer of Git LFS")


def test_a_size_that_is_no_multiple_of_a_latent_pixel_is_reported_before_the_model_is_loaded(pipeline_folder):
    assert find_problems(spec_of(pipeline_folder, "model.size=66"))[0].startswith("model.size=66: must be a multiple of 4 for ")


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_every_family_is_ready_as_it_was_saved(family, tmp_path):
    make_tiny_pipeline(family).save_pretrained(tmp_path / "model", safe_serialization=True)
    assert RunSpec.of(compose(*tiny_overrides(family, tmp_path / "model"))).model.unavailable_reason() is None


@pytest.mark.parametrize(
    ("names", "message"),
    [(["lora_unet.lora_up.weight", "lora_unet.alpha"], "a LoRA, not a model; merge it once by"), ([], "damaged or cut short (")],
)
def test_a_single_file_that_is_no_model_is_reported(names, message, tmp_path):
    path = tmp_path / "one.safetensors"
    save_file({name: torch.zeros(2) for name in names}, path) if names else path.write_bytes(b"12345")
    assert find_problems(spec_of(path))[0].startswith(f"model.path={path}: {message}")


@pytest.mark.parametrize(
    ("model", "names", "message"),
    [
        ("sd15", ["x"], "no unet, no autoencoder, no text encoder in it, by the names of its tensors; name a file of"),
        ("sd15", ["model.diffusion_model.x"], "no autoencoder, no text encoder in it"),
        ("sdxl", ["model.diffusion_model.x", "conditioner.embedders.0.x"], "no autoencoder in it"),
        ("flux", ["model.diffusion_model.x"], "not a transformer, by the names of its tensors"),
    ],
)
def test_a_single_file_without_a_part_is_reported(model, names, message, tmp_path):
    path = tmp_path / "one.safetensors"
    save_file({name: torch.zeros(2) for name in names}, path)
    problem = RunSpec.of(compose(f"model={model}", f"model.path={path}", "metrics=integrity")).model.unavailable_reason()
    assert problem.startswith(f"model.path={path}: {message}")
    assert ("algo=checkpoint algo.weights=FILE" in problem) is (names[0] != "x" and model != "flux")


# --- the hub ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cached(copied, monkeypatch):
    """The tiny pipeline in the cache of the hub, and the hub as a HubFiles that the test may replace."""
    answers = [HubFiles("the hub cannot be reached")]
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(copied / "model_index.json"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HubRepository, "look_up", lambda _: answers[-1])
    return copied, answers


def test_a_checkpoint_of_the_hub_that_is_whole_in_the_cache_needs_no_hub(cached):
    assert find_problems(spec_of("some/model")) == []
    assert spec_of("some/model").model.download() is None


def test_a_checkpoint_that_is_not_whole_in_the_cache_needs_the_hub(cached, monkeypatch):
    folder, answers = cached
    (folder / UNET).unlink()
    state = "model some/model is not whole in the hub's cache (unet/*.safetensors missing)"
    repair = "set model.path to a folder, or fetch it once online: `hf download some/model`"
    assert find_problems(spec_of("some/model")) == [f"{state}, and the hub cannot be reached; {repair}"]
    names = ["model_index.json", UNET, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]
    answers.append(HubFiles(None, dict.fromkeys(names, 0) | {UNET: 3_438_167_540}))
    monkeypatch.setattr(HubRepository, "missing", lambda _, names: [UNET])
    assert find_problems(spec_of("some/model")) == []
    assert spec_of("some/model").model.download().line() == "model some/model: 3.4 GB from the hub"


def test_offline_nobody_asks_the_hub(cached, monkeypatch):
    folder, _ = cached
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(HubRepository, "look_up", None)
    shutil.rmtree(folder / "unet")
    [problem] = find_problems(spec_of("some/model"))
    assert "unet/*.safetensors missing), and HF_HUB_OFFLINE is set; unset it, or set model.path to a folder, or " in problem


@pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("a client of another version")])
def test_a_hub_that_cannot_be_reached_is_a_sentence_with_the_command(error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", fail)
    monkeypatch.setattr("unlearnbench.storage.hub._answers", {})
    assert HubRepository("a/b", "v1", "dataset").look_up().problem == "the hub cannot be reached"


def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("unlearnbench.storage.hub.PATIENCE", 0.05)
    monkeypatch.setattr("unlearnbench.storage.hub._answers", {})
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda *_, **__: __import__("time").sleep(1))
    assert HubRepository("a/b").look_up().problem == "the hub cannot be reached"


# --- sampling steps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["sample.steps=1001", "algo.sample_steps=1001"])
def test_more_steps_than_the_scheduler_has_timesteps_are_refused(word):
    spec = RunSpec.of(compose("experiment=smoke", "model=pictoworld", "algo=esd_x", word))
    assert find_problems(spec) == [f"{word}: the scheduler of pictoworld has 1000 timesteps; take fewer steps"]


def test_all_timesteps_of_the_scheduler_may_be_sampled():
    assert find_problems(RunSpec.of(compose("experiment=smoke", "sample.steps=1000"))) == []


# --- the length of prompts ----------------------------------------------------------------------------------------------

LONG = "there is " + "a picture of an image of a scene with " * 3 + "a red church"


@pytest.mark.parametrize("words", [(), ("model=pictoworld",)], ids=["tiny", "pictoworld"])
def test_cut_prompts_are_the_same_before_and_after_loading(words):
    model = RunSpec.of(compose("experiment=smoke", *words)).model
    exact = "church " * 30
    prompts = ["a red church", exact, exact + "church", LONG, "x" * 80]
    cut = cut_prompts(model, prompts)
    assert cut == cut_prompts(model.load(torch.device("cpu")), prompts)
    assert (cut.tokens, cut.prompts[0]) == (32, exact + "church")
    assert "a red church" not in cut.prompts


def test_a_tokenizer_of_the_older_form_counts_alike(copied):
    model = spec_of(copied).model
    prompts = ["church " * 30, LONG, "church " * 31]
    expected = cut_prompts(model, prompts)
    state = json.loads((copied / "tokenizer/tokenizer.json").read_text())["model"]
    (copied / "tokenizer/vocab.json").write_text(json.dumps(state["vocab"]))
    merges = "\n".join(" ".join(pair) if isinstance(pair, list) else pair for pair in state["merges"])
    (copied / "tokenizer/merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    (copied / "tokenizer/tokenizer.json").unlink()
    assert cut_prompts(model, prompts) == expected


def test_prompts_that_are_cut_are_counted_by_check_and_by_the_run(command, tmp_path, run, caplog):
    (tmp_path / "mine.csv").write_text(
        f"prompt,split,use\na red church,forget,train\n{LONG},forget,train\n{LONG} too,forget,measure\na church,forget,measure\n"
    )
    words = ["concept.prompts=mine.csv", "retain.splits=[far]", "metrics=integrity", "sample.prompts=2"]
    outcome = command("check", "experiment=smoke", *words)
    assert outcome.code == 0
    warnings = [line.removeprefix("warning: ") for line in outcome.out.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2
    assert re.match(
        r"1 of \d+ measured prompts are longer than the text encoder \(32 tokens\) and are cut, such as '\w", warnings[0]
    )
    run(*words)
    assert [message for message in caplog.messages if "are cut" in message] == warnings
