"""`model.scheduler` and `model.clip_skip`: the images are those of diffusers' pipeline with the same scheduler."""

from __future__ import annotations

import diffusers
import pytest
import torch
from shared_examples import by_kind

from unlearnbench.config.build import build
from unlearnbench.config.compose import compose
from unlearnbench.config.errors import UserError
from unlearnbench.models.base import TextToImage
from unlearnbench.models.schedulers import SCHEDULERS
from unlearnbench.models.tiny_pipelines import make_tiny_pipeline, tiny_overrides
from unlearnbench.reports.model_card import loading_code
from unlearnbench.results.exported import Exported
from unlearnbench.results.run import Run
from unlearnbench.sampling import generate

PROMPTS, SEEDS, STEPS = ["a red church", "a blue star"], [1, 2], 4


def unloaded(family, path, *words):
    return build(compose(*tiny_overrides(family, path), *words).model, TextToImage, "model")


def reference(family, scheduler, **settings):
    """The images of diffusers' own pipeline, whose scheduler is changed as the papers' scripts do."""
    pipeline = make_tiny_pipeline(family)
    if scheduler is not None:
        pipeline.scheduler = getattr(diffusers, SCHEDULERS[scheduler]).from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    if family != "sdxl" and "clip_skip" in settings:  # diffusers looks for text_model, which transformers 5 no longer has
        encoder, skip = pipeline.text_encoder, settings.pop("clip_skip")
        for name, texts in (("prompt_embeds", PROMPTS), ("negative_prompt_embeds", ["", ""])):
            ids = pipeline.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
            states = encoder(ids, output_hidden_states=True).hidden_states[-1 - skip]
            settings[name] = getattr(encoder, "text_model", encoder).final_layer_norm(states).detach()
    prompts = None if "prompt_embeds" in settings else PROMPTS
    images = pipeline(
        prompts, num_inference_steps=STEPS, guidance_scale=2.0, height=32, width=32, output_type="np", generator=generators,
        **settings,
    ).images  # fmt: skip
    return torch.from_numpy((images * 255).round()).int()


def images(model):
    return generate(model.load(torch.device("cpu")), PROMPTS, SEEDS, STEPS, 2.0).int()


@pytest.mark.parametrize("name", by_kind(SCHEDULERS, ["pndm", "euler"]))
def test_a_scheduler_gives_the_images_of_diffusers(name, family_folder):
    same_images("sd15", name, family_folder)


@pytest.mark.parametrize(("family", "name"), [("sd21", "lms"), ("sdxl", "dpm++")])
def test_a_scheduler_gives_the_images_of_diffusers_on_another_family(family, name, family_folder):
    same_images(family, name, family_folder)


def same_images(family, name, family_folder):
    """The images of a scheduler are those of diffusers' pipeline with it."""
    model = unloaded(family, family_folder(family), f"model.scheduler={name}")
    assert (images(model) - reference(family, name)).abs().max() <= 1


def test_schedulers_differ_and_belong_to_the_fingerprint(family_folder):
    models = [
        unloaded("sd15", family_folder("sd15"), *words).load(torch.device("cpu")) for words in ([], ["model.scheduler=lms"])
    ]
    assert len({model.fingerprint() for model in models}) == 2
    assert (reference("sd15", None) - reference("sd15", "lms")).abs().max() > 3
    assert models[1].noise_scheduler.config.beta_end == models[0].noise_scheduler.config.beta_end


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_clip_skip_is_that_of_diffusers(family, family_folder):
    model = unloaded(family, family_folder(family), "model.clip_skip=1")
    assert (images(model) - reference(family, None, clip_skip=1)).abs().max() <= 1
    plain = unloaded(family, family_folder(family)).load(torch.device("cpu"))
    assert plain.fingerprint() != model.load(torch.device("cpu")).fingerprint()


@pytest.mark.parametrize(
    ("family", "words", "message"),
    [
        ("sd15", ["model.scheduler=dpm"], "scheduler: 'dpm'; did you mean 'dpm\\+\\+'"),
        ("sd15", ["model.clip_skip=2"], "model.clip_skip=2: the text encoder of .* has 2 layers; skip fewer"),
        ("sd15", ["model.clip_skip=-1"], "clip_skip"),
        ("flux", ["model.scheduler=lms"], "scheduler: a flow-matching model has its own scheduler"),
        ("sd3", ["model.clip_skip=1"], "clip_skip: a flow-matching model"),
    ],
)
def test_what_does_not_fit_is_refused_before_loading(family, words, message, family_folder):
    with pytest.raises(UserError, match=message):
        raise UserError(unloaded(family, family_folder(family), *words).unavailable_reason() or "nothing")


def test_the_card_of_an_export_sets_the_scheduler_and_clip_skip(tmp_path):
    settings = {"path": "CompVis/stable-diffusion-v1-4", "size": 512, "scheduler": "lms", "clip_skip": 1}
    log = {"config": {"model": settings, "sample": {"steps": 50, "guidance": 7.5}}, "scheduler": "LMSDiscreteScheduler"}
    exported = Exported("unet", "unet.safetensors", False, "StableDiffusionPipeline", "unet", "fp32", "")
    code = loading_code(Run(tmp_path, log), exported)
    assert "from diffusers import StableDiffusionPipeline, LMSDiscreteScheduler" in code
    assert "pipe.scheduler = LMSDiscreteScheduler.from_config(pipe.scheduler.config)" in code
    assert "width=512, clip_skip=1, generator" in code
