"""Sampling in half precision has no autocast: weights that trained have copies in half precision meanwhile."""

from __future__ import annotations

import gpu_count
import pytest
import torch
from shared_examples import by_kind, tiny_examples

from unlearnbench.config.compose import compose
from unlearnbench.experiment.run_spec import RunSpec
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
