"""`check` and `run` give the same verdict on each kind of input that was once ready and then failed."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from unlearnbench.config.compose import compose
from unlearnbench.config.errors import UserError
from unlearnbench.experiment.preflight import find_problems
from unlearnbench.experiment.run import execute
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.models.tiny import make_pipeline

SMALL = ("experiment=smoke", "retain.splits=[far]", "sample.prompts=2", "sample.steps=1")
LONG = "there is " + "a picture of an image of a scene with " * 3 + "a red church"


@pytest.fixture
def prompts(tmp_path):
    """The word that chooses a prompt file with these lines."""

    def write(name, *lines, setting="concept.prompts"):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return f"{setting}='{name}'"

    return write


@pytest.fixture
def pipeline(pipeline_folder, tmp_path):
    """The words that choose a copy of the tiny pipeline after a change."""

    def change(name, edit):
        folder = shutil.copytree(pipeline_folder, tmp_path / name)
        edit(folder)
        return ["model=pictoworld", f"model.path={folder}"]

    return change


def verdict_of_check(words):
    try:
        return not find_problems(RunSpec.of(compose(*words)), words)
    except UserError:
        return False


def verdict_of_run(words, folder):
    try:
        execute(RunSpec.of(compose(*words)), folder, words)
    except UserError:
        return False
    return True


def assert_same(words, tmp_path, metrics="integrity"):
    algo = [] if any(word.startswith("algo=") for word in words) else ["algo=uce"]
    words = [*SMALL, *algo, f"metrics={metrics}", *words]
    verdict = verdict_of_check(words)
    assert verdict == verdict_of_run(words, tmp_path / "run"), words
    if not verdict:
        assert not (tmp_path / "run").exists()


TABLES = {
    "seeds": ["prompt,evaluation_seed", "a red church,3", "a red church,4"],
    "own seeds": ["prompt,seed", "a red church,3", "a church,4"],
    "typo": ["prompt,sead", "a red church,3"],
    "copies": ["prompt,split", "a red church,forget", "a red church,forget"],
    "unclosed quote": ["prompt,split", '"a red church,forget', "a church,forget"],
    "capitals": ["Prompt,Split", "a red church,forget"],
    "spaces": ["prompt, split", "a red church, forget"],
    "unknown head": ["prompt,splits", "a red church,forget"],
    "long": ["prompt", LONG, "a church"],
    "not a table": ["church"],
    "empty": ["prompt,split"],
}


@pytest.mark.parametrize("name", TABLES)
def test_check_and_run_agree_on_prompt_files(name, prompts, tmp_path):
    assert_same([prompts("mine.csv", *TABLES[name])], tmp_path)


@pytest.mark.parametrize("suffix", ["CSV", "tsv", "txt", "json", "jsonl", "xlsx"])
def test_check_and_run_agree_on_kinds_of_prompt_files(suffix, prompts, tmp_path):
    lines = {"json": [json.dumps([{"prompt": "a church"}])], "jsonl": [json.dumps({"prompt": "a church"})]}
    assert_same([prompts(f"mine.{suffix}", *lines.get(suffix, ["prompt", "a church"]))], tmp_path)


def edit_json(name, **changes):
    def edit(folder):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))

    return edit


def cut(folder):
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


MODELS = {
    "plain": lambda folder: None,
    "inpainting": edit_json("unet/config.json", in_channels=9),
    "pointer": lambda folder: (folder / "unet/diffusion_pytorch_model.safetensors").write_text("version https://git-lfs"),
    "cut": cut,
    "sample": edit_json("scheduler/scheduler_config.json", prediction_type="sample"),
    "no config": lambda folder: (folder / "unet/config.json").unlink(),
    "index": lambda folder: (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline",'),
    "no tokenizer": lambda folder: shutil.rmtree(folder / "tokenizer"),
    "no scheduler": lambda folder: shutil.rmtree(folder / "scheduler"),
    "width": edit_json("unet/config.json", cross_attention_dim=8),
}


@pytest.mark.parametrize("name", MODELS)
def test_check_and_run_agree_on_checkpoints(name, pipeline, tmp_path):
    assert_same(pipeline("model", MODELS[name]), tmp_path)


@pytest.mark.parametrize(
    "word",
    ["model.steps=1001", "algo.lr=1", "algo.steps=3", "algo.ridge=2", "sample.prompts=1", "algo.train=nothing", "model.size=66"],
)
def test_check_and_run_agree_on_settings(word, tmp_path):
    assert_same([word], tmp_path)


def unet(**changes):
    return {name: value + 0.1 for name, value in make_pipeline().unet.state_dict().items() if "attn2" in name} | changes


def write_cut(path):
    save_file(unet(), path)
    path.write_bytes(path.read_bytes()[:-100])


WEIGHTS = {
    "plain": lambda path: save_file(unet(), path),
    "unknown name": lambda path: save_file(unet(mid_blok=torch.ones(2)), path),
    "other base": lambda path: save_file(unet(**{"conv_in.weight": torch.ones(320, 4, 3, 3)}), path),
    "cut": write_cut,
    "pickle": lambda path: torch.save(unet(), path),
    "pointer": lambda path: path.write_text("version https://git-lfs"),
    "absent": lambda path: None,
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_check_and_run_agree_on_weights_of_others(name, tmp_path):
    WEIGHTS[name](tmp_path / "weights.safetensors")
    assert_same(["algo=checkpoint", "algo.weights=weights.safetensors"], tmp_path)


def encoded(kind):
    """The bytes of an image."""
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(data, kind)
    return data.getvalue()


def write_images(folder, count, **kinds):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a red church")
    for name, content in kinds.items():
        (folder / name.replace("_", ".")).write_bytes(content)


@pytest.mark.parametrize(
    ("count", "files"),
    [
        (3, {}),
        (3, {"3_png": b"no image"}),
        (3, {"0_txt": b""}),
        (0, {}),
        (2, {"9_gif": b"GIF89a"}),
        (2, {"9_jpg": encoded("jpeg"), "9_txt": b"a red church"}),
        (2, {"9_jpg": encoded("jpeg")[:-60], "9_txt": b"a red church"}),
        (2, {"9_webp": encoded("webp")[:-60], "9_txt": b"a red church"}),
        (2, {"9_bmp": encoded("bmp")[:-60], "9_txt": b"a red church"}),
    ],
    ids=["whole", "damaged", "empty caption", "none", "cut gif", "jpeg", "cut jpeg", "cut webp", "cut bmp"],
)
def test_check_and_run_agree_on_training_images(count, files, tmp_path):
    write_images(tmp_path / "images", count, **files)
    assert_same(["algo=ga", "algo.steps=1", f"training.forget_folder={tmp_path / 'images'}"], tmp_path)


@pytest.mark.parametrize("count", [0, 1, 8])
def test_check_and_run_agree_on_real_images(count, tmp_path):
    write_images(tmp_path / "images", count)
    assert_same([f"retain.images={tmp_path / 'images'}"], tmp_path, "fid")


ATTRIBUTE = "_target_: unlearnbench.metrics.detectors.Attribute"
DETECTORS = {
    "right": f"{{{ATTRIBUTE}, attribute: subject, value: church}}",
    "unknown value": f"{{{ATTRIBUTE}, attribute: subject, value: chruch}}",
    "unknown attribute": f"{{{ATTRIBUTE}, attribute: topic, value: church}}",
    "unknown class": "{_target_: unlearnbench.metrics.detectors.NudeNet, classes: [BREAST]}",
    "threshold": "{_target_: unlearnbench.metrics.detectors.NudeNet, threshold: 1.5}",
    "no such network": "{_target_: unlearnbench.metrics.detectors.ImageClassifier, path: absent, labels: [church]}",
}


@pytest.mark.parametrize("name", DETECTORS)
def test_check_and_run_agree_on_detectors_and_their_labels(name, tmp_path):
    assert_same([f"concept.detector.pictoworld={DETECTORS[name]}"], tmp_path, "forget_accuracy")
