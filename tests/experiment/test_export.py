"""Exports of a run: each form loads into plain diffusers and generates the run's images; what cannot be exported says why."""

from __future__ import annotations

import functools
import json
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import huggingface_hub
import pytest
import torch
from full_pipelines import make_full_pipeline
from huggingface_hub import HfApi, ModelCard, constants
from safetensors import safe_open
from safetensors.torch import load_file
from shared_examples import by_kind, draws

from unlearnbench.cli.export import FORMS
from unlearnbench.config.build import build
from unlearnbench.config.compose import compose
from unlearnbench.config.errors import UserError
from unlearnbench.data.images import Images
from unlearnbench.experiment import export as export_module
from unlearnbench.experiment.export import ExportOptions, Source, _write_model, export, export_problem
from unlearnbench.experiment.provenance import collect_provenance
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.models.adapters.lora import install_lora, lora_tensors, merge_lora
from unlearnbench.models.base import TextToImage
from unlearnbench.models.foreign_weights import ForeignWeights
from unlearnbench.models.lora_file import LORA_FILE, save_lora_stage
from unlearnbench.models.parameters import select_parameters
from unlearnbench.models.tiny_pipelines import make_tiny_pipeline, tiny_overrides
from unlearnbench.models.weights import save_weights
from unlearnbench.models.weights_source import WeightsSource
from unlearnbench.reports.model_card import card_metadata, loading_code, model_card
from unlearnbench.reports.model_card import command as command_of_card
from unlearnbench.results.exported import Exported
from unlearnbench.results.run import Run, Value, load_run
from unlearnbench.sampling import generate

PROMPTS, SEEDS = ["a red church on the left", "a blue star"], [1, 2]
CPU = torch.device("cpu")
ALL = [
    ExportOptions("diffusers"), ExportOptions("unet"), ExportOptions("unet", whole=True), ExportOptions("lora"),
    ExportOptions("lora", kohya=True), ExportOptions("single-file"),
]  # fmt: skip


def name_of(options):
    return options.form + "-whole" * options.whole + "-kohya" * options.kohya


class Finished(NamedTuple):
    run: Path
    base: Path
    images: torch.Tensor


def finish(family, root):
    """The folder of a run that trained a LoRA, without the run: its adapter has random numbers."""
    pipeline = make_full_pipeline(family) if family in ("sd15", "sdxl") else make_tiny_pipeline(family)
    base, folder = root / f"base-{family}", root / "run"
    pipeline.save_pretrained(base)
    words = [*tiny_overrides(family, base), "concept=church", "algo=ga", "algo.train=lora"]
    spec = RunSpec.of(compose(*words))
    model = spec.model.load(CPU)
    log = {"status": "done", "fingerprint": model.fingerprint(), "scheduler": type(model.noise_scheduler).__name__}
    for name, parameter in install_lora(model, select_parameters(model, "lora"), 4, draws()).items():
        if "lora_B" in name:
            parameter.data.normal_(generator=draws(len(name)))
    save_lora_stage(folder / LORA_FILE, 0, lora_tensors(model), model.path)
    save_weights(model, folder / "weights.safetensors", merge_lora(model))
    Run(folder, {**collect_provenance(spec, CPU, words), **log}, []).write()
    images = generate(model, PROMPTS, SEEDS, 3, 2.0).int()
    original = images_of_diffusers(pipeline, **({"max_sequence_length": 8} if family == "flux" else {}))
    assert (images - original).abs().max() > 3
    return Finished(folder, base, images)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Runs that trained a LoRA, by family: the folders of run and original, and the images of its model."""
    return functools.cache(lambda family: finish(family, tmp_path_factory.mktemp(family)))


def images_of_diffusers(pipeline, **settings):
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    images = pipeline(
        PROMPTS,
        num_inference_steps=3,
        guidance_scale=2.0,
        height=32,
        width=32,
        output_type="np",
        generator=generators,
        **settings,
    ).images
    return torch.from_numpy((images * 255).round()).int()


def loaded_by_card(folder, base, monkeypatch):
    """The pipeline that the code in an export's card loads."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[1]
    names = {}
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        exec(code.replace(f'"{base.name}"', repr(str(base))).replace("image = ", "# "), names)
    return names["pipe"]


# --- every form loads back ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ALL, ids=name_of)
@pytest.mark.parametrize("family", by_kind(["sd15", "sdxl"], ["sd15"]))
def test_plain_diffusers_generates_the_images_of_the_run(family, options, finished, tmp_path, monkeypatch):
    run, base, images = finished(family)
    folder, address = export(run, options, tmp_path / "out")
    assert address is None
    assert (images - images_of_diffusers(loaded_by_card(folder, base, monkeypatch))).abs().max() <= 1


@pytest.mark.parametrize("form", ["unet", "lora"])
def test_a_transformer_is_exported_by_its_name(form, finished, tmp_path, monkeypatch):
    run, base, images = finished("flux")
    folder, _ = export(run, ExportOptions(form), tmp_path / "out")
    assert (folder / {"unet": "transformer.safetensors", "lora": "pytorch_lora_weights.safetensors"}[form]).is_file()
    theirs = images_of_diffusers(loaded_by_card(folder, base, monkeypatch), max_sequence_length=8)
    assert (images - theirs).abs().max() <= 1


@pytest.mark.parametrize("kohya", [False, True])
@pytest.mark.parametrize("family", by_kind(["sd15", "sdxl"], ["sdxl"]))
def test_a_lora_of_text_encoders_loads_too(family, kohya, finished, tmp_path):
    run, base, images = finished(family)
    source, model = Source.of(run), Source.of(run).model.load(CPU)
    trained = re.compile(r"text_encoder.*(self_attn|mlp)\..*weight|unet.*attn1.to_q")
    layers = [name for name, _ in model.named_parameters() if trained.match(name)]
    for name, parameter in install_lora(model, layers, 2, draws()).items():
        if "lora_B" in name:
            parameter.data.normal_(generator=draws(7)).mul_(3)
    lora = {name: value.clone() for name, value in lora_tensors(model).items()}
    merge_lora(model)
    file = _write_model(Source(source.run, source.spec, {}, {}, lora), ExportOptions("lora", kohya=kohya), tmp_path)
    pipeline = type(model.pipeline).from_pretrained(base)
    pipeline.load_lora_weights(tmp_path, weight_name=file)
    ours = generate(model, PROMPTS, SEEDS, 3, 2.0).int()
    assert (ours - images_of_diffusers(pipeline)).abs().max() <= 1
    assert (ours - images).abs().max() > 5


@pytest.mark.parametrize("options", ALL, ids=name_of)
def test_algo_checkpoint_reads_each_export_back(options, finished, tmp_path):
    run, base, _ = finished("sdxl")
    folder, _ = export(run, options, tmp_path / "out")
    files = [path for path in folder.glob("*.safetensors") if path.name != "diffusion_pytorch_model.safetensors"]
    weights = ForeignWeights(WeightsSource(str(files[0] if files else folder)), 1.0)
    model = build(compose(*tiny_overrides("sdxl", base)).model, TextToImage, "model").load(CPU)
    assert weights.problem(model) is None
    names, guidance = weights.load(model)
    assert guidance is None
    saved, parameters = load_file(run / "weights.safetensors"), dict(model.named_parameters())
    assert set(names) <= saved.keys()
    for name, value in saved.items():
        torch.testing.assert_close(parameters[name], value, atol=1e-5, rtol=1e-4)


def test_names_in_the_files(finished, tmp_path):
    run = finished("sdxl").run
    weights = load_file(export(run, ExportOptions("unet"), tmp_path / "a")[0] / "unet.safetensors")
    assert {f"unet.{name}" for name in weights} == load_file(run / "weights.safetensors").keys()
    folder, _ = export(run, ExportOptions("lora", kohya=True), tmp_path / "b")
    with safe_open(folder / "ga-church.safetensors", framework="pt") as file:
        assert file.metadata()["ss_network_dim"] == "4"
        assert file.metadata()["ss_base_model_version"] == "sdxl_base_v1-0"
        assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_out_0.lora_down.weight" in file.keys()  # noqa: SIM118
        assert file.get_tensor("lora_unet_middle_block_1_transformer_blocks_1_attn1_to_q.alpha") == 4
    one, _ = export(finished("sd15").run, ExportOptions("lora", kohya=True), tmp_path / "c")
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight" in load_file(
        one / "ga-church.safetensors"
    )


def test_a_run_in_half_precision_is_exported_in_one_dtype(finished, tmp_path):
    run, base, _ = finished("sd15")
    half = tmp_path / "half"
    shutil.copytree(run, half)
    log = json.loads((half / "run.json").read_text())
    log["config"]["model"]["dtype"] = "bf16"
    source = Source.of(run)
    model = build(compose(*tiny_overrides("sd15", base), "model.dtype=bf16").model, TextToImage, "model")
    log["fingerprint"] = model.load(CPU).fingerprint()
    (half / "run.json").write_text(json.dumps(log))
    folder, _ = export(half, ExportOptions("single-file"))
    assert folder == half / "export-single-file"
    assert {value.dtype for value in load_file(folder / "ga-church.safetensors").values()} == {torch.bfloat16}
    assert "torch_dtype=torch.bfloat16" in (folder / "README.md").read_text()
    log["fingerprint"] = "of another one"
    (half / "run.json").write_text(json.dumps(log))
    with pytest.raises(UserError, match=r"model .* has changed since the run; repeat the run"):
        export(half, ExportOptions("diffusers"))
    assert source.model.dtype == "fp32"


# --- what cannot be exported --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algo", "settings", "names", "note", "options", "message"),
    [
        ("none", {}, [], {}, ExportOptions("unet"), "changed nothing; export a run of a method that"),
        ("sld", {}, [], {}, ExportOptions("diffusers"), "changed only how the model is sampled, which no file of weights holds"),
        ("safree", {}, [], {}, ExportOptions("unet"), "changed only how the model is sampled, "),
        (
            "spm", {}, ["unet.a.membranes.0.down.weight"], {"transport": [["church"]]}, ExportOptions("lora"),
            "its adapters stay beside the layers, and prompts open them; repeat it with algo.transport=false, which merges them",
        ),
        (
            "receler", {}, ["unet.a.attn2.to_out.1.down.weight"], {}, ExportOptions("unet"),
            "it adds layers that no pipeline of diffusers has; `unlearnbench` alone loads its weights.safetensors",
        ),
        (
            "redirect", {}, ["text_encoder.a.weight"], {}, ExportOptions("unet"),
            "as a unet: it changed text_encoder, which the file does not hold; --as diffusers works, and --as single-file",
        ),
        (
            "esd_x", {}, ["unet.a.weight"], {}, ExportOptions("lora"),
            "as a LoRA: it changed whole weights; repeat it with algo.train=lora, or --as unet or --as diffusers works",
        ),
        (
            "uce", {}, ["unet.a.weight"], {}, ExportOptions("lora"),
            "as a LoRA: it changed whole weights; --as unet or --as diffusers works",
        ),
        (
            "ga", {"train": "lora"}, ["unet.a.weight"], {}, ExportOptions("lora"),
            "as a LoRA: the run has no lora.safetensors, which earlier versions did not write; repeat it, or --as unet",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isidentifier() else "",
)  # fmt: skip
def test_one_line_says_why_a_run_cannot_be_exported_so_and_what_works(algo, settings, names, note, options, message, algo_spec):
    run = Run(Path("a/run"), {"algo": algo, "config": {"concept": {"name": "church"}}})
    source = Source(run, algo_spec(algo, **settings), dict.fromkeys(names, torch.zeros(1)), note, {})
    problem = export_problem(source, options)
    assert re.search(message, problem), problem
    assert problem.startswith(f"a/run: {algo} on church cannot be exported")
    assert "\n" not in problem


def test_a_lora_that_is_not_all_and_forms_of_other_families_are_refused(finished):
    source = Source.of(finished("sd15").run)
    more = Source(source.run, source.spec, {**source.tensors, "unet.conv_in.bias": torch.zeros(1)}, {}, source.lora)
    assert export_problem(source, ExportOptions("lora")) is None
    assert "changed more weights than its adapter holds; --as unet" in export_problem(more, ExportOptions("lora"))
    flux = Source.of(finished("flux").run)
    assert "in kohya's names: only a LoRA of a UNet can" in export_problem(flux, ExportOptions("lora", kohya=True))
    problem = export_problem(flux, ExportOptions("single-file"))
    assert problem.endswith("as a single file: only Stable Diffusion 1 and XL can; --as diffusers works")


def test_the_single_file_of_stable_diffusion_2_is_refused(finished, monkeypatch, tmp_path):
    encoder = SimpleNamespace(config=SimpleNamespace(hidden_size=1024))
    monkeypatch.setattr(export_module, "load_unlearned", lambda source: SimpleNamespace(text_encoder=encoder, denoiser="unet"))
    with pytest.raises(UserError, match="as a single file: only Stable Diffusion 1 and XL can; --as diffusers works"):
        export(finished("sd15").run, ExportOptions("single-file"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--as", "lora", "--whole"), "--whole belongs to --as unet; leave it out with --as lora"),
        (("--as", "unet", "--kohya"), "--kohya belongs to --as lora; leave it out with --as unet"),
        (("--as", "unet", "--public"), "--public belongs to --push OWNER/NAME; leave it out, or say both"),
        (("--as", "unet", "-o", "a.safetensors"), "-o a.safetensors: name a folder; it gets the weights and their model card"),
        (("--as", "unet", "-o", "mine"), "-o mine: exists and is no export; name another folder"),
        (("--as", "unet", "--push", "church"), "--push church: name the repository as OWNER/NAME"),
        (("--as", "unet", "--push", "me/church"), "--push me/church: HF_HUB_OFFLINE is set; unset it"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_that_do_not_fit_are_refused_in_one_line(words, message, smoke, command, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    outcome = command("export", smoke.folder, *words)
    assert (outcome.code, outcome.err) == (2, f"error: {message}\n")
    assert not (smoke.folder / "export-unet").exists()


@pytest.mark.parametrize("output", [".", "..", "mine/.."])
def test_an_export_never_replaces_the_working_folder(output, smoke, command, tmp_path):
    (tmp_path / "mine").mkdir()
    outcome = command("export", smoke.folder, "--as", "unet", "-o", output)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert f"the export would replace the working folder {tmp_path}; name another folder" in outcome.err
    assert (tmp_path / "mine").is_dir()


def test_a_wrong_form_a_folder_without_a_run_and_damaged_files_are_refused(smoke, command, tmp_path):
    assert "invalid choice: 'ckpt'" in command("export", smoke.folder, "--as", "ckpt").err
    assert command("export", ".", "--as", "unet").err == "error: .: not a run (no run.json there)\n"
    with pytest.raises(UserError, match="--as loar: no such form; did you mean 'lora'"):
        ExportOptions("loar")
    shutil.copytree(smoke.folder, tmp_path / "run")
    (tmp_path / "run/weights.safetensors").write_bytes(b"x")
    assert command("export", "run", "--as", "unet").err.startswith(
        "error: run/weights.safetensors: cannot be read as safetensors"
    )
    log = json.loads((tmp_path / "run/run.json").read_text())
    (tmp_path / "run/run.json").write_text(json.dumps({**log, "status": "interrupted"}))
    assert "the run is not finished" in command("export", "run", "--as", "unet").err


def test_the_command_says_where_the_export_is_and_replaces_an_earlier_one(smoke, command, tmp_path):
    for _ in range(2):
        outcome = command("export", smoke.folder, "--as", "unet", "-o", "out")
        assert outcome.code == 0, outcome.err
        assert re.fullmatch(r"wrote out, .*; out/README.md says how to load it\n", outcome.out)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", "grid.png", "unet.safetensors"}


# --- the card -----------------------------------------------------------------------------------------------------------


def test_the_card_has_the_values_with_n_and_intervals_as_the_hub_reads_them(smoke, command, tmp_path):
    command("export", smoke.folder, "--as", "unet", "-o", "out")
    data = ModelCard.load(tmp_path / "out/README.md").data
    results = {(one.metric_type, one.dataset_split, one.metric_args["backbone"]): one for one in data.eval_results}
    measured = [value for value in smoke.values if value.table != "Cost"]
    assert len(results) == len(measured) > 10
    for value in measured:
        one = results[value.metric, value.split, value.backbone]
        assert one.metric_value == pytest.approx(value.unlearned, abs=1e-5)
        assert one.metric_args["n"] == value.n
        assert one.metric_args.get("low") == (None if value.low is None else pytest.approx(value.low, abs=1e-5))
        assert one.metric_args.get("high") == (None if value.high is None else pytest.approx(value.high, abs=1e-5))
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "diffusers", "text-to-image")


def fake_run(path="CompVis/stable-diffusion-v1-4", **log):
    model = {"path": path, "revision": "main", "size": 512}
    config = {"concept": {"name": "nudity"}, "model": model, "sample": {"steps": 50, "guidance": 7.5, "seed": 0}, "seed": 0}
    started = {
        "algo": "esd_x", "config": config, "fingerprint": "0" * 64, "scheduler": "PNDMScheduler", "device": "cpu", "prompts": "1",
        "versions": {"unlearnbench": "0"}, "overrides": [f"model.path={path}", "hydra.run.dir=/home/me/x"],
        "status": "done", **log,
    }  # fmt: skip
    value = {"table": "Forgetting", "metric": "ua", "split": "forget", "better": "higher", "n": 4, "backbone": "x"}
    values = [Value(**value, unlearned=0.5), Value(**{**value, "metric": "odd"}, unlearned=float("nan"))]
    return Run(Path("nowhere"), started, values)


def exported_as(form, **settings):
    return Exported(**{"form": form, "file": "a.safetensors", "whole": False, "pipeline_class": "StableDiffusionPipeline",
                       "denoiser": "unet", "dtype": "fp16", **settings})  # fmt: skip


def test_the_card_names_base_licence_and_relation_and_no_value_that_is_none():
    data = card_metadata(fake_run(), exported_as("lora"))
    assert data["base_model"] == "CompVis/stable-diffusion-v1-4"
    assert data["base_model_relation"] == "adapter"
    assert data["license"] == "creativeml-openrail-m"
    assert [metric["type"] for result in data["model-index"][0]["results"] for metric in result["metrics"]] == ["ua"]
    flux = card_metadata(fake_run("black-forest-labs/FLUX.1-dev"), exported_as("unet"))
    assert (flux["license"], flux["license_name"]) == ("other", "flux-1-dev-non-commercial-license")


def test_the_card_shows_no_folder_of_this_machine_and_quotes_no_explicit_prompt(algo_spec):
    prompts = [prompt for prompt in algo_spec("ga", "concept=nudity").prompts() if prompt.base in ("forget", "far")]
    text = model_card(fake_run("/home/me/secret/finetune"), exported_as("unet"), prompts, explicit=True)
    assert "/home/me" not in text
    assert "unlearnbench run model.path=finetune\n" in text
    spaced = fake_run("/home/me/it's mine")
    spaced.log["measured"] = [["metrics=cmmd"]]
    lines = command_of_card(spaced).splitlines()
    assert shlex.split(lines[0]) == ["unlearnbench", "run", "model.path=it's mine"]
    assert lines[1] == "unlearnbench measure RUN metrics=cmmd"
    assert "license: unknown\n" in text
    assert "which this card does not know: look it up" in text
    assert "base_model:" not in text
    shown = {prompt.base: prompt.text in text for prompt in reversed(prompts)}
    assert shown == {"forget": False, "far": True}


def test_the_code_names_revision_dtype_and_the_hub():
    code = loading_code(fake_run(), exported_as("unet", repository="me/x"))
    assert 'from_pretrained("CompVis/stable-diffusion-v1-4", revision="main", torch_dtype=torch.float16)' in code
    assert 'load_state_dict(load_file(hf_hub_download("me/x", "a.safetensors")), strict=False)' in code
    own = loading_code(fake_run("pictoworld"), exported_as("lora", dtype="fp32"))
    assert 'from_pretrained(WEIGHTS / "pipeline", revision="main", torch_dtype=torch.float32)' in own
    assert 'from_single_file("base.safetensors"' in loading_code(fake_run("./base.safetensors"), exported_as("lora"))
    for form in FORMS:
        compile(loading_code(fake_run(), exported_as(form, repository="me/x")), "card", "exec")


def test_the_code_takes_the_settings_of_a_single_file_from_where_the_run_took_them():
    run = fake_run("/home/me/base.safetensors")
    whole = exported_as("single-file", dtype="fp32")
    assert 'from_single_file("a.safetensors", torch_dtype=torch.float32)' in loading_code(run, whole)  # diffusers looks for them
    run.log["config"]["model"]["config"] = "/home/me/settings"
    assert 'from_single_file("a.safetensors", config="settings", torch_dtype=torch.float32)' in loading_code(run, whole)
    lora = loading_code(run, exported_as("lora"))
    assert 'from_single_file("base.safetensors", config="settings", torch_dtype=torch.float16)' in lora
    flux = exported_as("unet", pipeline_class="FluxPipeline", denoiser="transformer", dtype="bf16")
    lines = loading_code(run, flux).splitlines()
    assert "from diffusers import FluxPipeline, FluxTransformer2DModel" in lines
    first = lines.index(
        'transformer = FluxTransformer2DModel.from_single_file("base.safetensors", config="settings", subfolder="transformer", '
        "torch_dtype=torch.bfloat16)"
    )
    assert lines[first + 1].startswith('pipe = FluxPipeline.from_pretrained("settings", transformer=transformer, ')


@pytest.mark.parametrize(
    ("override", "shown"),
    [
        ("concept.prompts=/home/me/my.csv", "concept.prompts=my.csv"),
        ("concept.prompts='/home/me/a, b.csv'", "concept.prompts='a, b.csv'"),
        ("concept.paraphrases=[i2p_nudity,/home/me/x.csv, '~/y.txt']", "concept.paraphrases=[i2p_nudity,x.csv, 'y.txt']"),
        ("training.forget_folder=~/churches/", "training.forget_folder=churches"),
        ("+concept.detector={_target_: a.B, file: /home/me/net.pt}", "+concept.detector={_target_: a.B, file: net.pt}"),
        ("concept.guide=and/or", "concept.guide=and/or"),
    ],
)
def test_the_commands_of_the_card_name_no_folder_of_this_machine(override, shown):
    run = fake_run(measured=[[override]])
    run.log["overrides"] = [override]
    run_line, measure_line = command_of_card(run).splitlines()
    assert shlex.split(run_line) == ["unlearnbench", "run", shown]
    assert shlex.split(measure_line) == ["unlearnbench", "measure", "RUN", shown]


# --- the hub ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def logged_in(hub, monkeypatch, tmp_path):
    """The loopback hub, to which this process's client is logged in, without Xet, which is no HTTP."""
    monkeypatch.setenv("HF_TOKEN", hub.token)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: HfApi(endpoint=hub.url))
    return hub


def push(command, folder, *more):
    return command("export", folder, "--as", "unet", "-o", "out", "--push", "me/church", *more)


@pytest.mark.parametrize("public", [False, True])
def test_an_upload_is_private_unless_asked_and_holds_the_export(public, logged_in, smoke, command, tmp_path):
    outcome = push(command, smoke.folder, *["--public"] * public)
    assert outcome.code == 0, outcome.err
    assert outcome.out.endswith(f"uploaded to {logged_in.url}/me/church\n")
    repository = logged_in.repositories["models/me/church"]
    assert repository.private != public
    assert repository.files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(repository.files) == {"README.md", "grid.png", "unet.safetensors"}
    assert repository.message == f"{load_run(smoke.folder).name}, as unet"


def test_what_was_uploaded_is_weights_that_a_run_judges(logged_in, smoke, command, run, tmp_path, monkeypatch):
    """Ours out, ours in: the unet.safetensors of the hub gives the run's images."""
    assert push(command, smoke.folder).code == 0
    (tmp_path / "from-hub.safetensors").write_bytes(logged_in.repositories["models/me/church"].files["unet.safetensors"])
    done = run("algo=checkpoint", "algo.weights=from-hub.safetensors", "retain.splits=[far]")
    ours, theirs = (Images(folder / "images/after") for folder in (done.folder, smoke.folder))
    by_key = {(record.prompt, record.seed): i for i, record in enumerate(theirs)}
    rows = [by_key[record.prompt, record.seed] for record in ours]
    assert (ours.pixels().int() - theirs.pixels()[rows].int()).abs().max() <= 1


def test_an_existing_private_repository_takes_a_second_upload(logged_in, smoke, command):
    logged_in.add("me/church", {"old.txt": b"x"}, private=True)
    assert push(command, smoke.folder).code == 0
    files = logged_in.repositories["models/me/church"].files
    assert {"old.txt", "unet.safetensors"} <= set(files)


def public_repository(hub, monkeypatch):
    hub.add("me/church", {}, private=False)


def nobody(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")


def wrong_token(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_other")


def may_not_write(hub, monkeypatch):
    hub.writable = False


def failing(hub, monkeypatch):
    hub.status = 500


def unreachable(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: HfApi(endpoint="http://127.0.0.1:9"))


@pytest.mark.parametrize(
    ("prepare", "message", "is_written"),
    [
        (public_repository, "this repository is public; say --public, or name another one", False),
        (nobody, "nobody is logged in; `hf auth login`, or set HF_TOKEN", False),
        (wrong_token, "the hub refuses your token; `hf auth login` with one that", False),
        (may_not_write, "the hub refuses your token; `hf auth login` with one that", True),
        (failing, "the hub answers: ", False),
        (unreachable, "the hub cannot be reached, or the upload failed: ", False),
    ],
)
def test_what_the_hub_refuses_is_one_line_and_no_upload(
    prepare, message, is_written, logged_in, smoke, command, tmp_path, monkeypatch
):
    prepare(logged_in, monkeypatch)
    outcome = push(command, smoke.folder)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: --push me/church: {message}")
    assert outcome.err.count("\n") == 1
    assert not any(repository.files for repository in logged_in.repositories.values())
    assert (tmp_path / "out").exists() == is_written
    if is_written:
        assert outcome.err.endswith("the export is complete in out, and the same command uploads it\n")
