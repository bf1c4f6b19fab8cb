"""What runs on a GPU keeps its tensors together there, on a device that is pretended, and comes to what it does on the CPU."""

from __future__ import annotations

import gc
import shutil
import weakref

import pytest
import torch
from config_classes import classes_of
from fake_cuda import CUDA, There, pretended
from quick_copy import copied
from shared_examples import by_kind, tiny_examples, unlearn

from unlearnbench.config.compose import compose
from unlearnbench.config.errors import RunError
from unlearnbench.config.paths import choices
from unlearnbench.experiment.attack import attack
from unlearnbench.experiment.attacked import load_attacked_model
from unlearnbench.experiment.run import execute
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.metrics.backbones import _make, backbone
from unlearnbench.metrics.detectors.clip import nearest_labels
from unlearnbench.metrics.devices import free_gpu
from unlearnbench.metrics.image_distances import lpips_network, pair_distances
from unlearnbench.models.tiny_pipelines import tiny_overrides
from unlearnbench.sampling import generate

CPU = torch.device("cpu")
LATER_STEPS = ("ga", "eupmu", "surgery", "receler", "adv_unlearn")  # Adam's moments, and methods that keep a state
FEWEST = {"population": 4}  # smallest value of a setting; 2 for the others


@pytest.fixture
def on(monkeypatch):
    """Makes everything run on a device, the CPU or the one that is pretended; networks that went there are forgotten."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "pretended")
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2**20)

    def choose(device):
        for module in ("run", "attack"):
            monkeypatch.setattr(f"unlearnbench.experiment.{module}.select_device", lambda spec: device)

    with pretended():
        yield choose
        free_gpu(CUDA)
    for network in (_make, lpips_network):
        network.cache_clear()


def unlearned(algo, model, examples, concept):
    """The parameters that an algorithm changed; and an image, where it guides the sampling or adds modules."""
    before = {name for name, _ in model.named_parameters()}
    names, guidance = unlearn(algo, model, examples, concept)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters() if name in set(names)}
    own_sampling = guidance is not None or not parameters.keys() <= before
    return parameters, generate(model, ["a red church on the left"], [1], 2, 2.0, guidance) if own_sampling else None


def same(there, here):
    """Whether parameters and images are those of the CPU, and the parameters are on the GPU."""
    (parameters, images), (others, expected) = there, here
    assert parameters.keys() == others.keys()
    for name, parameter in parameters.items():
        assert isinstance(parameter, There)
        assert torch.equal(parameter.held, others[name])
    assert (images is None) == (expected is None)
    assert images is None or (type(images) is torch.Tensor and torch.equal(images, expected))


@pytest.mark.parametrize("name", by_kind([*classes_of("algo"), "ca_noise", "substitute_text"], ("uce", "receler")))
def test_an_algorithm_does_there_what_it_does_here(name, loaded, examples, algo_spec):
    settings = {"few": 2, "steps": 2 if name in LATER_STEPS else 1, "batch": 2}
    spec = algo_spec(name, **settings)
    here = unlearned(spec.algo, copied(loaded), examples, spec.concept)
    with pretended():
        spec = algo_spec(name, **settings)
        same(unlearned(spec.algo, spec.model.load(CUDA), examples, spec.concept), here)


@pytest.fixture(scope="module", params=["sd15", "sdxl", "sd3", "flux"])
def family(request, family_folder):
    """The words that choose a tiny pipeline of a family."""
    return tiny_overrides(request.param, family_folder(request.param))


@pytest.mark.thorough
@pytest.mark.parametrize("more", ["redirect", "substitute", "random_label algo.train=lora model.dtype=bf16"])
def test_a_family_does_there_what_it_does_here(family, more):
    words = [*family, f"algo={more}", "algo.steps=1", "algo.batch=2", "concept=church"]
    words.append("model.checkpointing=false")  # whose second computation is in a thread where nothing is pretended
    config = compose(*" ".join(words).split())

    def on(device):
        spec = RunSpec.of(config)
        model = spec.model.load(device)
        parameters, _ = unlearned(spec.algo, model, tiny_examples(model), spec.concept)
        return parameters, generate(model, ["a red church on the left"], [1], 2, 2.0)

    here = on(CPU)
    with pretended():
        same(on(CUDA), here)


def rows(run):
    """The values of a run but for its cost."""
    return [vars(value) for value in run.values if value.table != "Cost"]


def but_for_rounding(row):
    """The values in a row: where a tensor starts elsewhere in memory, some CPUs add up in another order."""
    near = {key: pytest.approx(value, rel=1e-2, abs=1e-4) for key, value in row.items() if isinstance(value, float | dict)}
    return row | near


def test_a_whole_run_there_has_the_tables_of_one_here(smoke, on, tmp_path):
    words = ["experiment=smoke", f"cache={tmp_path / 'cache'}"]
    on(CUDA)
    done = execute(RunSpec.of(compose(*words)), tmp_path / "run", words)
    assert done.log["device"] == "pretended"
    assert done.log["cost"]["peak_memory_mb"] == 1
    assert rows(done) == [but_for_rounding(row) for row in rows(smoke)]


def test_the_diffusion_model_is_freed_before_metrics_are_measured_though_a_cycle_holds_it(on, tmp_path, monkeypatch):
    on(CUDA)
    spec, models = RunSpec.of(compose("experiment=smoke", f"cache={tmp_path / 'cache'}")), []
    load, held = spec.model.load, []

    def load_in_a_cycle(device):
        model = load(device)
        model.itself = model
        models.append(weakref.ref(model.unet))
        return model

    def measure_images(*_):
        held.append(models[0]() is not None)
        return []

    spec.model.load = load_in_a_cycle
    monkeypatch.setattr("unlearnbench.experiment.run.measure_images", measure_images)
    gc.disable()
    try:
        execute(spec, tmp_path / "run", [])
    finally:
        gc.enable()
    assert held == [False]


def test_networks_of_metrics_leave_the_gpu_before_a_diffusion_model_is_loaded(on, tmp_path):
    on(CUDA)
    networks, places = [backbone("clip-pictoworld", ""), backbone("classifier", "")], []

    def load(device):
        modules = [*(network.model for network in networks), lpips_network("alex")]
        places.append({type(p) for module in modules for p in module.parameters()})
        raise RunError("loaded")

    spec = RunSpec.of(compose("experiment=smoke"))
    spec.model.load = load
    for loading in (
        lambda: load_attacked_model(spec.model, tmp_path / "weights.safetensors", CUDA, None),
        lambda: execute(spec, tmp_path / "run", []),
    ):
        for network in networks:
            network.load(CUDA)
        assert all(isinstance(p, There) for p in networks[0].model.parameters())
        pair_distances("lpips-alex", *torch.zeros(2, 1, 64, 64, 3, dtype=torch.uint8), CUDA)
        with pytest.raises(RunError, match="loaded"):
            loading()
    assert places == [{torch.nn.Parameter}] * 2
    networks[0].load(CUDA)
    features = networks[0].text(["a photo of church"])
    free_gpu(CUDA)
    assert nearest_labels(features, ["fish", "church"], "clip-pictoworld") == ["church"]


@pytest.mark.parametrize("name", by_kind(choices("attack"), ("unlearndiffatk", "completion")))
def test_an_attack_there_asks_what_it_asks_here(name, smoke, on, tmp_path):
    method = compose("+attack=" + name).attack
    counts = {key: FEWEST.get(key, 2) for key, value in method.items() if type(value) is int and value > 2}
    few = ["attack.prompts=2", "attack.per_prompt=1", *(f"attack.{key}={count}" for key, count in counts.items())]
    reports = []
    for device in (CPU, CUDA):
        on(device)
        shutil.copytree(smoke.folder, tmp_path / device.type)
        cache = tmp_path / "cache"  # of this attack alone: both generate the original's images, in batches of one size
        reports.append(attack(tmp_path / device.type, f"attack={name}", *few, f"cache={cache}"))
        shutil.rmtree(cache)
    here, there = reports
    assert (here.pop("device"), there.pop("device")) == ("cpu", "cuda")
    assert {k: v for k, v in there.items() if "seconds" not in k} == {k: v for k, v in here.items() if "seconds" not in k}
