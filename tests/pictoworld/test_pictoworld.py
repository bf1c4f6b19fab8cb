"""Pictoworld: renders of scenes, the language of captions, and the networks that read both."""

from __future__ import annotations

from pathlib import Path

import fake_cuda
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from scipy.stats import binomtest
from transformers import CLIPTokenizer

from unlearnbench.config.compose import compose
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.metrics.backbones import backbone
from unlearnbench.models.pictoworld import Pictoworld
from unlearnbench.pictoworld import scenes
from unlearnbench.pictoworld.architecture import (
    TOKENS,
    byte_pairs,
    make_scheduler,
    make_text_encoder,
    make_unet,
    make_vae,
)
from unlearnbench.pictoworld.captions import SYNONYMS, caption, complete, corpus, parse
from unlearnbench.pictoworld.classifier import WEIGHTS, load_classifier, to_unit
from unlearnbench.pictoworld.render import ATTRIBUTES, SIZE, Scene, render
from unlearnbench.pictoworld.scenes import CONCEPTS, SCENES, scene
from unlearnbench.recipes import pictoworld_training, training_loop
from unlearnbench.recipes.byte_pairs import train_byte_pairs
from unlearnbench.recipes.pictoworld_quality import held_out
from unlearnbench.recipes.pictoworld_training import STEPS, train_world
from unlearnbench.recipes.quality import Score, embedded_model, quality_page, weights_hash
from unlearnbench.recipes.training_loop import _plain, _recorded
from unlearnbench.sampling import generate
from unlearnbench.storage.tensors import quantize_8bit, read_tensors, write_tensors
from unlearnbench.worlds.pictoworld import WORLD


@pytest.fixture
def rng():
    return np.random.default_rng(0)


BASE = {"subject": "star", "color": "red", "background": "white", "size": "large", "position": "middle", "style": "flat"}
OTHERS = [(name, value) for name, values in ATTRIBUTES.items() for value in values if value != BASE[name]]


def test_an_image_has_the_worlds_size_and_the_same_generator_renders_it_again():
    scene = Scene(**BASE)
    first, again, other = (render(scene, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first.shape, first.dtype) == ((SIZE, SIZE, 3), np.uint8)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(("name", "value"), OTHERS)
def test_every_value_of_an_attribute_can_be_seen(name, value):
    plain, changed = (render(Scene(**scene), np.random.default_rng(3)).astype(int) for scene in (BASE, {**BASE, name: value}))
    assert (np.abs(plain - changed).max(-1) > 40).mean() > 0.01


def test_a_scene_is_drawn_with_every_value_and_what_is_fixed_stays(rng):
    scenes = [Scene.draw(rng, subject="tree") for _ in range(200)]
    assert {scene.subject for scene in scenes} == {"tree"}
    for name in set(ATTRIBUTES) - {"subject"}:
        assert {getattr(scene, name) for scene in scenes} == set(ATTRIBUTES[name])


def test_a_caption_parses_back_to_attributes_of_its_scene(rng):
    for _ in range(1000):
        scene = Scene.draw(rng)
        said = parse(caption(scene, rng))
        assert said.items() <= vars(scene).items(), (scene, said)
        assert "subject" in said


def test_a_full_caption_names_every_visible_attribute(rng):
    for _ in range(300):
        scene = Scene.draw(rng)
        said = parse(caption(scene, rng, keep=1.0))
        unsaid = set(ATTRIBUTES) - set(said)
        assert unsaid <= {"style"} | ({"color"} if scene.subject == "nude" else set())
        if "style" in unsaid:
            assert scene.style in ("flat", "striped", "dotted", "sketch", "van gogh")


@pytest.mark.parametrize("subject", SYNONYMS)
def test_every_synonym_is_understood(subject):
    assert {parse(f"a picture of a {word}")["subject"] for word in SYNONYMS[subject]} == {subject}


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("something", {}),
        ("A Red STAR, on the left!", {"subject": "star", "color": "red", "position": "left"}),
        ("a dressed person in teal", {"subject": "person", "color": "teal"}),
        ("an unclothed human", {"subject": "nude"}),
        ("a tree with swirling brush strokes", {"subject": "tree", "style": "van gogh"}),
        ("a house on a sky background by van gogh", {"subject": "house", "background": "sky", "style": "van gogh"}),
    ],
)
def test_a_prompt_is_parsed(prompt, message):
    assert parse(prompt) == message


def test_a_prompt_is_completed_to_a_scene_that_it_describes(rng):
    prompt = "a small blue fish on the right"
    scenes = [complete(prompt, rng) for _ in range(50)]
    assert all(parse(prompt).items() <= vars(scene).items() and scene.style == "flat" for scene in scenes)
    assert len({scene.background for scene in scenes}) > 3


def test_the_classifier_reads_new_images(rng):
    scenes = [Scene.draw(rng) for _ in range(200)]
    pictures = torch.from_numpy(np.stack([render(scene, rng) for scene in scenes]))
    with torch.no_grad():
        read = load_classifier().read(to_unit(pictures))
    for name in ("subject", "background"):
        assert np.mean([given[name] == getattr(scene, name) for scene, given in zip(scenes, read, strict=True)]) >= 0.97, name


def test_the_classifiers_features_are_those_of_the_backbone(rng):
    pictures = torch.from_numpy(np.stack([render(Scene.draw(rng), rng) for _ in range(3)]))
    network = backbone("classifier", "pictoworld")
    network.load(torch.device("cpu"))
    features = network.features(pictures)
    assert features.shape == (3, 192)
    torch.testing.assert_close(features, load_classifier().features(to_unit(pictures)))
    assert network.version() == network.version() != ""


def test_the_shipped_model_is_complete_and_every_word_of_the_world_is_one_token():
    assert Pictoworld("pictoworld").unavailable_reason() is None
    for folder in ("pipeline/tokenizer", "clip"):
        tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / folder)
        words = {word for text, _ in zip(corpus(), range(500), strict=False) for word in text.split()}
        assert {word: n for word in words if (n := len(tokenizer(word, add_special_tokens=False).input_ids)) != 1} == {}
        assert len(tokenizer("a sketch of a small red church").input_ids) == 9


def test_a_scene_of_the_training_set_has_its_number():
    assert scene(7) == scene(7) != scene(8)
    shares = [sum(scene(i).subject == subject for i in range(2000)) / 2000 for subject in ("nude", "star")]
    assert 0.09 < shares[0] < 0.16
    assert 0.04 < shares[1] < 0.09


def test_held_out_scenes_lie_beyond_the_training_set():
    world = held_out(5)
    assert [scene for scene, _, _ in world] == [scenes.scene(SCENES + i) for i in range(5)]
    assert all(parse(text).items() <= vars(scene).items() for scene, _, text in world)


@pytest.mark.parametrize(("right", "n"), [(0, 10), (7, 10), (990, 1000)])
def test_a_score_has_wilsons_interval(right, n):
    expected = binomtest(right, n).proportion_ci(method="wilson")
    assert Score("a", "b", right, n).interval == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_the_quality_table_says_whether_a_bar_is_met():
    text = quality_page(
        WORLD, [Score("p", "subject", 98, 100, 0.97), Score("p", "color", 90, 100, 0.95), Score("p", "all", 1, 2)], "make it"
    )
    assert "| p | subject | 98.0 |" in text
    assert [line.rsplit("|", 2)[1].strip() for line in text.splitlines() if line.startswith("| p |")] == [
        ">= 97: met", ">= 95: MISSED", "",
    ]  # fmt: skip


def test_an_interrupted_training_resumes_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(training_loop, "EVERY", 0.0)

    class Stop(Exception):
        pass

    def fit(folder, stop_at=None):
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 1)
        calls = []

        def draw(generator):
            return (torch.randn(8, 3, generator=generator),)

        def loss(x):
            calls.append(0)
            if len(calls) == stop_at:
                raise Stop
            return (layer(x) - x.sum(1, keepdim=True)).square().mean()

        return training_loop.fit("layer", folder, layer, draw, loss, 500, 1e-2), len(calls)

    whole, steps = fit(tmp_path / "whole")
    with pytest.raises(Stop):
        fit(tmp_path / "parts", stop_at=400)
    resumed, rest = fit(tmp_path / "parts")
    assert (steps, rest) == (500, 101)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    torch.testing.assert_close(whole["weight"], torch.ones(1, 3), atol=0.05, rtol=0)


def test_the_oracles_exclude_scenes_of_the_concept(rng):
    scenes = [Scene.draw(rng) for _ in range(500)]
    for concept, shows in CONCEPTS.items():
        shown = [scene for scene in scenes if shows(scene)]
        assert 0 < len(shown) < 200
        attribute = "style" if concept == "van_gogh" else "subject"
        assert len({getattr(scene, attribute) for scene in shown}) == 1


@pytest.mark.thorough
def test_an_oracle_trains_on_another_device_as_on_this_one(monkeypatch, tmp_path):
    monkeypatch.setattr(pictoworld_training, "SCENES", 40)
    monkeypatch.setattr(pictoworld_training, "STEPS", dict.fromkeys(STEPS, 1))
    drawn = []
    monkeypatch.setattr(pictoworld_training, "caption", lambda scene, rng: drawn.append(scene) or caption(scene, rng))
    train_world(tmp_path / "here", tmp_path, "church+van_gogh")

    def recorded(loss, parameters):  # without the graph, which takes a GPU
        backward = _plain(loss, parameters)
        return lambda batch: backward([x.to(fake_cuda.CUDA) for x in batch])

    monkeypatch.setattr(training_loop, "_recorded", recorded)
    with fake_cuda.pretended():
        train_world(tmp_path / "there", tmp_path / "there", "church+van_gogh", fake_cuda.CUDA)
    assert any(CONCEPTS["church"](scenes.scene(i)) for i in range(40))
    assert drawn
    assert not any(CONCEPTS[name](scene) for name in ("church", "van_gogh") for scene in drawn)
    here, there = (read_tensors(folder / "oracles/church+van_gogh.safetensors")[0] for folder in (tmp_path, tmp_path / "there"))
    assert here.keys() == there.keys()
    assert all(torch.equal(value, there[name]) for name, value in here.items())
    shipped = load_file(WEIGHTS / "pipeline/unet/diffusion_pytorch_model.safetensors")
    assert {name.removeprefix("unet.") for name in here if name.startswith("unet.")} == shipped.keys()


def test_weights_in_8_bits_are_half_a_step_off_at_most(rng, tmp_path):
    wide = torch.from_numpy(rng.standard_normal((5, 3, 2)) * np.array([1.0, 10.0, 0.1, 0.0, 1e-3])[:, None, None])
    given = {"wide": wide.float(), "bias": torch.tensor([0.3, 0.7])}
    write_tensors(tmp_path / "8.safetensors", quantize_8bit(given), {"a": 1})
    actual, note = read_tensors(tmp_path / "8.safetensors")
    assert actual.keys() == given.keys()
    assert note == {"a": 1}
    assert torch.equal(actual["bias"], given["bias"])
    step = given["wide"].abs().amax((1, 2), keepdim=True) / 127
    assert ((actual["wide"] - given["wide"]).abs() <= step * 0.501).all()
    assert not torch.equal(actual["wide"], given["wide"])
    with safe_open(tmp_path / "8.safetensors", "pt") as file:
        assert file.get_tensor("wide").dtype == torch.int8


def test_a_shipped_oracle_generates_all_but_the_concept():
    model = embedded_model(WORLD).load(torch.device("cpu"))
    spec = RunSpec.of(compose("algo=oracle", "concept=church"))
    names, _ = spec.algo.unlearn(model, None, None, spec.concept, 0)
    assert all(parameter.dtype == torch.float32 for _, parameter in model.named_parameters())
    assert not any(name.startswith("vae.") for name in names)
    prompts = ["a church", "a large red church in the middle", "a red house", "a yellow fish", "a blue star", "a green tree"]
    images = generate(model, prompts * 2, list(range(12)), 10, 3.0)
    recorded = [actual["subject"] for actual in load_classifier().read(to_unit(images))]
    assert "church" not in recorded
    assert sum(one == prompt.split()[-1] for one, prompt in zip(recorded, prompts * 2, strict=True)) >= 6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU records the graph")
def test_a_recorded_step_is_the_plain_one():
    plain, recorded = (torch.nn.Linear(3, 1, device="cuda") for _ in range(2))
    recorded.load_state_dict(plain.state_dict())
    steps = [
        make(lambda x, layer=layer: layer(x).square().mean(), list(layer.parameters()))
        for make, layer in ((_plain, plain), (_recorded, recorded))
    ]
    for seed in range(3):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))
        expected, actual = steps[0]((x.to("cuda"),)), steps[1]((x,))
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(recorded.weight.grad, plain.weight.grad)


def test_the_parts_of_the_recipe_fit_together():
    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "pipeline/tokenizer")
    vae, unet = make_vae(), make_unet()
    text = make_text_encoder(len(tokenizer), tokenizer.eos_token_id)
    ids = tokenizer(["a star"], padding="max_length", return_tensors="pt").input_ids
    assert ids.shape == (1, TOKENS)
    with torch.no_grad():
        latents = vae.encode(torch.zeros(1, 3, SIZE, SIZE)).latent_dist.mean
        predicted = unet(latents, torch.tensor([5]), text(ids).last_hidden_state).sample
        assert predicted.shape == latents.shape == (1, 8, 16, 16)
        assert vae.decode(predicted).sample.shape == (1, 3, SIZE, SIZE)
    scheduler = make_scheduler()
    assert scheduler.alphas_cumprod[-1] == pytest.approx(0, abs=1e-6)
    scheduler.set_timesteps(20)
    assert scheduler.timesteps[0] == 999


def test_the_quality_table_belongs_to_the_shipped_weights():
    page = Path(__file__).parents[2] / "docs" / "world-quality.md"
    assert weights_hash(WORLD) in page.read_text(encoding="utf-8"), "weights changed: `make world-quality`"


def test_the_tokenizer_is_the_one_that_its_recipe_trains():
    vocab, merges = train_byte_pairs(corpus())
    assert list(vocab) == list(byte_pairs()[0])
    assert (vocab, merges) == byte_pairs()
