"""What a run needs from the network, and what it goes without: real images of FID, the networks of metrics."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from unlearnbench.config.compose import compose
from unlearnbench.console import format_duration
from unlearnbench.experiment import device_rate
from unlearnbench.experiment.downloads import left_out_metrics, missing_downloads
from unlearnbench.experiment.estimate import FIGURES, activations, estimate_lines, largest_batch, metric_work, operations
from unlearnbench.experiment.memory import text_encoder_memory
from unlearnbench.experiment.preflight import find_problems, find_warnings
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.metrics.backbones import network_downloads
from unlearnbench.models.tiny_pipelines import tiny_overrides
from unlearnbench.pictoworld.classifier import WEIGHTS

COCO = "sayakpaul/coco-30-val-2014"
REVISION = "aaa515096492b5c824eff2552d7ad7a65e0f852e"
PHOTOS = ("experiment=smoke", "model.domain=photo", "algo=none", "metrics=[integrity,fid,kid]")


@pytest.fixture
def inception(tmp_path, monkeypatch):
    """A folder of torch.hub with a file in place of Inception's weights."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    (tmp_path / "torch/checkpoints").mkdir(parents=True)
    path = tmp_path / "torch/checkpoints/weights-inception-2015-12-05-6726825d.pth"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def coco(hub):
    """The first of the ten files of COCO's captions on the hub."""
    files = {f"data/train-0000{n}-of-00010-x.parquet": b"rows" * (n + 1) for n in range(10)}
    return hub.add(COCO, files, "datasets", revisions=(REVISION,))


def test_fid_of_photographs_is_measured_on_a_subset_of_coco_where_it_can_be_had(coco, inception):
    spec = RunSpec.of(compose(*PHOTOS))
    assert [download.line() for download in missing_downloads(spec)] == [f"prompt set {COCO}: 4 B from the hub"]
    assert left_out_metrics(spec) == {}
    assert find_problems(spec) == []


@pytest.mark.parametrize(
    ("words", "offline", "reason"),
    [((), True, "HF_HUB_OFFLINE is set"), (("fetch=never",), False, "fetch=never is set"), ((), False, "the hub has no such")],
)
def test_fid_of_photographs_is_left_out_with_one_line_where_there_are_no_real_images(
    words, offline, reason, hub, inception, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    spec = RunSpec.of(compose(*PHOTOS, *words))
    assert find_problems(spec) == []
    [line] = [line for line in find_warnings(spec) if "left out" in line]
    assert line.startswith(f"fid, kid left out: prompt set {COCO} is not in the hub's cache, and {reason}")


def test_without_inception_or_pyarrow_fid_of_photographs_is_left_out(coco, inception, monkeypatch):
    find_spec = importlib.util.find_spec
    spec = RunSpec.of(compose(*PHOTOS))
    monkeypatch.setattr("unlearnbench.data.prompt_sets.find_spec", lambda name: None if name == "pyarrow" else find_spec(name))
    assert "which pyarrow reads: pip install 'unlearnbench[datasets]'; " in left_out_metrics(spec)["fid"]
    monkeypatch.setattr("unlearnbench.data.prompt_sets.find_spec", find_spec)
    inception.unlink()
    monkeypatch.setattr("unlearnbench.metrics.backbones.INCEPTION_RELEASE", "http://127.0.0.1:9")
    assert left_out_metrics(spec)["kid"].startswith("Inception is not on this machine, and 127.0.0.1:9 cannot be")


def test_a_run_whose_metrics_are_all_left_out_is_refused(inception):
    problems = find_problems(RunSpec.of(compose(*PHOTOS, "metrics=fid")))
    assert problems == [*left_out_metrics(RunSpec.of(compose(*PHOTOS, "metrics=fid"))).values()]


def test_real_images_that_a_setting_names_are_required(inception):
    [problem] = find_problems(RunSpec.of(compose(*PHOTOS, "retain.images=coco30k")))
    assert problem.startswith(f"prompt set {COCO} is not in the hub's cache, and HF_HUB_OFFLINE is set")


def test_a_run_goes_on_without_fid_and_records_why(run, inception):
    done = run("model.domain=photo", "algo=none", "metrics=[integrity,fid]", "sample.per_prompt=1")
    assert {value.metric for value in done.values if value.table != "Cost"} == {"integrity"}
    assert [line for line in done.log["warnings"] if line.startswith("fid left out: ")]
    assert done.log["prompt_sets"] == {}


def test_a_clip_is_fetched_once_without_its_pickles(hub, command):
    hub.add("some/clip", WEIGHTS / "clip").files.update({"pytorch_model.bin": b"x", "tf_model.h5": b"x"})
    words = ["experiment=smoke", "metrics=clipscore", "metrics.clipscore.backbone=clip:some/clip"]
    assert "downloads: CLIP some/clip: " in command("check", *words).out
    assert command("fetch", *words).out == "1 downloaded, nothing is missing\n"
    assert {path.rpartition("/")[2] for path in hub.sent} == {path.name for path in (WEIGHTS / "clip").iterdir()}
    assert command("check", *words).out.count("downloads") == 0


def test_a_clip_of_pickles_is_refused(hub):
    hub.add("some/clip", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    [download] = network_downloads("CLIP", "some/clip")
    assert ", and it has no safetensors, and pickles are not opened; choose another; " in download.problem()


def test_pictoworld_and_tiny_need_nothing():
    for words in (("experiment=smoke",), ()):
        assert missing_downloads(RunSpec.of(compose(*words))) == []


# --- the estimate of check ----------------------------------------------------------------------------------------------


def test_check_estimates_a_real_checkpoint_without_a_gpu_and_without_the_hub(command, inception):
    words = ["model=sd14", "concept=church", "algo=esd_x", "metrics=integrity", "device=cuda"]
    checked = command("check", *words)
    assert checked.code == 2
    starts = [line.partition(":")[0] for line in checked.out.splitlines()]
    assert starts == ["disk", "work", "time", "training memory", "GPU memory"]
    lines = dict(line.split(": ", 1) for line in checked.out.splitlines())
    assert lines["GPU memory"] == (
        "4.3 GB for weights, and activations: 8.7 GB to sample a batch of 32; "
        "a batch fits of 3 into 8 GB, 24 into 12 GB, 32 into 16 GB"
    )
    own, *others, last = lines["time"].removeprefix("about ").split(", ")
    assert re.fullmatch(r"[\d:]+ on this machine's CPU as timed now", own)
    assert all(re.fullmatch(r"[\d:]+ on [\w ]+", other) for other in others)
    assert re.fullmatch(r"[\d:]+ on H100 in fp32; [\d:]+ of it here for metrics", last)
    assert "model CompVis/stable-diffusion-v1-4 is not in the hub's cache, and HF_HUB_OFFLINE is set" in checked.err
    assert "device=cuda: no CUDA device is available" in checked.err


def test_the_operations_of_sampling_are_those_of_the_shapes():
    spec = RunSpec.of(compose("model=sd14", "concept=church", "algo=none", "sample.steps=20", "sample.prompts=1"))
    images = len(spec.sample.limit(spec.prompts())) * spec.sample.per_prompt
    sampling, unlearning = operations(spec)
    assert sampling * 1000 / (2 * images) == pytest.approx(40 * 0.803 + 2.51)
    assert unlearning == 0


def test_the_time_is_that_of_the_timed_device(monkeypatch):
    spec = RunSpec.of(compose("model=sd14", "concept=church", "algo=none", "metrics=[integrity,clipscore]"))
    monkeypatch.setattr("unlearnbench.experiment.estimate.device_rate", lambda device, dtype: 1.0)
    [line] = [line for line in estimate_lines(spec) if line.startswith("time: ")]
    measuring, decoding = metric_work(spec)
    seconds = (sum(operations(spec)) + measuring) * 1000 + decoding
    assert line.startswith(f"time: about {format_duration(seconds)} on this machine's CPU as timed now, ")
    assert line.endswith(f"; {format_duration(measuring * 1000 + decoding)} of it here for metrics")
    images = 2 * len(spec.sample.limit(spec.prompts())) * spec.sample.per_prompt
    assert measuring * 1000 / images == pytest.approx(0.162 + 1.5 * 0.015)


def test_a_device_is_timed_by_operations_that_are_counted(monkeypatch):
    from torch.utils.flop_counter import FlopCounterMode

    monkeypatch.setattr(device_rate, "SECONDS", 0.0)
    times = iter([10.0, 10.0, 12.0])
    monkeypatch.setattr(device_rate.time, "perf_counter", lambda: next(times))
    with FlopCounterMode(display=False) as counter:
        rate = device_rate.device_rate.__wrapped__(torch.device("cpu"), torch.float32)
    attention = 4 * 2 * 8 * 1024**2 * 40  # which the counter leaves out on a CPU
    assert rate * 2e12 == pytest.approx(counter.get_total_flops() / 2 + attention, rel=0.01)  # two rounds, one of them timed


@pytest.mark.parametrize(
    ("model", "dtype", "memory", "least", "most"),
    [("sd14", "fp32", 24, 32, 80), ("sdxl", "bf16", 16, 15, 40), ("flux", "bf16", 24, 0, 0)],
)
def test_a_batch_fits_beside_the_weights(model, dtype, memory, least, most):
    model = RunSpec.of(compose(f"model={model}", f"model.dtype={dtype}", "concept=church")).model
    weights = {"fp32": 4, "bf16": 2}[dtype] * FIGURES[model.pipeline_class][0].parameters
    batch = largest_batch(model, weights, memory)
    assert least <= batch <= most
    if batch:
        assert weights + activations(model, batch) <= 0.92 * memory < weights + activations(model, batch + 1)


@pytest.mark.parametrize(("offload", "batch"), [("true", 32), ("false", 18)])
def test_text_encoders_that_leave_the_gpu_make_room_for_images(offload, batch, monkeypatch):
    monkeypatch.setattr("unlearnbench.experiment.estimate.GPU_SIZES", (16, 24))
    spec = RunSpec.of(compose("model=sd3", "concept=church", f"model.offload_text_encoders={offload}"))
    line = estimate_lines(spec)[-1]
    assert (", while 11.2 GB of text encoders are off the GPU; a batch fits of " in line) == (offload == "true")
    assert line.endswith(f" {batch} into 24 GB")
    assert "into 16 GB" not in line  # the weights alone do not fit
    assert largest_batch(spec.model, 10.0, 20.0, 4.0) == largest_batch(spec.model, 6.0, 20.0)


def test_the_memory_of_text_encoders_is_that_of_their_files(family_folder):
    folder = family_folder("sd3")
    spec = RunSpec.of(compose(*tiny_overrides("sd3", folder), "concept=church", "model.dtype=bf16"))
    encoders = spec.model.load(torch.device("cpu")).text_encoders()
    assert text_encoder_memory(spec.model, folder) == 2 * sum(p.numel() for encoder in encoders for p in encoder.parameters())


def test_a_disk_that_is_too_small_names_fewer_prompts(monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=60_000_000))
    spec = RunSpec.of(compose("model=sd14", "concept=church", "metrics=integrity"))
    [line] = [line for line in estimate_lines(spec) if line.startswith("disk: ")]
    fewer = int(line.rpartition("; take fewer: sample.prompts=")[2])
    assert 1 <= fewer < max(Counter(prompt.split for prompt in spec.prompts()).values())
    spec.sample.prompts = fewer
    assert [line for line in estimate_lines(spec) if line.startswith("disk: ") and line.endswith("60.0 MB are free")]


def test_the_embedded_models_have_no_estimate():
    assert estimate_lines(RunSpec.of(compose("experiment=smoke"))) == []
