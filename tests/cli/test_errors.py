"""A mistake costs one clear line and exit code 2, a failure under way exit code 1; earlier runs stay as they are."""

from __future__ import annotations

import json
import re
import shutil
import sys
import types

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from unlearnbench import sampling
from unlearnbench.config.compose import compose
from unlearnbench.config.errors import RunError, UserError
from unlearnbench.experiment.checkpointing import TrainingJournal
from unlearnbench.experiment.memory import peak_memory
from unlearnbench.experiment.preflight import find_warnings, select_device
from unlearnbench.experiment.provenance import device_name, is_same_kind
from unlearnbench.experiment.run import resume
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.models.weights import load_weights
from unlearnbench.pictoworld.classifier import WEIGHTS
from unlearnbench.results import run
from unlearnbench.storage import tensors
from unlearnbench.storage.tensors import write_tensors

SMALL = ("experiment=smoke", "metrics=integrity", "sample.prompts=1", "retain.splits=[far]")


def the_one_run(folder):
    [path] = folder.glob("outputs/*/*/run.json")
    return json.loads(path.read_text())


MISTAKES = {
    "algo=zzz": r"algo=zzz: no such choice; known: .*esd_u, esd_x, ",
    "algo=gaa": r"algo=gaa: no such choice; did you mean 'ga'\? known: ",
    "concept=chruch": r"concept=chruch: no such choice; did you mean 'church'\? known: .*church, .*nudity, ",
    "model=sd16": r"model=sd16: no such choice; did you mean 'sd\d+'\? known: ",
    "metrics=integrty": r"metrics=integrty: no such choice; did you mean 'integrity'\? known: ",
    "experiment=smok": r"experiment=smok: no such choice; did you mean 'smoke'\? known: ",
    "algorithm=ga": r"algorithm: no such setting; did you mean 'algo'\? `unlearnbench run --cfg job` shows them all\n",
    "sampl.seed=1": r"sampl(\.seed)?: no such setting; did you mean 'sample(\.seed)?'\? `unlearnbench run --cfg job` ",
    "prompts.size=3": r"prompts: no such setting; (?!did you mean 'prompts')",
    "+sede=3": r"sede: no such setting; did you mean 'seed'\? known: algo, ",
    "+attack=p4d_n": r"attack: no such setting; ",
    "algo.lrr=1": r"algo.lrr: no such setting; ",
    "+algo.lrr=1": r"algo.lrr: no such setting of \w+; did you mean 'lr'\? known: ",
    "algo.lr=abc": r"algo.lr: Value 'abc' of type 'str' could not be converted to Float",
    "algo.lr=-1": r"algo.lr: -1.0 is not above 0",
    "algo.steps=-1": r"algo.steps: -1 is less than 0",
    "algo.batch=0": r"algo.batch: 0 is less than 1",
    "sample.steps=-3": r"sample.steps: -3 is less than 1",
    "sample.prompts=0": r"sample.prompts: 0 is less than 1",
    "training.per_prompt=0": r"training.per_prompt: 0 is less than 1",
    "training.forget_folder=nowhere": r"nowhere: no such folder",
    f"seed={2**63}": r"seed: 9223372036854775808 is not between -2\^63 and 2\^63",
    "seed=abc": r"seed: Value 'abc' of type 'str' could not be converted to Integer",
    "save_pipeline=maybe": r"save_pipeline: Value 'maybe' is not a valid bool",
    "cache=null": r"cache: ",
    "device=tpu": r"device=tpu: unknown device; choose from auto, cpu, cuda, cuda:<number>, mps, xpu",
    "device=3": r"device=3: unknown device; choose from auto, cpu, cuda, cuda:<number>, mps, xpu",
    "retain.splits=[nearby]": r"retain.splits: 'nearby' is not one of near, far, generic",
    "retain.images=nowhere": r"retain.images=nowhere: no such folder",
    "concept.prompts=nowhere.csv": r"nowhere.csv: no such file, neither here nor in ",
    "model.domain=cartoon": r"concept church has no anchors for the domain cartoon; known: photo, pictoscenes, pictoworld",
    "model.dtype=fp8": r"model.dtype: 'fp8'; known: bf16, fp16, fp32",
    "metrics.integrity.distances=[lpips-alx]": r"distance 'lpips-alx': did you mean 'lpips-alex'\? known: ",
    "metrics.integrity.distances=[]": r"metrics.integrity.distances: name at least one",
    "metrics.fid.backbone=resnet": r"backbone 'resnet': known: auto, ",
    "algo._target_=os.getcwd": r"_target_: os.getcwd is not a subclass of unlearnbench.algos.base.Unlearner",
    "algo=ga,none": r"algo=ga,none: several values; add -m to run each of them, or write algo=\[ga,none\] for a list",
    "algo.train='('": r"algo.train=\(: not a regular expression \(missing \), ",
    "model.path=~/my-sd": r"model.path=~/my-sd: not understood; .*, such as \"model.path='~/my-sd'\"\n",
    "retain.images='~/gone'": r"retain.images=/.*/gone: no such folder",
    "training.retain_folder='~/gone'": r"/.*/gone: no such folder",
    "concept.prompts='~nobody/mine.csv'": r"~nobody/mine.csv: no such file, neither here nor in ",
    "metrics.clipscore.backbone=classifier": r"backbone 'classifier' has no text encoder; known: auto-clip, clip, ",
    "metrics.clipscore.backbone=clip:./mine": r"CLIP ./mine: no such folder",
    "metrics.clipscore.backbone='clip:~/mine'": r"CLIP /.*/mine: no such folder",
    "metrics.clipscore.backbone=clip:a/b/c": r"CLIP a/b/c: no such folder, and not a valid hub id",
    "algo.train=(": r"algo.train=\(: not understood; write key=value, and quote special characters: \"key='value'\"",
    "concept.name=my/church": r"concept.name='my/church': folders are called by it; choose a name without a slash",
    "algo.name=''": r"algo.name='': folders are called by it; ",
    "concept.words=[]": r"concept church: words is empty; name the concept, such as words=",
    "concept.words=['']": r"concept church: words is empty; ",
    "concept.guide=''": r"concept church: guide is empty; give the concept as a phrase, ",
    "checkpoint_every=-1": r"checkpoint_every: -1.0 is less than 0",
    "checkpoint_every=nan": r"checkpoint_every: nan is not at least 0",
    "sample.guidance=nan": r"sample.guidance: nan is not a finite number",
    "algo": r"algo: not understood; write key=value",
    "hydra.run.dir=file/run": r"file/run: cannot be written \(Not a directory\)",
    "cache=file": r"file: cannot be written \((Not a directory|File exists)\)",
}


@pytest.mark.parametrize("word", MISTAKES)
def test_a_mistake_is_reported_in_one_line_before_any_image_is_generated(word, command, tmp_path):
    (tmp_path / "file").write_text("a file, not a folder")
    outcome = command("run", "experiment=smoke", word)
    assert outcome.code == 2
    assert re.match("error: " + MISTAKES[word], outcome.err), outcome.err
    assert outcome.err.count("\n") == 1
    assert outcome.out == ""
    assert not list(tmp_path.rglob("*.png"))
    assert not list((tmp_path / "outputs").glob("*"))
    assert (tmp_path / "file").read_text() == "a file, not a folder"


@pytest.mark.parametrize("verb", ["check", "run"])
def test_parameters_that_do_not_exist_are_reported_before_any_work(verb, command, tmp_path):
    outcome = command(verb, *SMALL, "algo.train=xatn")
    assert outcome.code == 2
    assert outcome.err.startswith("error: algo.train=xatn: selects no parameter; did you mean 'xattn'? known: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", [(), ("hydra.run.dir=my/run",)], ids=["outputs", "own"])
def test_a_run_that_only_the_loaded_model_refuses_leaves_no_folder(folder, command, monkeypatch, tmp_path):
    monkeypatch.setattr("unlearnbench.experiment.run.find_loaded_problems", lambda *_: ["too large"])
    outcome = command("run", *SMALL, *folder, "cache=cache")
    assert (outcome.code, outcome.err.splitlines()[-1]) == (2, "error: too large")
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


UNREAD = (
    "algo=uce algo.lr=1", "algo=uce algo.steps=500", "algo=none algo.train=xattn", "algo=sld algo.batch=2",
    "algo=noise algo.clip=0", "algo=safree training.per_prompt=3",
)  # fmt: skip


@pytest.mark.parametrize("words", UNREAD)
def test_an_override_that_the_method_does_not_read_is_refused(words, command, run):
    algo, override = words.split()
    name = override.partition("=")[0].rpartition(".")[2]
    message = f"{override}: {algo} does not read {name}, so it would change nothing; leave it out"
    assert command("check", *SMALL, algo, override).err == f"error: {message}\n"
    with pytest.raises(UserError, match=re.escape(message)):
        run(algo, override)


def test_settings_of_files_and_defaults_that_are_stated_are_no_such_overrides(command, run):
    assert compose("experiment=smoke", "algo=uce").algo.steps == 2
    assert command("check", *SMALL, "algo=uce", "algo.steps=0", "algo.ridge=2").code == 0
    done = run("algo=uce")
    done.log |= {"status": "started", "overrides": ["algo=uce", "algo.lr=1"]}  # of a version that took it
    done.write()
    assert resume(done.folder).status == "done"


@pytest.mark.parametrize("algo", ["esd_x", "spm", "uce"])
def test_parameters_absent_from_the_checkpoint_are_reported_before_it_is_loaded(algo, command):
    words = ["check", "model=pictoworld", f"algo={algo}"]
    outcome = command(*words, "algo.train=xatn")
    assert outcome.err.startswith("error: algo.train=xatn: selects no parameter; did you mean 'xattn'? known: ")
    adapters = command(*words, "algo.train=lora2")
    assert adapters.out.startswith("ready: ") == (algo != "spm")
    assert ("algo.rank is the rank of this method's adapters" in adapters.err) == (algo == "spm")
    assert command(*words, "algo.train=text_model").out.startswith("ready: ")  # as transformers below 5 name CLIP's parameters


def test_parameters_that_the_algorithm_adds_are_not_looked_for_in_the_checkpoint(command):
    assert command("check", "model=pictoworld", "algo=receler").out.startswith("ready: ")


@pytest.mark.parametrize("algo", ["receler", "sld", "safree", "spm"])
def test_what_a_plain_pipeline_cannot_hold_is_reported_before_any_work(algo, command):
    outcome = command("check", "model=pictoworld", f"algo={algo}", "save_pipeline=true")
    assert outcome.err == f"error: algo={algo}: a plain diffusers pipeline cannot hold its result; set save_pipeline=false\n"
    assert command("check", "model=pictoworld", "algo=spm", "algo.transport=false", "save_pipeline=true").code == 0


@pytest.mark.parametrize("algo", ["esd_x", "spm", "receler", "adv_unlearn"])
def test_zero_sampling_steps_are_refused(algo, command):
    outcome = command("check", *SMALL, f"algo={algo}", "algo.sample_steps=0")
    assert (outcome.code, outcome.err) == (2, "error: algo.sample_steps: 0 is less than 1\n")


def test_weights_of_another_model_are_reported_before_it_is_loaded(command, tmp_path):
    shipped = WEIGHTS / "pipeline/unet/diffusion_pytorch_model.safetensors"
    fitting = {f"unet.{name}": value for name, value in load_file(shipped).items()}
    words = ["check", "algo=oracle", "algo.weights=saved.safetensors", "model=pictoworld"]
    for change, parameter in (
        ({}, None),
        ({"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.1.down.weight": torch.zeros(1)}, None),
        ({"unet.mid_block.attentions.0.proj_in.membranes.0.down": torch.zeros(1, 2)}, None),
        ({"unet.conv_in.bias": torch.zeros(1)}, "unet.conv_in.bias"),
        ({"transformer.proj.weight": torch.zeros(1)}, "transformer.proj.weight"),
    ):
        write_tensors(tmp_path / "saved.safetensors", fitting | change)
        outcome = command(*words)
        if parameter is None:
            assert outcome.out.startswith("ready: ")
        else:
            assert outcome.err == (
                f"error: saved.safetensors: {parameter} does not fit pictoworld; these weights belong to another model\n"
            )
    (tmp_path / "saved.safetensors").write_bytes(b"\x80")
    assert command(*words).err.startswith("error: saved.safetensors: cannot be read as safetensors (")


def test_an_oracle_is_proposed_only_where_one_can_be_made(command):
    for concept in ("nudity", "church", "parachute", "van_gogh"):
        assert command("check", "model=pictoworld", "algo=oracle", f"concept={concept}").out.startswith("ready: ")
    message = command("check", "model=pictoworld", "algo=oracle", "concept=[nudity,church]").err
    assert message == (
        "error: algo.weights=church+nudity: no such file, and Pictoworld includes no such oracle; train it with `unlearnbench "
        "world train --without church+nudity` (minutes on a GPU, hours on two cores), and set "
        "algo.weights=outputs/world/weights/oracles/church+nudity.safetensors\n"
    )
    message = command("check", "model=pictoworld", "algo=oracle", "concept=fish").err
    assert message.endswith("trains oracles without one or several of nudity, church, parachute, van_gogh\n")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("device", "named", "build"),
    [
        ("cuda", "CUDA", "a CUDA build"),
        ("cuda:1", "CUDA", "a CUDA build"),
        ("mps", "Apple", "the macOS build for Apple silicon"),
        ("xpu", "Intel", "the XPU build"),
    ],
)
def test_a_missing_gpu_is_reported(device, named, build, command):
    outcome = command("run", "experiment=smoke", f"device={device}")
    assert outcome.code == 2
    assert outcome.err == f"error: device={device}: no {named} device is available; use device=cpu, or install {build} of torch\n"


def test_a_gpu_that_is_not_there_is_refused_with_those_that_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert select_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match=r"^device=cuda:2: there is no cuda:2; this machine has cuda:0, cuda:1$"):
        select_device("cuda:2")


@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps", "xpu"])
def test_a_device_is_recorded_by_its_kind(kind, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    name = device_name(torch.device(kind))
    assert [other for other in ("cpu", "cuda", "mps", "xpu") if is_same_kind(name, torch.device(other))] == [kind]


@pytest.mark.parametrize(
    ("cuda", "accelerator", "chosen"),
    [
        (True, "cuda", "cuda"),
        (True, "xpu", "cuda"),
        (False, "mps", "mps"),
        (False, "xpu", "xpu"),
        (False, "npu", "cpu"),
        (False, None, "cpu"),
    ],
)
def test_auto_takes_cuda_then_what_torch_calls_its_accelerator_then_the_cpu(cuda, accelerator, chosen, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: types.SimpleNamespace(type=accelerator))
    assert select_device("auto") == torch.device(chosen)
    if chosen != "cpu":
        assert select_device(chosen) == torch.device(chosen)
    warnings = find_warnings(RunSpec.of(compose("experiment=smoke")))
    named = [line.partition(" is not taken to have float64: ")[0] for line in warnings if "float64" in line]
    assert named == ([f"device={chosen}"] if chosen in ("mps", "xpu") else [])


def test_nothing_is_imported_that_windows_does_not_have(monkeypatch):
    status = types.SimpleNamespace(exists=lambda: False)
    monkeypatch.setattr("unlearnbench.experiment.memory.STATUS", status)
    monkeypatch.setitem(sys.modules, "resource", None)
    info = types.SimpleNamespace(peak_wset=3 * 2**20)
    monkeypatch.setattr("psutil.Process", lambda: types.SimpleNamespace(memory_info=lambda: info))
    assert peak_memory(torch.device("cpu")) == 3


def test_several_problems_are_reported_at_once_a_line_each(command, tmp_path):
    outcome = command("run", "experiment=smoke", "model=pictoworld", "model.path=./gone", "retain.images=nowhere")
    assert outcome.code == 2
    assert outcome.err.splitlines() == [
        "error: model.path=./gone: no such folder",
        "error: retain.images=nowhere: no such folder",
    ]


BY_ANCHORS = ["redirect", "substitute", "ca", "sa", "random_label", "salun", "erase_diff", "eupmu", "scissorhands", "duo", "mace"]
OTHERWISE = ["push_away", "esd_x", "uce", "random_label algo.other=retain"]


@pytest.mark.parametrize("words", [*BY_ANCHORS, "uce algo.phrases=prompts", *OTHERWISE])
def test_an_algorithm_that_needs_anchors_is_refused_where_no_prompt_has_one(words, command, tmp_path):
    algo, *more = words.split()
    (tmp_path / "mine.csv").write_text("prompt,split\na tall tower with bells,forget\na house,near\n")
    outcome = command("check", *SMALL, f"algo={algo}", *more, "concept.prompts=mine.csv")
    if words in OTHERWISE:
        assert outcome.out.startswith("ready: ")
    else:
        assert outcome.code == 2
        assert (
            f"algo={algo}: concept.anchor replaces nothing in the forget prompts of church; set the replacement, " in outcome.err
        )
    (tmp_path / "mine.csv").write_text("prompt,split\na tall tower with bells,forget\na church,forget\na house,near\n")
    assert command("check", *SMALL, f"algo={algo}", *more, "concept.prompts=mine.csv").out.startswith("ready: ")


@pytest.mark.parametrize("words", ["mace", "receler", "fmn algo.with_ends=false"])
def test_an_algorithm_that_needs_the_concepts_words_is_refused_where_no_prompt_has_one(words, command):
    algo, *more = words.split()
    words = ["check", *SMALL, f"algo={algo}", *more]
    assert command(*words).out.startswith("ready: ")
    outcome = command(*words, "concept.words=[foo]", "concept.guide=foo")
    assert outcome.code == 2
    assert re.match(r"error: .*forget prompt .* contains (any|none) of foo; ", outcome.err)


def test_prompt_lists_without_training_prompts_are_reported_before_any_work(command, tmp_path):
    (tmp_path / "mine.csv").write_text("prompt,split,use\na church,forget,measure\na house,near,measure\n")
    (tmp_path / "far.csv").write_text("prompt,use\na star,measure\n")
    words = ["check", *SMALL, "concept.prompts=mine.csv", "retain.prompts=far.csv"]
    repair = "add rows with use=train (or an empty use)"
    outcome = command(*words, "algo=ga")
    assert outcome.err.splitlines() == [
        f"error: concept.prompts=mine.csv: no forget prompt to train on; {repair}",
        f"error: retain.prompts=far.csv: no retain prompt to train on; {repair}",
    ]
    assert command(*words, "algo=none").out.startswith("ready: ")
    assert command("run", *words[1:], "algo=none").code == 0


def test_a_concept_without_prompts_for_the_domain_is_reported(command, tmp_path):
    (tmp_path / "mine/concept").mkdir(parents=True)
    (tmp_path / "mine/concept/kites.yaml").write_text(
        "_target_: unlearnbench.data.concept.Concept\nname: kites\nwords: [kite]\nprompts: kites-${model.domain}.csv\n"
        "anchor: {kite: bird}\nanchors: {}\nguide: kite\ndetector: {}\nexplicit: false\n"
    )
    (tmp_path / "kites-photo.csv").write_text("prompt\na kite\n")
    outcome = command("run", "--config-dir", "mine", *SMALL, "concept=kites")
    assert outcome.code == 2
    assert outcome.err.startswith("error: kites-pictoworld.csv: no such file, neither here nor in ")
    (tmp_path / "kites-pictoworld.csv").write_text("prompt\na kite\n")
    outcome = command("run", "--config-dir", "mine", *SMALL, "concept=kites", "metrics=forget_accuracy")
    assert outcome.err == "error: concept.detector: kites has none for domain pictoworld; known: none; " + (
        "concepts of pictoworld: church, dotted, fish, nudity, parachute, pictoworld_subject, van_gogh\n"
    )


def test_an_empty_prompt_list_is_reported(command, tmp_path):
    (tmp_path / "mine.txt").write_text("\n\n")
    assert command("run", *SMALL, "concept.prompts=mine.txt").err == "error: mine.txt: no prompt in it\n"
    (tmp_path / "mine.csv").write_text("prompt,split\na star,near\n")
    outcome = command("run", *SMALL, "concept.prompts=mine.csv")
    assert (outcome.code, outcome.err) == (2, "error: concept.prompts=mine.csv: no forget prompt to measure\n")


def test_a_pickle_is_not_opened(command, pipeline_folder, tmp_path):
    folder = shutil.copytree(pipeline_folder, tmp_path / "pickled")
    (folder / "unet/diffusion_pytorch_model.safetensors").rename(folder / "unet/diffusion_pytorch_model.bin")
    outcome = command("run", *SMALL, "model=pictoworld", f"model.path={folder}")
    assert outcome.code == 2
    assert "unet holds only a pickle (.bin), which is not opened; convert it once: `unlearnbench convert " in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_a_folder_that_is_not_a_pipeline_is_reported(command, tmp_path):
    (tmp_path / "empty").mkdir()
    outcome = command("run", *SMALL, "model=pictoworld", "model.path=./empty")
    assert outcome.err == "error: model.path=./empty: no model_index.json there; it must be a folder in diffusers' layout\n"


def test_a_damaged_checkpoint_is_reported_in_one_line_before_any_work(command, pipeline_folder, tmp_path):
    folder = shutil.copytree(pipeline_folder, tmp_path / "damaged")
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    outcome = command("run", *SMALL, "model=pictoworld", f"model.path={folder}")
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: model.path={folder}: unet/{weights.name}: damaged or cut short (")
    assert outcome.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


def test_a_model_that_is_not_in_the_hub_cache_is_reported_when_offline(command, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    outcome = command("run", *SMALL, "model=sd14", "model.path=nobody/nothing", "retain.splits=[far]")
    assert outcome.code == 2
    assert "model nobody/nothing is not in the hub's cache" in outcome.err


def test_weights_of_another_model_are_refused(tiny, tmp_path):
    write_tensors(tmp_path / "other.safetensors", {"unet.nothing": torch.zeros(1)})
    with pytest.raises(UserError, match=r"unet.nothing does not fit tiny; these weights belong to another model"):
        load_weights(tiny, tmp_path / "other.safetensors")
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x04not safetensors")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load_weights(tiny, tmp_path / "pickle.safetensors")


def test_a_loss_that_is_not_finite_stops_the_run_with_exit_1(command, tmp_path):
    outcome = command("run", *SMALL, "algo=ga", "algo.lr=1e30", "algo.steps=5")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith("run failed: the loss became ")
    assert outcome.err.splitlines()[-1].endswith("of 5; try a smaller algo.lr")
    assert "Traceback" not in outcome.err
    log = the_one_run(tmp_path)
    assert log["status"] == "error"
    assert "the loss became" in log["error"]


def full(*_args, **_kwargs):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("module", "name"),
    [(sampling.folder, "_write"), (tensors, "save_file"), (TrainingJournal, "log")],
    ids=["images", "weights", "train.csv"],
)
def test_a_full_disk_under_way_stops_the_run_with_exit_1(module, name, command, monkeypatch, tmp_path):
    monkeypatch.setattr(module, name, full)
    outcome = command("run", *SMALL, f"cache={tmp_path}/cache")
    assert outcome.code == 1
    assert "run failed: no space is left on the disk; free some and run `unlearnbench resume outputs/" in outcome.err
    assert "Traceback" not in outcome.err
    assert the_one_run(tmp_path)["status"] == "error"


def test_a_disk_that_is_full_when_the_tables_are_written_stops_the_run_with_exit_1(command, monkeypatch, tmp_path):
    monkeypatch.setattr("unlearnbench.experiment.measure.run_markdown", full)
    outcome = command("run", *SMALL)
    assert outcome.code == 1
    assert "run failed: no space is left on the disk" in outcome.err
    assert the_one_run(tmp_path)["status"] == "error"


def test_a_disk_that_is_full_from_the_start_is_a_mistake_of_the_user(command, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "write_text", full)
    outcome = command("run", *SMALL)
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1].startswith("error: ")
    assert outcome.err.splitlines()[-1].endswith("cannot be written (No space left on device)")


def test_the_full_disk_of_safetensors_reads_the_same(run, monkeypatch):
    def fail(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensors, "save_file", fail)
    with pytest.raises(RunError, match="no space is left on the disk"):
        run()


def test_an_error_in_an_algorithm_is_one_line_and_its_traceback_is_kept(command, monkeypatch, tmp_path):
    monkeypatch.setattr("unlearnbench.algos.ga.denoising_loss", lambda *_: 1 / 0)
    outcome = command("run", *SMALL, "algo=ga")
    assert outcome.code == 1
    line = outcome.err.splitlines()[-1]
    assert line.startswith("run failed: ZeroDivisionError: division by zero (the traceback is in outputs/ga-church/")
    assert "Traceback" not in outcome.err
    [kept] = tmp_path.rglob("error.txt")
    assert "Traceback" in kept.read_text()
    assert the_one_run(tmp_path)["error"] == "ZeroDivisionError: division by zero"


def test_an_interrupted_run_says_so(command, monkeypatch, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("unlearnbench.algos.ga.denoising_loss", interrupt)
    outcome = command("run", *SMALL, "algo=ga")
    assert outcome.code == 130
    [folder] = (path.parent.relative_to(tmp_path) for path in tmp_path.rglob("run.json"))
    assert outcome.err.endswith(f"interrupted; `unlearnbench resume {folder}` continues\n")
    assert "error" not in the_one_run(tmp_path)
    assert not list(tmp_path.rglob("error.txt"))
    shown = command("show", folder)
    assert f"status: interrupted; `unlearnbench resume {folder}` continues\n" in shown.out
    assert shown.out.endswith(f"{folder}: images/\n")


def test_a_run_never_touches_an_earlier_one(command, files, tmp_path):
    assert command("run", *SMALL, "algo=none", "hydra.run.dir=mine").code == 0
    before = files(tmp_path / "mine")
    outcome = command("run", *SMALL, "algo=ga", "hydra.run.dir=mine")
    assert outcome.code == 2
    repair = "choose another folder with hydra.run.dir=..., or complete it by `unlearnbench resume mine`"
    assert outcome.err.endswith(f"error: mine: already holds a run; {repair}\n")
    assert files(tmp_path / "mine") == before


def test_a_failed_run_leaves_the_others_alone(command, files, tmp_path):
    assert command("run", *SMALL, "algo=none", "hydra.run.dir=runs/good").code == 0
    before = files(tmp_path / "runs/good")
    assert command("run", *SMALL, "algo=ga", "algo.lr=1e30", "algo.steps=5", "hydra.run.dir=runs/bad").code == 1
    assert files(tmp_path / "runs/good") == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("measure", "."), "error: .: not a run (no run.json there)\n"),
        (("show", "."), "error: .: no run there\n"),
        (("show", "gone"), "error: gone: no run there\n"),
        (("check", "algo=gaa"), "error: algo=gaa: no such choice; did you mean 'ga'? known: "),
        (("check", "experiment=smoke", "concept.prompts=gone.csv"), "error: gone.csv: no such file, neither here nor in "),
        (("world", "train", "--without", "chruch"), "error: --without chruch: did you mean 'church'? known: "),
        (("world", "quality", "--captions", "0"), "error: --captions 0: is less than 1\n"),
        (
            ("world", "quality", "--without", "church"),
            "error: --without: world quality does not read it; it belongs to world train\n",
        ),
        (("world", "quality", "--device", "cpu"), "error: --device: world quality does not read it; it belongs to world train\n"),
        (("world", "train", "--sheet", "x.png"), "error: --sheet: world train does not read it; it belongs to world quality\n"),
        (("list", "algo", "--md"), "error: --md does nothing without --support; say both, or leave it out\n"),
        (
            ("list", "--support", "--config-dir", "mine"),
            "error: --config-dir mine: --support shows the package's own algorithms, ",
        ),
        (("list", "esd_x", "--support"), "error: esd_x: --support shows the package's own algorithms, all of them; leave out "),
        (
            ("run", "-m", "hydra.sweep.dir=s/${now:%Y}"),
            "error: hydra.sweep.dir=s/${now:%Y}: the folder of a sweep takes no ${...}; write its name\n",
        ),
        (
            ("check", "algo=ga,esd_x"),
            "error: algo=ga,esd_x: several values; give one of them, or write algo=[ga,esd_x] ",
        ),
        (("check", "experiment=smoke", "concept.prompts=/proc/self/mem"), "error: /proc/self/mem: cannot be read ("),
        (("list", "--config-dir", "gone"), "error: --config-dir gone: no such folder\n"),
        (("run", "--config-dir", "gone"), "error: --config-dir gone: no such folder\n"),
        (("measure", ".", "--config-dir", "gone"), "error: --config-dir gone: no such folder\n"),
        (("cache", "--config-dir", "gone"), "error: --config-dir gone: no such folder\n"),
        (("run", "--config-dir=gone"), "error: --config-dir gone: no such folder\n"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_every_command_reports_a_mistake_in_one_line(words, message, command):
    outcome = command(*words)
    assert outcome.code == 2
    assert outcome.err.startswith(message)
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("damage", ["{", "[]", '{"status": "done"}', '{"status": "done", "algo": "ga", "config": null}'])
def test_a_damaged_run_is_reported(damage, command, tmp_path):
    (tmp_path / "run.json").write_text(damage)
    for name in ("show", "measure"):
        outcome = command(name, ".")
        assert outcome.code == 2
        assert outcome.err.startswith("error: .: run.json or metrics.json is damaged")


def test_an_attack_whose_name_leads_to_another_folder_is_refused(command, smoke, files):
    before = files(smoke.folder)
    outcome = command("attack", smoke.folder, "attack=paraphrases", "attack.name=../a")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert outcome.err.startswith("error: attack.name='../a': files are called by it; choose a name without a slash")
    assert files(smoke.folder) == before


def test_a_setting_that_an_attack_does_not_have_points_to_the_list_of_those_it_has(command, smoke):
    for words in (
        ("attack", smoke.folder, "attack=paraphrases", "attack.nonsense=1"),
        ("depth", smoke.folder, "attack.nonsense=1"),
    ):
        outcome = command(*words)
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)
        assert "attack.nonsense: no such setting; " in outcome.err
        assert outcome.err.endswith("`unlearnbench list NAME` shows those of an attack\n")


def test_a_yaml_with_a_builtin_name_is_refused(command, tmp_path):
    (tmp_path / "mine/algo").mkdir(parents=True)
    (tmp_path / "mine/algo/ga.yaml").write_text("name: ga\n")
    for words in (("--config-dir", "mine"), ("--config-dir=mine",), ("-cd", "mine")):
        outcome = command("run", *words, *SMALL, "algo=ga")
        assert outcome.code == 2
        assert (
            outcome.err == "error: mine/algo/ga.yaml: conf/ has its own algo/ga.yaml, which would win; give yours another name\n"
        )


def test_check_says_what_a_metric_would_say_after_all_images(command, tmp_path, write_images):
    words = ["experiment=smoke", "metrics=fid", "retain.splits=[far]", "sample.prompts=1", "sample.per_prompt=1"]
    for action in ("check", "run"):
        outcome = command(action, *words)
        assert outcome.code == 2
        assert outcome.err == (
            "error: metrics.fid: needs at least 2 images of retain prompts, and the run has 1: raise sample.prompts or "
            "sample.per_prompt, or remove it with '~metrics.fid'\n"
        )
    folder = write_images("real", np.zeros((1, 8, 8, 3), np.uint8)).folder
    outcome = command("check", *words[:-1], f"retain.images={folder}")
    assert outcome.err == f"error: retain.images={folder}: fid needs at least 2 real images, and there is 1\n"
    outcome = command("check", "experiment=smoke", "concept=nudity", "model.domain=photo", "concept.detector.photo.threshold=60")
    assert outcome.code == 2
    assert "threshold: 60.0 is not between 0.25 and 1" in outcome.err
