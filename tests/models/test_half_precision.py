"""Sampling in half precision has no autocast: weights that trained have copies in half precision meanwhile."""

from __future__ import annotations

from types import SimpleNamespace

import gpu_count
import pytest
import torch
from fake_cuda import CUDA, pretended
from shared_examples import by_kind, tiny_examples, unlearn

from unlearnbench.config.compose import compose
from unlearnbench.experiment import preflight
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.models.parameters import backpropagate, gradients
from unlearnbench.models.tiny_pipelines import make_tiny_pipeline, tiny_overrides
from unlearnbench.sampling import generate

CPU = torch.device("cpu")


def load(family_folder, family, dtype):
    return RunSpec.of(
        compose(*tiny_overrides(family, family_folder(family)), f"model.dtype={dtype}", "concept=church")
    ).model.load(CPU)


@pytest.mark.parametrize("family", by_kind(["sd15", "sdxl", "sd3", "flux"], ["sd15", "flux"]))
def test_images_in_half_precision_are_those_of_full_precision_to_rounding(family, family_folder):
    full, half = (
        generate(load(family_folder, family, dtype), ["a red church", "a tree"], [1, 2], 3, 2.0).int()
        for dtype in ("fp32", "bf16")
    )
    assert (full - half).abs().float().mean() < 3


def test_what_trained_is_in_half_precision_while_sampling_and_itself_again_after(family_folder):
    model = load(family_folder, "sd15", "bf16")
    trained = [parameter for name, parameter in model.named_parameters() if "attn2" in name]
    for parameter in trained:
        parameter.data = parameter.data.float()
    before = dict(model.named_parameters())
    with model.sampling_precision():
        assert {value.dtype for value in model.unet.state_dict().values()} == {torch.bfloat16}
        with model.autocast():
            assert not torch.is_autocast_enabled("cpu")
        assert model.in_half(torch.zeros(1)).dtype == torch.bfloat16
        with model.sampling_precision():
            pass
        assert model.plain_half
    after = dict(model.named_parameters())
    assert all(after[name] is value for name, value in before.items())
    assert all(parameter.dtype == torch.float32 for parameter in trained)
    with pytest.raises(ZeroDivisionError), model.sampling_precision():
        raise ZeroDivisionError
    assert not model.plain_half
    assert {parameter.dtype for parameter in trained} == {torch.float32}


def test_full_precision_is_sampled_as_it_is(tiny):
    with tiny.sampling_precision():
        assert not tiny.plain_half
        assert {value.dtype for value in tiny.unet.parameters()} == {torch.float32}


@pytest.mark.thorough
@pytest.mark.parametrize("algo", ["receler", "spm", "sld", "safree", "redirect", "esd_x algo.train=lora", "adv_unlearn", "mace"])
def test_every_kind_of_adapter_and_guidance_samples_in_half_precision(algo, family_folder):
    words = [*tiny_overrides("sd15", family_folder("sd15")), "model.dtype=bf16", "concept=church"]
    config = compose(*words, *f"algo={algo}".split())
    for name, value in config.algo.items():
        if type(value) is int and value > 2:
            config.algo[name] = 2
    spec = RunSpec.of(config)
    model = spec.model.load(CPU)
    result = spec.algo.unlearn(model, *tiny_examples(model), spec.concept, 0)
    images = generate(model, ["a red church", "a tree"], [1, 2], 2, 2.0, result.guidance)
    assert images.shape == (2, model.size, model.size, 3)


@pytest.mark.skipif(gpu_count.NEEDS_DRIVER, reason="this torch asks CUDA's driver about fake tensors, and there is none")
def test_a_call_of_ours_has_the_kernels_of_diffusers(monkeypatch):
    monkeypatch.setattr(gpu_count, "full_size", lambda family: make_tiny_pipeline("sd15"))
    monkeypatch.setattr(gpu_count, "CASES", {"sd14": 2})
    counts = gpu_count.counted("sd14")
    (plain, decoding), *ours = counts["diffusers"], counts["original"], counts["unlearned"]
    assert plain.kernels > 50
    for call, pixels in ours:
        assert call.kernels <= plain.kernels * 1.05 + 3
        assert call.gigabytes <= plain.gigabytes * 1.05 + 1e-5
        assert pixels.kernels <= decoding.kernels * 1.05 + 3


# --- training in fp16 ---------------------------------------------------------------------------------------------------

FP16 = SimpleNamespace(dtype="fp16", device=CUDA)


@pytest.mark.parametrize("slope", [1e-9, 1.0, 1000.0])
def test_gradients_that_fp16_rounds_to_0_or_to_infinity_are_right_where_the_loss_is_scaled(slope):
    weight, unused = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    value, nothing = gradients((weight.half().float() * slope).sum(), [weight, unused], FP16)
    torch.testing.assert_close(value, torch.full((3,), slope), rtol=0.02, atol=0)
    assert nothing is None
    assert weight.grad is None
    for _ in range(2):
        backpropagate((weight.half().float() * slope).sum(), [weight, unused], FP16)
    torch.testing.assert_close(weight.grad, torch.full((3,), 2 * slope), rtol=0.02, atol=0)
    assert unused.grad is None


@pytest.mark.parametrize(("dtype", "device"), [("fp32", CUDA), ("bf16", CUDA), ("fp16", CPU)])
def test_the_loss_is_scaled_in_fp16_on_a_gpu_alone(dtype, device):
    weight = torch.ones(3, requires_grad=True)
    model = SimpleNamespace(dtype=dtype, device=device)
    [value] = gradients((weight.half().float() * 1e-9).sum(), [weight], model)
    backpropagate((weight.half().float() * 1e-9).sum(), [weight], model)
    assert torch.equal(value, torch.zeros(3))
    assert torch.equal(weight.grad, torch.zeros(3))


def test_a_gradient_that_is_infinite_in_full_precision_stays_so():
    weight = torch.ones(1, requires_grad=True)
    assert gradients((weight.half().float() * 1e6).sum(), [weight], FP16)[0].isinf().all()


# adv_unlearn also calls `gradients`; autocast of the CPU, which the pretended GPU has, cannot encode its prompts in fp16
TRAINING = ("ga", "salun", "sa", "scissorhands", "erase_diff", "surgery", "receler", "eap", "stereo", "mace")


@pytest.mark.parametrize("name", by_kind(TRAINING, ("ga", "surgery", "mace")))
def test_every_gradient_of_a_method_in_fp16_on_a_gpu_is_of_a_scaled_loss(name, algo_spec, monkeypatch):
    kept, grad = [], torch.autograd.grad

    def recorded(loss, *parts, **settings):
        kept.append(settings.get("retain_graph"))
        return grad(loss, *parts, **settings)

    monkeypatch.setattr(torch.autograd, "grad", recorded)
    monkeypatch.setattr(torch.Tensor, "backward", None)
    with pretended():
        spec = algo_spec(name, steps=1, batch=2, few=2)
        spec.model.dtype = "fp16"
        model = spec.model.load(CUDA)
        names, _ = unlearn(spec.algo, model, tiny_examples(model), spec.concept)
        trained = [parameter for own, parameter in model.named_parameters() if own in set(names)]
        assert all(parameter.isfinite().all() for parameter in trained)
    assert {*kept} == {True}  # as where the loss is scaled and may be scaled anew


def test_training_in_fp16_on_a_gpu_is_not_warned_of(monkeypatch):
    spec = RunSpec.of(compose("experiment=smoke", "model.dtype=fp16"))
    monkeypatch.setattr(preflight, "select_device", lambda name: CUDA)
    assert not any("gradients are not scaled" in line for line in preflight.find_warnings(spec))
