"""Activations of training, counted on the meta device, against what torch saves in a real forward pass."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from unlearnbench.config.compose import compose
from unlearnbench.experiment import estimate
from unlearnbench.experiment.activations import RELEASED, HeldMemory, training_memory
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.models.tiny_pipelines import tiny_overrides

CPU = torch.device("cpu")


def spec_of(family, folder, *overrides):
    return RunSpec.of(compose(*tiny_overrides(family, folder), "model.checkpointing=false", "concept=church", *overrides))


def saved_bytes(spec, batch):
    """The bytes of all distinct storages that a real pass saves for the backward pass, without parameters and inputs."""
    model = spec.model.load(CPU)
    parameters = spec.algo.trainable(model, torch.Generator())
    inputs = torch.randn(batch, *model.latent_shape()), torch.full((batch,), 500)
    with torch.no_grad():
        conditioning = model.encode_prompts(["a red church"] * batch)
    others = [*inputs, *conditioning.values(), *model.modules()[model.denoiser].state_dict().values()]
    storages = {}

    def keep(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        prediction = model.predict(*inputs, conditioning)
        assert parameters
        assert prediction.requires_grad
        for tensor in [*others, prediction]:
            storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


@pytest.mark.parametrize(
    ("family", "train"),
    [("sd15", "xattn"), ("sd15", "full"), ("sd15", "lora"), ("sdxl", "full"), ("sd3", "full"), ("flux", "full")],
)
def test_what_a_forward_pass_saves_is_what_torch_saves(family, train, family_folder):
    spec = spec_of(family, family_folder(family), "algo=ga", f"algo.train={train}")
    counted = training_memory(spec.model, spec.algo, 8)
    assert counted.saved == pytest.approx(saved_bytes(spec, 8), rel=0.04)
    assert spec.model.pipeline is None  # nothing is loaded


def test_the_count_grows_with_the_batch_and_is_less_with_checkpointing(family_folder):
    spec = spec_of("sd15", family_folder("sd15"), "algo=esd_x")
    one, four = (training_memory(spec.model, spec.algo, batch) for batch in (4, 16))
    assert four.saved == pytest.approx(4 * one.saved, rel=0.02)
    assert four.peak >= four.saved - 4 * four.trained
    spec.model.checkpointing = True
    recomputed = training_memory(spec.model, spec.algo, 16)
    assert recomputed.saved < 0.5 * four.saved
    assert recomputed.peak < 0.8 * four.peak


def test_half_precision_takes_less(family_folder):
    full, half = (spec_of("sd15", family_folder("sd15"), "algo=esd_x", f"model.dtype={dtype}") for dtype in ("fp32", "bf16"))
    assert training_memory(half.model, half.algo, 16).peak < 0.85 * training_memory(full.model, full.algo, 16).peak


def test_storages_are_held_until_they_are_freed():
    with HeldMemory() as memory:
        first = torch.zeros(10)
        view = first[2:]
        second = torch.zeros(5)
        assert memory.held == 60
        del first, second
        assert memory.held == 40
        del view
    assert (memory.held, memory.peak) == (0, 60)


def test_a_training_of_stable_diffusion_is_estimated_without_its_files(monkeypatch):
    """Measured on an H100 for this training: 6.6 GB, of which weights and training state are 5.0 (docs/gpu.md)."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    spec = RunSpec.of(compose("model=sd14", "algo=ga", "algo.train=xattn", "algo.batch=1", "concept=church"))
    line = estimate.training_line(spec)
    assert line == "training memory: 6.6 GB, 1.4 GB of it activations of the denoiser for 1 image; fits into 8 GB"


@pytest.mark.parametrize(("device", "memory"), [("cuda:0", "2.0 GB"), ("cuda:1", "80.0 GB"), ("cpu", None)])
def test_the_memory_is_that_of_the_gpu_that_the_run_takes(device, memory, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    sizes = {0: 2 * 10**9, 1: 80 * 10**9}
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: SimpleNamespace(total_memory=sizes[device.index]))
    spec = RunSpec.of(compose("model=sd14", "algo=none", "concept=church", f"device={device}"))
    line = estimate._memory_line(spec.model, spec)
    assert f"; the GPU has {memory}" in line if memory else "a batch fits of" in line
    training = RunSpec.of(compose("model=sd14", "algo=ga", "algo.batch=1", "concept=church", f"device={device}"))
    counted = SimpleNamespace(trained=0, peak=5 * 10**9)
    monkeypatch.setattr(estimate, "training_memory", lambda *_: counted)
    assert ("more than 2 GB" in estimate.training_line(training)) is (device == "cuda:0")


def test_what_cannot_be_counted_is_said_and_stops_nothing(monkeypatch):
    spec = RunSpec.of(compose("model=sd14", "model.path=some/model", "algo=esd_x", "concept=church"))
    reason = "the settings of some/model are not on this machine"
    assert estimate.training_line(spec) == f"training memory: activations not counted: {reason}"
    monkeypatch.setattr(estimate, "training_memory", lambda *_: 1 / 0)
    assert estimate.training_line(spec) == "training memory: activations not counted: division by zero"


@pytest.mark.parametrize("algo", ["uce", "redirect", "none"])
def test_a_method_without_a_pass_that_trains_has_no_line(algo):
    assert estimate.training_line(RunSpec.of(compose("model=sd14", f"algo={algo}", "concept=church"))) == ""


def test_a_training_that_is_too_large_names_what_takes_less(monkeypatch):
    monkeypatch.setattr(estimate, "GPU_SIZES", (8,))
    spec = RunSpec.of(compose("model=sd14", "algo=grad_diff", "concept=church", "algo.batch=4"))
    line = estimate.training_line(spec)
    assert "activations of the denoiser for 8 images, more than 8 GB; try model.checkpointing=true or model.dtype=bf16 or" in line


def test_the_settings_of_every_released_family_are_known():
    paths = {
        RunSpec.of(compose(f"model={name}", "concept=church")).model.path for name in ("sd14", "sd15", "sd21", "sdxl", "sd3")
    }
    paths |= {RunSpec.of(compose(f"model={name}", "concept=church")).model.path for name in ("sd35", "flux")}
    assert paths == set(RELEASED)
