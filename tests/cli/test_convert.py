"""`convert` takes the tensors of a pickle and no code; algo=checkpoint judges what others published as a run judges its own."""

from __future__ import annotations

import collections
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from unlearnbench.config.compose import compose
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.models.tiny import make_pipeline
from unlearnbench.results.run import load_run


@pytest.fixture(scope="module")
def unet():
    """Keys and values of the tiny pipeline's cross-attention, changed."""
    state = make_pipeline().unet.state_dict()
    return {name: value + 0.2 for name, value in state.items() if "attn2.to_k" in name or "attn2.to_v" in name}


def test_a_state_dict_becomes_the_same_safetensors(command, unet, tmp_path):
    torch.save(unet, tmp_path / "old.pt")
    outcome = command("convert", tmp_path / "old.pt", tmp_path / "new.safetensors")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"{tmp_path}/new.safetensors: {len(unet)} tensors, ")
    new = load_file(tmp_path / "new.safetensors")
    assert new.keys() == unet.keys()
    assert all(torch.equal(value, unet[name]) for name, value in new.items())


@pytest.mark.parametrize(
    ("content", "names", "left_out"),
    [
        ({"state_dict": {"a": torch.ones(2)}, "epoch": 3, "optimizer": {"state": {0: torch.ones(2)}}}, ["a"], "epoch, optimizer"),
        ({"unet": {"a": torch.ones(2)}, "modifier_token": {}}, ["unet.a"], None),  # Concept Ablation
        ({"down_blocks.0.attentions.0": collections.OrderedDict(x=torch.ones(2))}, ["down_blocks.0.attentions.0.x"], None),
        ({"a": torch.nn.Parameter(torch.ones(2)), "step": 5}, ["a"], "step"),
    ],
)
def test_nested_and_mixed_contents(content, names, left_out, command, tmp_path):
    torch.save(content, tmp_path / "old.bin")
    outcome = command("convert", tmp_path / "old.bin", tmp_path / "new.safetensors")
    assert sorted(load_file(tmp_path / "new.safetensors")) == names
    assert outcome.out.partition("left out, no tensors: ")[2].strip() == (left_out or "")


def test_tensors_that_share_memory_are_written_apart(command, tmp_path):
    shared = torch.arange(4.0)
    torch.save(
        {"a": shared, "b": shared[:2], "c": shared.view(2, 2).T}, tmp_path / "old.pt", _use_new_zipfile_serialization=False
    )
    assert command("convert", tmp_path / "old.pt", tmp_path / "new.safetensors").code == 0
    assert load_file(tmp_path / "new.safetensors")["b"].tolist() == [0, 1]


class Callback:
    """An object whose class no conversion imports."""


def _cut(path):
    torch.save({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-200])


REFUSALS = {
    "object": (
        lambda path: torch.save({"a": torch.ones(1), "x": Callback()}, path),
        "holds an object of tests.cli.test_convert.Callback,",
    ),
    "cut": (_cut, "damaged or cut short ("),
    "no names": (lambda path: torch.save(torch.ones(2), path), "holds no named tensor; a state dict"),
    "no tensors": (lambda path: torch.save({"a": 1}, path), "holds no named tensor; a state dict"),
    "safetensors": (lambda path: save_file({"a": torch.ones(2)}, path), "not a file of torch.save; a .safetensors file needs"),
    "text": (lambda path: path.write_text("a,b"), "not a file of torch.save;"),
    "absent": (lambda _: None, "no such file"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_is_refused_leaves_no_file(kind, command, tmp_path):
    make, message = REFUSALS[kind]
    make(tmp_path / "old.pt")
    outcome = command("convert", tmp_path / "old.pt", tmp_path / "new.safetensors")
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {tmp_path}/old.pt: {message}")
    assert outcome.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir() if path.name != "old.pt"] == []


def test_the_new_name_must_be_free_and_say_what_it_is(command, tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pt")
    assert "must end in .safetensors" in command("convert", tmp_path / "old.pt", tmp_path / "new.pt").err
    (tmp_path / "new.safetensors").write_text("mine")
    assert "exists already; name another file" in command("convert", tmp_path / "old.pt", tmp_path / "new.safetensors").err
    assert (tmp_path / "new.safetensors").read_text() == "mine"


# --- algo=checkpoint ----------------------------------------------------------------------------------------------------


def test_a_converted_file_is_judged_like_a_run_of_ones_own(run, command, unet, tmp_path):
    torch.save({"unet": unet}, tmp_path / "delta.bin")
    command("convert", tmp_path / "delta.bin", tmp_path / "delta.safetensors")
    words = ["algo=checkpoint", f"algo.weights={tmp_path}/delta.safetensors"]
    assert command("check", "experiment=smoke", *words).out.startswith("ready: checkpoint on church")
    first = run(*words)
    again = run(*words, folder="again")
    assert [v.unlearned for v in first.values if v.table != "Cost"] == [v.unlearned for v in again.values if v.table != "Cost"]
    assert first.find("integrity", "retain").unlearned < 1
    saved = load_file(first.folder / "weights.safetensors")
    assert saved.keys() == {f"unet.{name}" for name in unet}
    costs = [value for value in load_run(first.folder).values if value.split == "unlearning"]
    assert {value.note for value in costs} == {"not trained here"}
    assert "not trained here" in (first.folder / "tables.md").read_text()
    outcome = command("attack", first.folder, "attack=paraphrases", "attack.prompts=1", "attack.per_prompt=1")
    assert outcome.code == 0, outcome.err
    assert command("report", first.folder, "-o", tmp_path / "report.html").code == 0
    own = run("algo=checkpoint", f"algo.weights={first.folder}", folder="own")
    assert own.find("integrity", "retain").unlearned == first.find("integrity", "retain").unlearned


def test_what_cannot_be_loaded_is_refused_before_anything_starts(command, unet, tmp_path):
    words = ["check", "experiment=smoke", "algo=checkpoint"]
    assert command(*words).err.startswith("error: algo.weights: names nothing yet; set it to a .safetensors file, a folder or")
    save_file({**unet, "conv_inn.weight": torch.ones(2)}, tmp_path / "odd.safetensors")
    outcome = command(*words, "algo.weights=odd.safetensors")
    assert outcome.code == 2
    assert outcome.err.startswith("error: algo.weights=odd.safetensors: 1 of ")
    assert "such as conv_inn.weight; nearest: unet.conv_in.weight, " in outcome.err
    assert "algo.scale: inf is not finite" in command(*words, "algo.scale=inf").err


def test_erasers_beside_the_weights_are_attacked_too_and_are_no_plain_pipeline(run, command, tmp_path):
    shapes = {"down.weight": (3, 16), "down.bias": (3,), "up.weight": (16, 3), "up.bias": (16,)}
    layers = [name for name, _ in make_pipeline().unet.named_modules() if name.endswith(".attn2")]
    places = {layer.partition(".transformer_blocks")[0] for layer in layers}
    erasers = {f"{place}.{name}": torch.ones(shape) for place in places for name, shape in shapes.items()}
    save_file(erasers, tmp_path / "eraser.safetensors")
    words = ["algo=checkpoint", f"algo.weights={tmp_path}/eraser.safetensors"]
    refusal = command("check", "experiment=smoke", *words, "save_pipeline=true").err
    assert refusal == "error: algo=checkpoint: a plain diffusers pipeline cannot hold its result; set save_pipeline=false\n"
    finished = run(*words)
    assert len(load_file(finished.folder / "weights.safetensors")) == 4 * len(layers)
    assert command("attack", finished.folder, "attack=paraphrases", "attack.prompts=1", "attack.per_prompt=1").code == 0


def test_a_repository_of_the_hub_is_read_from_its_cache(command, unet, tmp_path, monkeypatch):
    cache = tmp_path / "hub/models--some--model"
    snapshot = cache / "snapshots/0123456789012345678901234567890123456789"
    (snapshot / "weights").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text(snapshot.name)
    save_file(unet, snapshot / "weights/esd-church.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    words = ["check", "experiment=smoke", "algo=checkpoint", "algo.weights=some/model"]
    assert command(*words, "algo.subfolder=weights/esd-church.safetensors").out.startswith("ready: checkpoint on church")
    assert command(*words, "algo.subfolder=weights").out.startswith("ready: checkpoint on church")
    absent = command(*words, "algo.subfolder=none").err
    assert absent.startswith("error: weights some/model is not in the hub's cache, and HF_HUB_OFFLINE is set; unset it, or")
    assert absent.count("\n") == 1


def test_a_pipeline_of_pickles_loads_once_each_is_converted(command, pipeline_folder, tmp_path):
    folder = shutil.copytree(pipeline_folder, tmp_path / "mace")
    for part, old in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "pytorch_model")):
        [path] = (folder / part).glob("*.safetensors")
        torch.save(load_file(path), folder / part / f"{old}.bin")
        path.unlink()
    words = [
        "check",
        "experiment=smoke",
        "model=pictoworld",
        f"model.path={pipeline_folder}",
        "algo=checkpoint",
        "algo.weights=mace",
    ]
    for _ in range(3):
        repair = re.search(r"`unlearnbench (convert \S+ \S+)`", command(*words).err)
        assert command(*repair[1].split()).code == 0
    assert command(*words).out.startswith("ready: checkpoint on church")
    assert RunSpec.of(compose("model=pictoworld", f"model.path={folder}")).model.load(torch.device("cpu"))
