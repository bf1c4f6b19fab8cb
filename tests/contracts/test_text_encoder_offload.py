"""Text encoders leave the GPU while the denoiser works, on a device that is pretended; images stay what they are."""

from __future__ import annotations

import pytest
import torch
from fake_cuda import CUDA, There, pretended
from shared_examples import by_kind

from unlearnbench.algos.negative_prompt import NegativePromptGuidance
from unlearnbench.config.build import build
from unlearnbench.config.compose import compose
from unlearnbench.data.prompts import Prompt
from unlearnbench.models.base import TextToImage
from unlearnbench.models.tiny_pipelines import tiny_overrides
from unlearnbench.sampling import ImageGenerator, Sampling, SamplingBatch, sample

PROMPTS = [Prompt(f"a {color} star", "forget") for color in ("red", "blue", "large", "left", "the")]
SETTINGS = Sampling(steps=2, guidance=2.0, batch=2, per_prompt=1)


class Watched(ImageGenerator):
    """Notes whether text encoders are on the GPU, at each call of one and of the denoiser."""

    def __init__(self, model, guidance=None):
        super().__init__(model, guidance)
        self.at_encoding, self.at_denoising = [], []
        model.text_encoders()[0].register_forward_pre_hook(lambda *_: self.at_encoding.append(on_gpu(model)))
        model.modules()[model.denoiser].register_forward_pre_hook(lambda *_: self.at_denoising.append(on_gpu(model)))


def on_gpu(model):
    """Whether each text encoder has a parameter on the GPU."""
    return [any(isinstance(parameter, There) for parameter in encoder.parameters()) for encoder in model.text_encoders()]


@pytest.fixture
def load(family_folder):
    """Loads the tiny model of a family onto the pretended GPU, with text encoders that stay there or that leave it."""

    def of_family(family, offload):
        words = [*tiny_overrides(family, family_folder(family)), f"model.offload_text_encoders={str(offload).lower()}"]
        return build(compose(*words).model, TextToImage, "model").load(CUDA)

    with pretended():
        yield of_family


@pytest.mark.parametrize("family", by_kind(("sd15", "sdxl", "sd3", "flux"), ("sd3",)))
def test_encoders_are_off_the_gpu_while_the_denoiser_works_and_images_are_equal(family, load, tmp_path):
    images, generators = {}, {}
    for offload in (False, True):
        generators[offload] = Watched(load(family, offload))
        images[offload] = sample("", generators[offload], PROMPTS, SETTINGS, tmp_path / str(offload)).pixels()
    assert torch.equal(images[False], images[True])
    stay, leave = generators[False], generators[True]
    assert len(stay.at_denoising) == len(leave.at_denoising)
    assert all(all(states) for states in stay.at_denoising)
    assert not any(any(states) for states in leave.at_denoising)
    assert (len(stay.at_encoding), len(leave.at_encoding)) == (6, 4)  # three batches, and the empty prompt
    assert all(on_gpu(leave.model))
    assert leave.model.encode_prompts(["a star"])["prompt_embeds"].device == CUDA


def test_prompts_are_encoded_in_blocks_of_whole_batches(load, tmp_path, monkeypatch):
    monkeypatch.setattr(ImageGenerator, "encoded_ahead", 4)
    model = load("flux", True)
    generator, moves, move = Watched(model), [], model.text_encoder.to
    monkeypatch.setattr(model.text_encoder, "to", lambda device: moves.append(str(device)) or move(device))
    sample("", generator, PROMPTS, SETTINGS, tmp_path / "blocks")
    assert [device for device, previous in zip(moves, [None, *moves], strict=False) if device != previous] == [
        *["cuda:0", "cpu"] * 2, "cuda:0",
    ]  # fmt: skip
    assert len(generator.at_encoding) == 3 + 2
    assert generator._encoded == {}


def test_a_guidance_that_encodes_in_each_batch_brings_them_back_and_off_again(load, tmp_path):
    guidance = NegativePromptGuidance("a blue tree")
    images = []
    for offload in (False, True):
        generator = Watched(load("sd3", offload), guidance)
        images.append(sample("", generator, PROMPTS, SETTINGS, tmp_path / str(offload)).pixels())
    assert torch.equal(*images)
    assert not any(any(states) for states in generator.at_denoising)
    assert len(generator.at_encoding) == 3 + 1 + 3


def test_a_batch_that_does_not_fit_is_still_halved(load, tmp_path, monkeypatch):
    model = load("flux", True)
    whole = sample("", ImageGenerator(model), PROMPTS[:3], SETTINGS, tmp_path / "whole").pixels()
    decode, tried = type(model).decode, []

    def small(self, latents):
        tried.append(len(latents))
        if len(latents) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(self, latents)

    monkeypatch.setattr(type(model), "decode", small)
    generator = Watched(model)
    halved = sample("", generator, PROMPTS[:3], SETTINGS, tmp_path / "halved").pixels()
    assert (whole.int() - halved.int()).abs().max() <= 1
    assert tried == [2, 1, 1, 1]
    assert not any(any(states) for states in generator.at_denoising)
    assert all(on_gpu(model))


def test_prompts_that_do_not_fit_ahead_are_encoded_in_their_batch(load, monkeypatch):
    model = load("flux", True)
    encode, sizes = type(model).encode_prompts, []

    def small(self, prompts):
        sizes.append(len(prompts))
        if len(prompts) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(self, prompts)

    monkeypatch.setattr(type(model), "encode_prompts", small)
    generator, batch = ImageGenerator(model), SamplingBatch(["a star", "a tree"], [1, 2], 2, 2.0)
    with generator.job():
        assert len(next(generator.batches([batch]))) == 2
    assert sizes == [1, 2, 2, 1, 1, 1, 1]


def test_they_stay_on_the_cpu_and_outside_of_jobs(load, tiny):
    tiny.offload_text_encoders = True
    with tiny.text_encoders_on_demand():
        assert not tiny.encodes_on_demand
    generator = Watched(load("flux", True))
    generator.batch(SamplingBatch(["a star"], [1], 2, 2.0))
    assert generator.at_denoising == [[True, True]] * 2
