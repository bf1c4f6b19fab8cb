"""Checkpoints of a hub on loopback, by the real client: variants, pickles, what is fetched, and what a run and `check` say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hub_server import COMMIT
from safetensors.torch import save_file

from unlearnbench.config.compose import compose
from unlearnbench.config.errors import UserError
from unlearnbench.experiment.downloads import missing_downloads
from unlearnbench.experiment.preflight import find_problems
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.models.checkpoint_variants import local_variant, missing_weights, offered_variant
from unlearnbench.models.compvis_names import single_file_weights
from unlearnbench.models.tiny import make_pipeline

CPU = torch.device("cpu")
UNET = "unet/diffusion_pytorch_model"
WORDS = ("experiment=smoke", "model=pictoworld", "model.path=some/model", "algo=none", "metrics=integrity")
FEW = ("sample.prompts=1", "retain.splits=[far]")


def spec_of(*words, path="some/model"):
    return RunSpec.of(
        compose("experiment=smoke", "model=pictoworld", f"model.path={path}", "algo=none", "metrics=integrity", *words)
    )


@pytest.fixture(scope="session")
def both(tmp_path_factory):
    """The tiny pipeline in plain and in fp16 files, as most repositories have it, with pickles beside."""
    folder = tmp_path_factory.mktemp("both")
    pipeline = make_pipeline()
    pipeline.save_pretrained(folder, safe_serialization=True)
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True, variant="fp16")
    pipeline.to(torch.float32)
    for part in ("unet", "vae", "text_encoder"):
        (folder / part / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker/model.safetensors").write_bytes(b"large")
    (folder / "v1.ckpt").write_bytes(b"larger")
    return folder


@pytest.fixture
def repository(hub, both):
    """The files of some/model on the hub; a test may remove some."""
    return hub.add("some/model", both).files


def drop(files, *endings):
    for name in [name for name in files if name.endswith(endings)]:
        del files[name]


def weights(hub):
    """The names of the weights that the hub sent."""
    return sorted(path.partition(f"{COMMIT}/")[2] for path in hub.sent if path.endswith((".safetensors", ".bin", ".ckpt")))


def test_a_model_in_full_precision_fetches_plain_files_alone_and_only_once(hub, repository, both):
    model = spec_of().model
    assert find_problems(spec_of()) == []
    assert weights(hub) == []
    loaded = model.load(CPU)
    assert loaded.fingerprint() == spec_of(path=both).model.load(CPU).fingerprint()
    assert weights(hub) == ["text_encoder/model.safetensors", f"{UNET}.safetensors", "vae/diffusion_pytorch_model.safetensors"]
    assert model.commit() == COMMIT
    asked = len(hub.requests)
    assert model.download() is None
    model.load(CPU)
    assert len(hub.requests) == asked


def test_a_model_in_half_precision_fetches_the_smaller_variant(hub, repository):
    model = spec_of("model.dtype=bf16").model
    size = sum(len(content) for name, content in repository.items() if name.endswith(".fp16.safetensors"))
    assert model.download().size() - size < 200_000
    assert model.load(CPU).unet.dtype == torch.bfloat16
    assert {name.rsplit(".", 2)[1] for name in weights(hub)} == {"fp16"}


def test_the_variant_can_be_named(hub, repository):
    spec_of("model.variant=fp16").model.load(CPU)
    assert {name.rsplit(".", 2)[1] for name in weights(hub)} == {"fp16"}
    [problem] = find_problems(spec_of("model.variant=fp61"))
    assert "the hub has no variant fp61 of it; did you mean 'fp16'? known: " in problem


def test_a_repository_with_half_precision_alone_is_loaded_and_a_cache_of_it_offline(hub, repository, monkeypatch):
    drop(repository, *(f"/{name}.safetensors" for name in ("model", "diffusion_pytorch_model")))
    assert find_problems(spec_of()) == []
    fingerprint = spec_of().model.load(CPU).fingerprint()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert find_problems(spec_of()) == []
    assert spec_of().model.load(CPU).fingerprint() == fingerprint


def test_a_repository_of_pickles_is_refused_with_a_repair(hub, repository):
    drop(repository, ".safetensors")
    [problem] = find_problems(spec_of())
    assert "its unet is there only as a pickle, which is not opened; convert it where you trust it: https://" in problem
    assert hub.sent == {}


@pytest.mark.parametrize(
    ("gate", "words", "expected"),
    [
        ("gated", (), "and it is gated: accept its terms at https://huggingface.co/some/model, then `hf auth login`; set"),
        ("private", (), "and the hub has no such model; if it is private, `hf auth login`; set model.path to a folder, or"),
        ("", ("model.revision=v9",), "and the hub has no revision v9 of it; set model.path to a folder, or fetch it once"),
    ],
)
def test_what_the_hub_refuses_is_reported_before_and_by_loading(gate, words, expected, hub, both):
    hub.add("some/model", both, gate=gate)
    [problem] = find_problems(spec_of(*words))
    assert expected in problem
    assert "\n" not in problem
    with pytest.raises(UserError) as refusal:
        spec_of(*words).model.load(CPU)
    assert str(refusal.value) == problem


def test_a_single_file_repository_is_named(hub):
    hub.add("some/model", {"dreams.safetensors": b""})
    [problem] = find_problems(spec_of())
    assert "it has no model_index.json" in problem
    assert "download dreams.safetensors and set model.path to that file" in problem


@pytest.fixture
def single(hub, both, tmp_path, monkeypatch):
    """A single file on this machine, and the repository on the hub from which diffusers takes the settings of such a file."""
    save_file(single_file_weights(make_pipeline()), tmp_path / "single.safetensors")
    hub.add("stable-diffusion-v1-5/stable-diffusion-v1-5", both)
    return tmp_path / "single.safetensors"


@pytest.mark.parametrize("words", [(), ("model.config=stable-diffusion-v1-5/stable-diffusion-v1-5",)])
def test_the_settings_of_a_single_file_are_downloaded_without_weights_and_once(words, single, hub, both, monkeypatch):
    spec = spec_of(*words, path=single)
    assert find_problems(spec) == []
    [download] = missing_downloads(spec)
    assert download.line().startswith("model.config stable-diffusion-v1-5/stable-diffusion-v1-5 (settings alone): ")
    assert hub.sent == {}
    [problem] = find_problems(spec_of(*words, "fetch=never", path=single))
    assert "(settings alone) is not in the hub's cache, and fetch=never is set; " in problem
    assert problem.endswith("set model.config to a folder in diffusers' layout with model_index.json, the config.json of every "
                            "part, the scheduler and the tokenizers (no weights)")  # fmt: skip
    loaded = spec.model.load(CPU)
    assert weights(hub) == []
    assert loaded.fingerprint() == spec_of(path=both).model.load(CPU).fingerprint()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert missing_downloads(spec) == find_problems(spec) == find_problems(spec_of(*words, "fetch=never", path=single)) == []
    assert spec.model.load(CPU).fingerprint() == loaded.fingerprint()


def test_the_settings_of_a_single_file_of_another_family_are_refused(single, hub, both):
    index = json.loads((both / "model_index.json").read_text())
    files = {path.relative_to(both).as_posix(): path.read_bytes() for path in both.rglob("*") if path.is_file()}
    files["model_index.json"] = json.dumps(index | {"_class_name": "StableDiffusionXLPipeline"}).encode()
    hub.add("stable-diffusion-v1-5/stable-diffusion-v1-5", files)
    with pytest.raises(UserError, match=r"this family is StableDiffusionPipeline; use model=sdxl"):
        spec_of(path=single).model.load(CPU)


def test_a_cache_that_mixes_variants_is_loaded(hub, repository, both):
    drop(repository, f"{UNET}.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors")
    assert find_problems(spec_of("model.dtype=fp16")) == []
    spec_of("model.dtype=fp16").model.load(CPU)
    vae = "vae/diffusion_pytorch_model.safetensors"
    assert weights(hub) == ["text_encoder/model.fp16.safetensors", f"{UNET}.fp16.safetensors", vae]


def test_a_truncated_file_of_the_cache_names_the_file_to_delete(hub, repository):
    model = spec_of().model
    model.load(CPU)
    path = (model.local_folder() / f"{UNET}.safetensors").resolve()
    path.write_bytes(path.read_bytes()[:-10])
    [problem] = find_problems(spec_of())
    assert problem.endswith(f"; delete {path}, and the next run downloads it again")
    path.unlink()
    assert find_problems(spec_of()) == []
    model.load(CPU)


def test_another_family_on_the_hub_is_named(hub, repository):
    repository["model_index.json"] = json.dumps({"_class_name": "FluxPipeline"}).encode()
    with pytest.raises(UserError, match=r"its model_index\.json names FluxPipeline, this family is .*; use model=flux"):
        spec_of().model.load(CPU)


SHARDS = [f"unet/diffusion_pytorch_model.fp16-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]


def test_shards_are_whole_when_their_numbers_are():
    assert missing_weights(SHARDS, "unet", "fp16") == []
    assert missing_weights(SHARDS[:1], "unet", "fp16") == SHARDS[1:]
    assert missing_weights([], "unet", "fp16") == ["unet/*.fp16.safetensors"]
    assert local_variant(SHARDS[:2], ["unet"], None) == ("fp16", SHARDS[2:])
    with pytest.raises(UserError, match="no precision of it is whole"):
        offered_variant(SHARDS[:2], ["unet"], None, "fp16")


def test_a_variant_that_differs_in_more_than_precision_is_not_taken_unasked():
    names = ["unet/diffusion_pytorch_model.non_ema.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"]
    assert local_variant(names, ["unet"], None) == ("fp16", [])
    assert local_variant(names, ["unet"], "non_ema") == ("non_ema", [])
    assert offered_variant(names, ["unet"], None, "fp32") == "fp16"


# --- fetch and run ------------------------------------------------------------------------------------------------------


def test_check_fetch_and_run_say_sizes_and_download_once(hub, repository, command, tmp_path):
    checked = command("check", *WORDS)
    assert checked.code == 0
    [line] = [line for line in checked.out.splitlines() if line.startswith("downloads: ")]
    assert line.startswith("downloads: model some/model: ")
    assert line.endswith("kB from the hub")
    assert weights(hub) == []
    fetched = command("fetch", *WORDS)
    assert (fetched.code, fetched.out) == (0, "1 downloaded, nothing is missing\n")
    assert line.removeprefix("downloads: ") in fetched.err
    asked = len(hub.requests)
    assert command("fetch", *WORDS).out == "nothing is missing\n"
    assert command("run", *WORDS, *FEW, "sample.per_prompt=1", f"hydra.run.dir={tmp_path}/run").code == 0
    assert len(hub.requests) == asked
    log = json.loads(Path("run/run.json").read_text())
    assert log["model_commit"] == COMMIT
    assert "fetch" not in log["config"]


def test_a_run_downloads_what_is_missing_and_goes_on_after_a_cut(hub, repository, command, tmp_path, monkeypatch):
    monkeypatch.setattr("unlearnbench.storage.hub.LARGE", 10_000)
    monkeypatch.setattr("unlearnbench.storage.downloads.TRIES", 1)
    words = (*WORDS, *FEW, "sample.per_prompt=1", f"hydra.run.dir={tmp_path}/run")
    hub.cut = 12_000
    cut = command("run", *words)
    assert cut.code == 2
    assert "error: model some/model: the download was cut after 12.0 kB of " in cut.err
    assert cut.err.endswith("; the same command goes on where it stopped\n")
    assert not Path("run").exists()
    hub.cut = None
    assert command("run", *words).code == 0
    for path, size in hub.sent.items():
        assert size == len(repository[path.partition(f"{COMMIT}/")[2] or path.partition("main/")[2]]), path


@pytest.mark.parametrize(
    ("words", "offline", "reason"), [(("fetch=never",), False, "fetch=never is set; "), ((), True, "HF_HUB_OFFLINE is set; ")]
)
def test_a_run_that_may_not_download_is_refused(words, offline, reason, hub, repository, command, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    refused = command("run", *WORDS, *words)
    assert refused.code == 2
    assert f"model some/model is not in the hub's cache, and {reason}" in refused.err
    assert hub.requests == []


def test_a_wrong_fetch_is_refused(command):
    assert "fetch: did you mean" in command("check", *WORDS, "fetch=nevr").err
