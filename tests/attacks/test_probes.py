"""Probes that lead a model to the concept without its prompt, and depth, which compares what they show with the oracle."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler
from PIL import Image
from quick_copy import copied
from shared_examples import CHURCH, by_kind, draws, tiny_examples

from unlearnbench.attacks.base import AttackTarget
from unlearnbench.attacks.classifier_guidance import ClassifierGuidance, fit_classifier
from unlearnbench.attacks.completion import Completion
from unlearnbench.attacks.inpaint import Inpaint
from unlearnbench.attacks.noise import Noise
from unlearnbench.attacks.probe import ProbedBatch, ProbeSampling
from unlearnbench.attacks.relearning import Relearning
from unlearnbench.attacks.sdedit import SDEdit
from unlearnbench.attacks.text_states import ORIGINAL_DENOISER, ORIGINAL_ENCODER, TextStates
from unlearnbench.config.compose import compose
from unlearnbench.config.errors import UserError
from unlearnbench.data.images import Images
from unlearnbench.experiment import attack as attack_module
from unlearnbench.experiment import attack_images
from unlearnbench.experiment.attack import attack
from unlearnbench.experiment.attack_inputs import (
    attacked_seeds,
    identity,
    inputs_digest,
    open_attack,
    stored_report,
    training_texts,
)
from unlearnbench.experiment.attacked import AttackedRun
from unlearnbench.experiment.depth import included_oracle
from unlearnbench.experiment.probing import ProbeGenerator, folder_sources
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.metrics.depth import Depth
from unlearnbench.models.frozen import Frozen
from unlearnbench.models.noising import add_random_noise, coefficients, split_prediction
from unlearnbench.models.parameters import select_parameters
from unlearnbench.models.tiny_pipelines import tiny_overrides
from unlearnbench.reports.image_grid import CELL, GAP, MARGIN
from unlearnbench.results.depth import Probed, depth_rows
from unlearnbench.results.run import load_run
from unlearnbench.sampling import SamplingBatch
from unlearnbench.storage.tensors import _file_digest

PROMPTS = ["a red church", "a church on the left"]
FEW = ("attack.prompts=2", "attack.per_prompt=1")


@pytest.fixture(scope="module")
def pair(loaded):
    """A model whose UNet and text encoder moved, and its original."""
    model = copied(loaded)
    trained = select_parameters(model, "^(unet|text_encoder)")
    frozen, generator = Frozen(model, trained), draws()
    with torch.no_grad():
        for parameter in trained.values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model, frozen


def sampled(model, prompts, guidance=None, steps=4, scale=3.0):
    return model.sample_latents(prompts, [draws(seed) for seed in range(len(prompts))], steps, scale, guidance)


def assert_sampled(latents, expected):
    """Whether latents are the expected ones but for the noise that a scheduler's last step leaves in every image."""
    assert (latents - expected).abs().mean() < 0.04


def probed(probe, pair, kind="", sources=None):
    """Latents of the prompts under a probe."""
    model, frozen = pair
    batch = ProbedBatch(model, None, frozen, PROMPTS, [0, 1], torch.empty(0) if sources is None else sources, kind)
    return sampled(model, PROMPTS, ProbeSampling(probe, batch))


def test_a_completion_that_the_original_ends_is_the_originals_image_and_one_it_never_begins_the_models(pair, loaded):
    assert torch.equal(probed(Completion(begun=1.0), pair), sampled(loaded, PROMPTS))
    model, _ = pair
    assert torch.equal(probed(Completion(begun=0.0, prompt="own"), pair), sampled(model, PROMPTS))
    torch.testing.assert_close(probed(Completion(begun=0.0), pair), sampled(model, ["", ""]), rtol=1e-4, atol=1e-4)


def test_a_completion_is_the_originals_for_its_first_steps_alone(pair, loaded):
    model, _ = pair
    scheduler = model.schedule(4)
    latents = torch.stack([torch.randn(model.latent_shape(), generator=draws(seed)) for seed in range(2)])
    cond, empty = loaded.encode_prompts(PROMPTS), loaded.encode_prompts([""])
    with torch.no_grad():
        for step, timestep in enumerate(scheduler.timesteps):
            if step < 2:
                prediction = loaded.predictor(cond, empty, 3.0)(step, latents, timestep)
            else:
                prediction = model.predict(latents, timestep, model.encode_prompts(["", ""]))
            latents = scheduler.step(prediction, timestep, latents).prev_sample
    torch.testing.assert_close(probed(Completion(begun=0.5), pair), latents, rtol=1e-4, atol=1e-4)


def test_sdedit_at_strength_0_gives_the_source_back_and_at_1_an_image_of_the_empty_prompt(pair):
    model, _ = pair
    sources = torch.randn(2, *model.latent_shape(), generator=draws(9))
    assert_sampled(probed(SDEdit(), pair, "0", sources), sources)
    expected = sampled(model, ["", ""])
    torch.testing.assert_close(probed(SDEdit(), pair, "1", sources), expected, rtol=1e-4, atol=1e-4)


def test_at_strength_0_the_images_are_the_decoded_sources_whatever_the_sampler_leaves(loaded):
    model = copied(loaded)
    model.noise_scheduler = PNDMScheduler.from_config(model.noise_scheduler.config)
    sources = {(prompt, seed): torch.randn(model.latent_shape(), generator=draws(seed)) for seed, prompt in enumerate(PROMPTS)}
    generator = ProbeGenerator(model, None, Frozen(model, {}), SDEdit(), "0", sources, True)
    images = generator.batch(SamplingBatch(PROMPTS, [0, 1], 4, 3.0))
    assert torch.equal(images, model.decode(torch.stack([*sources.values()])))


def test_noise_is_refused_where_the_sampler_predicts_twice_at_a_timestep(tmp_path, family_folder):
    for words, problem in ((["model.scheduler=pndm"], "PNDMScheduler predicts twice"), (["model.scheduler=ddim"], None)):
        model = RunSpec.of(compose("experiment=smoke", *words)).model
        reason = Noise(name="noise").unavailable_reason(model)
        assert (reason is None) if problem is None else problem in reason
    shutil.copytree(family_folder("sd15"), tmp_path / "sd15")
    path = tmp_path / "sd15/scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "PNDMScheduler"}))
    model = RunSpec.of(compose(*tiny_overrides("sd15", tmp_path / "sd15"))).model
    assert Noise(name="noise").unavailable_reason(model).startswith("attack=noise: PNDMScheduler predicts twice")


def test_sdedit_begins_with_the_source_noised_by_the_images_own_noise(pair):
    model, _ = pair
    sources = torch.randn(2, *model.latent_shape(), generator=draws(9))
    noise = torch.stack([torch.randn(model.latent_shape(), generator=draws(seed)) for seed in range(2)])
    scheduler = model.schedule(4)
    times = scheduler.timesteps[2:]
    latents = model.add_noise(sources, noise, times[:1].expand(2))
    with torch.no_grad():
        for timestep in times:
            prediction = model.predict(latents, timestep, model.encode_prompts(["", ""]))
            latents = scheduler.step(prediction, timestep, latents).prev_sample
    torch.testing.assert_close(probed(SDEdit(), pair, "0.5", sources), latents, rtol=1e-3, atol=1e-3)


def test_inpainting_keeps_the_lower_part_and_fills_the_upper(pair):
    model, _ = pair
    sources = torch.randn(2, *model.latent_shape(), generator=draws(9))
    latents = probed(Inpaint(missing=0.5), pair, "", sources)
    half = sources.shape[2] // 2
    assert_sampled(latents[:, :, half:], sources[:, :, half:])
    assert (latents[:, :, :half] - sources[:, :, :half]).abs().mean() > 0.5


def test_text_states_exchange_the_text_encoder_or_the_denoiser(pair, loaded):
    model, _ = pair
    mixed = copy.deepcopy(model)
    mixed.text_encoder.load_state_dict(loaded.text_encoder.state_dict())
    assert torch.equal(probed(TextStates(), pair, ORIGINAL_ENCODER), sampled(mixed, PROMPTS))
    mixed = copy.deepcopy(model)
    mixed.unet.load_state_dict(loaded.unet.state_dict())
    assert torch.equal(probed(TextStates(), pair, ORIGINAL_DENOISER), sampled(mixed, PROMPTS))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_noise_is_that_of_ddim_up_to_eta_1(pair, eta):
    model, _ = pair
    scheduler = model.schedule(4)
    generators = [draws(seed) for seed in range(2)]
    latents = torch.stack([torch.randn(model.latent_shape(), generator=generator) for generator in generators])
    cond, empty = model.encode_prompts(PROMPTS), model.encode_prompts([""])
    with torch.no_grad():
        for step, timestep in enumerate(scheduler.timesteps):
            prediction = model.predictor(cond, empty, 3.0)(step, latents, timestep)
            fresh = torch.stack([torch.randn(model.latent_shape(), generator=generator) for generator in generators])
            settings = {"eta": eta, "variance_noise": fresh} if eta and step < 3 else {}
            latents = scheduler.step(prediction, timestep, latents, **settings).prev_sample
    torch.testing.assert_close(probed(Noise(), pair, f"{eta:g}"), latents, rtol=1e-3, atol=1e-3)
    assert torch.isfinite(probed(Noise(), pair, "1.85")).all()


def test_a_prediction_is_split_into_the_clean_latents_and_the_noise_that_it_means(pair):
    model, _ = pair
    clean, noise, times = *torch.randn(2, 3, *model.latent_shape(), generator=draws(1)), torch.tensor([1, 500, 900])
    noisy, prediction = model.add_noise(clean, noise, times), model.target(clean, noise, times)
    for part, expected in zip(split_prediction(model, noisy, prediction, times), (clean, noise), strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-3, atol=1e-3)


def test_a_classifier_of_noisy_latents_tells_two_kinds_apart_and_leads_to_the_first(pair):
    model, _ = pair
    ones = torch.ones(1, *model.latent_shape())
    latents = torch.randn(40, *model.latent_shape(), generator=draws(3)) * 0.1
    classifier = fit_classifier(model, latents[:20] + 0.5 * ones, latents[20:] - 0.5 * ones, 16, 60, 1e-2, 0)
    a, s = coefficients(model, latents[:2], torch.tensor([300, 300]))
    assert classifier(a * ones, a, s).min() > 0 > classifier(-a * ones, a, s).max()
    assert classifier.gradient(torch.zeros(2, *model.latent_shape()), a, s).mean() > 0
    probe = ClassifierGuidance(strengths=[0.0, 2.0])
    probe._classifiers = dict.fromkeys(PROMPTS, classifier)
    plain = probed(probe, pair, "0")
    torch.testing.assert_close(plain, sampled(model, ["", ""]), rtol=1e-3, atol=1e-3)
    assert probed(probe, pair, "2").mean() > plain.mean()


def test_the_classifier_trains_on_the_originals_images_of_the_prompts_and_of_their_anchors(pair):
    model, frozen = pair
    probe = ClassifierGuidance(images=3, steps=2, width=4)
    target = AttackTarget(model, frozen, CHURCH, PROMPTS, torch.empty(0), training=["a green church"])
    assert [(a.prompt, a.kind) for a in probe.find(target)] == [(p, k) for k in ("1", "4") for p in PROMPTS]
    assert set(probe._classifiers) == set(PROMPTS)
    again = ClassifierGuidance(images=3, steps=2, width=4).train_classifier(target)
    first = probe._classifiers[PROMPTS[0]]
    assert all(torch.equal(x, y) for x, y in zip(first.parameters(), again.parameters(), strict=True))


def test_relearning_trains_a_copy_of_the_unlearned_weights_and_leaves_the_original_alone(pair):
    model, frozen = pair
    before = {name: value.clone() for name, value in model.named_parameters()}
    target = AttackTarget(model, frozen, CHURCH, PROMPTS, torch.empty(0), training=["a green church"])
    probe = Relearning(counts=[1, 3], images=2, lr=0.05, batch=2)
    attempts = probe.find(target)
    assert len(attempts) == 4 * len(PROMPTS)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    first, last = (probe._weights[PROMPTS[0], f"{count} steps on images of the concept"] for count in (1, 3))
    other = probe._weights[PROMPTS[0], "3 steps on other images"]
    assert any((first[name] - before[name]).abs().max() > 0 for name in first)
    assert any(not torch.equal(first[name], last[name]) for name in first)
    assert any(not torch.equal(other[name], last[name]) for name in first)
    relearned = probed(probe, pair, "3 steps on images of the concept")
    assert not torch.allclose(relearned, sampled(model, PROMPTS), atol=1e-3)
    with frozen():
        batch = ProbedBatch(model, None, frozen, PROMPTS, [0, 1], torch.empty(0), "3 steps on images of the concept", True)
        assert torch.equal(sampled(model, PROMPTS, ProbeSampling(probe, batch)), sampled(model, PROMPTS))
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_few_training_prompts_are_relearned_in_turn(pair, monkeypatch):
    model, frozen = pair
    sampled_prompts = []

    def sample(model, prompts, seed):
        sampled_prompts.append(prompts)
        return torch.zeros(len(prompts), *model.latent_shape())

    monkeypatch.setattr("unlearnbench.attacks.relearning.sample_in_parts", sample)
    target = AttackTarget(model, frozen, CHURCH, PROMPTS, torch.empty(0), training=["a church", "a green church"])
    Relearning(counts=[1], images=3, batch=1).find(target)
    assert sampled_prompts[0] == ["a church", "a green church", "a church"]
    assert len(sampled_prompts[1]) == 3


@pytest.mark.parametrize("is_earlier", [False, True])
def test_a_report_of_prompts_that_have_changed_since_is_outdated(is_earlier, smoke, tmp_path):
    shutil.copytree(smoke.folder, tmp_path / "run")
    (tmp_path / "x.csv").write_text("prompt,split,use,seed\na red church,forget,,11\na church at night,forget,train,\n")
    record = json.loads((tmp_path / "run/run.json").read_text())
    record["config"]["concept"]["prompts"] = str(tmp_path / "x.csv")
    (tmp_path / "run/run.json").write_text(json.dumps(record))
    subject, words = AttackedRun.of(load_run(tmp_path / "run")), ["attack=completion", "attack.per_prompt=1"]
    spec, method = open_attack(subject, words)
    rows = [{"prompt": text, "seed": seed} for text, own in attacked_seeds(spec, method, "forget").items() for seed in own]
    assert ("a red church", 11) in [(row["prompt"], row["seed"]) for row in rows]
    report = {**json.loads(json.dumps(identity(spec, method, subject.weights))), "images": rows}
    report |= {} if is_earlier else {"inputs": inputs_digest(spec, method)}
    (tmp_path / "run/attack-completion.json").write_text(json.dumps(report))
    assert stored_report(subject, words) == report
    for old, new in (("red", "blue"), (",11", ",12"), ("\n", "\na church,forget,measure,\n")):
        text = (tmp_path / "x.csv").read_text()
        (tmp_path / "x.csv").write_text(text[:20] + text[20:].replace(old, new))
        assert stored_report(subject, words) is None
        (tmp_path / "x.csv").write_text(text)
        assert stored_report(subject, words) == report
    (tmp_path / "x.csv").write_text(text.replace("at night", "by day"))  # only trained on, which earlier reports do not say
    assert (stored_report(subject, words) is None) is not is_earlier


def test_weights_are_hashed_once_and_never_read_whole_to_know_whether_a_report_is_current(smoke, monkeypatch):
    subject, weights = AttackedRun.of(load_run(smoke.folder)), smoke.folder / "weights.safetensors"
    spec, method = open_attack(subject, ["attack=relearning"])
    expected = hashlib.sha256(weights.read_bytes()).hexdigest()
    opened, open_file = [], Path.open

    def counted(path, *parts, **settings):
        opened.append(path)
        return open_file(path, *parts, **settings)

    monkeypatch.setattr(Path, "open", counted)
    monkeypatch.setattr(Path, "read_bytes", None)
    monkeypatch.setattr("unlearnbench.storage.tensors.read_tensors", None)
    _file_digest.cache_clear()
    assert [identity(spec, method, weights)["weights"] for _ in range(2)] == [expected] * 2
    assert opened.count(weights.resolve()) == 1
    assert open_attack(subject, ["attack=relearning"])[1] == method


def test_a_report_of_a_folder_of_images_that_has_changed_since_is_outdated(smoke, tmp_path):
    shutil.copytree(smoke.folder, tmp_path / "run")
    shutil.copytree(smoke.folder / "images/before", tmp_path / "images")
    subject, words = AttackedRun.of(load_run(tmp_path / "run")), ["attack=sdedit", f"attack.images={tmp_path / 'images'}", *FEW]
    attack(tmp_path / "run", *words)
    assert stored_report(subject, words) is not None
    shutil.copy(tmp_path / "images/00001.png", tmp_path / "images/00000.png")
    assert stored_report(subject, words) is None


def test_a_report_of_fewer_images_than_were_asked_for_is_outdated(smoke, tmp_path):
    shutil.copytree(smoke.folder, tmp_path / "run")
    subject, weights = AttackedRun.of(load_run(tmp_path / "run")), smoke.folder / "weights.safetensors"
    known = len(training_texts(RunSpec.of(compose("experiment=smoke")).concept))
    for images, is_current in ((known, True), (known + 1, False)):
        words = ["attack=relearning", f"attack.images={images}"]
        spec, method = open_attack(subject, words)
        seeds = attacked_seeds(spec, method, "forget")
        rows = [{"prompt": text, "seed": seed} for text, own in seeds.items() for seed in own]
        report = {**json.loads(json.dumps(identity(spec, method, weights))), "images": rows}
        earlier = {key: report[key] for key in ("settings", "weights", "sample", "images")}  # what earlier versions wrote
        (tmp_path / "run/attack-relearning.json").write_text(json.dumps(earlier))
        assert (stored_report(subject, words) is not None) is is_current
        (tmp_path / "run/attack-relearning.json").write_text(json.dumps(report))
        assert stored_report(subject, words) == report


def test_the_loss_on_the_images_falls_while_relearning(pair):
    model, frozen = pair
    latents = torch.randn(2, *model.latent_shape(), generator=draws(3)) * 0.1
    probe = Relearning(lr=0.02, batch=2)

    def loss():
        noised = add_random_noise(model, latents.repeat(8, 1, 1, 1), draws(5))
        with torch.no_grad():
            prediction = model.predict(noised.noisy_latents, noised.timesteps, model.encode_prompts(PROMPTS * 8))
        return (prediction - model.target(latents.repeat(8, 1, 1, 1), noised.noise, noised.timesteps)).square().mean().item()

    before = loss()
    probe._weights = dict.fromkeys([(prompt, "") for prompt in PROMPTS], probe.train(model, PROMPTS, latents, 12))
    with probe.relearned(ProbedBatch(model, None, frozen, PROMPTS, [0, 1], torch.empty(0), "")):
        assert loss() < before
    assert loss() == before


def test_images_of_a_folder_are_dealt_out_in_turn(pair, write_images):
    model, _ = pair
    folder = write_images("mine", np.stack([np.full((8, 8, 3), value, np.uint8) for value in (0, 200)])).folder
    sources = folder_sources(model, folder, [("a", 0), ("b", 0), ("a", 1)])
    assert torch.equal(sources["a", 0], sources["a", 1])
    assert not torch.equal(sources["a", 0], sources["b", 0])
    with pytest.raises(UserError, match="no images there; name a folder"):
        folder_sources(model, folder / "none", [("a", 0)])


@pytest.mark.parametrize("family", by_kind(["sdxl", "sd3", "flux"], ["sdxl"]))
def test_probes_run_on_every_family(family, family_folder):
    model = RunSpec.of(compose(*tiny_overrides(family, family_folder(family)), "concept=church")).model.load(torch.device("cpu"))
    frozen, sources = Frozen(model, {}), tiny_examples(model)[0].latents
    guidance = ClassifierGuidance(images=2, steps=1, width=4)
    relearning = Relearning(counts=[1], images=1, batch=1)
    for learner in (guidance, relearning):
        learner.find(AttackTarget(model, frozen, CHURCH, PROMPTS, torch.empty(0)))
    for probe in (Completion(), SDEdit(), Inpaint(), TextStates(), Noise(), guidance, relearning):
        for kind in probe.kinds():
            batch = ProbedBatch(model, None, frozen, PROMPTS, [0, 1], sources, kind)
            latents = sampled(model, PROMPTS, ProbeSampling(probe, batch), steps=2)
            assert torch.isfinite(latents).all()
            if isinstance(probe, SDEdit) and kind == "0":
                assert_sampled(latents, sources)


@pytest.mark.parametrize("settings", [{"begun": 1.5}, {"prompt": "mine"}])
def test_settings_of_a_completion_are_checked(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Completion(**settings)


def test_the_strengths_of_sdedit_are_checked():
    with pytest.raises(ValueError, match="give numbers from 0 to 1"):
        SDEdit(strengths=[0.5, 2])


# --- controls -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "prompt"), [("word_swap", "a red house"), ("blocklist", "a red")])
def test_a_control_samples_the_rewritten_prompt_and_changes_no_weight(name, prompt, algo_spec, tiny, examples):
    names, guidance = algo_spec(name).algo.unlearn(tiny, *examples, CHURCH, 0)
    assert names == []
    assert torch.equal(sampled(tiny, ["a red church"], guidance), sampled(tiny, [prompt]))


def test_a_negative_prompt_takes_the_place_of_the_empty_one(algo_spec, tiny, examples):
    guidance = algo_spec("negative_prompt").algo.unlearn(tiny, *examples, CHURCH, 0).guidance
    cond, negative = tiny.encode_prompts(["a red tree"]), tiny.encode_prompts(["church"])
    assert torch.equal(sampled(tiny, ["a red tree"], guidance), tiny.denoise(cond, negative, [draws(0)], 4, 3.0))


# --- depth --------------------------------------------------------------------------------------------------------------


def images(kinds, prompts=8):
    """Rows of images: for each kind how many of the original's and of the model's show the concept."""
    return [
        {"kind": kind, "prompt": str(i), "seed": i, "original": i < original, "found": i < actual}
        for kind, (original, actual) in kinds.items()
        for i in range(prompts)
    ]


def test_depth_is_what_is_gone_over_what_the_oracle_lacks_and_pools_sums():
    model = {
        "completion": images({"": (8, 4)}),
        "sdedit": images({"0": (8, 8), "0.7": (6, 3)}),
        "text_states": images({"x": (8, 8)}),
    }
    oracle = {
        "completion": images({"": (8, 2)}),
        "sdedit": images({"0": (8, 8), "0.7": (6, 5)}),
        "text_states": images({"x": (8, 0)}),
    }
    rows = {(row.probe, row.kind): row for row in depth_rows(model, oracle)}
    assert rows["completion", ""].depth == pytest.approx((8 - 4) / (8 - 2))
    assert rows["sdedit", "0.7"].depth == pytest.approx(3.0)
    assert rows["sdedit", "0"].depth is None
    assert rows["text_states", "x"].depth == 0
    assert rows["pooled", "image probes"].depth == pytest.approx((4 + 3) / (6 + 1))
    low, high, method = rows["pooled", "image probes"].interval
    assert low <= 1 <= high
    assert method == "bootstrap over 8 prompts"


def test_depth_without_an_oracle_counts_from_0_and_where_nothing_can_go_there_is_none():
    rows = depth_rows({"completion": images({"": (8, 2)}), "inpaint": images({"": (0, 0)})}, None)
    assert [(row.depth, row.oracle) for row in rows] == [(0.75, None), (None, None), (0.75, None)]


def test_an_oracle_of_other_prompts_is_refused():
    with pytest.raises(ValueError, match="completion: the oracle was probed with other prompts"):
        depth_rows({"completion": images({"": (8, 2)})}, {"completion": images({"": (8, 2)}, prompts=4)})


def test_the_command_probes_a_run_once_and_writes_its_depth(smoke, command, tmp_path, monkeypatch):
    shutil.copytree(smoke.folder, tmp_path / "run")
    loaded, load = [], attack_module.load_attacked_model
    monkeypatch.setattr(attack_module, "load_attacked_model", lambda *parts: loaded.append(load(*parts)) or loaded[-1])
    outcome = command("depth", "run", *FEW)
    assert outcome.code == 0
    assert len(loaded) == 1  # all probes share it
    fresh = load(
        *(RunSpec.of(compose("experiment=smoke")).model, smoke.folder / "weights.safetensors", torch.device("cpu"), smoke)
    )
    values = dict(fresh.model.named_parameters())
    assert all(torch.equal(value, values[name]) for name, value in loaded[0].model.named_parameters())
    assert "depth of substitute on church" in outcome.out
    assert [row["probe"] for row in json.loads((tmp_path / "run/depth.json").read_text())["rows"]] == [
        "completion", "sdedit", "sdedit", "sdedit", "inpaint", "text_states", "text_states", "pooled",
    ]  # fmt: skip
    report = json.loads((tmp_path / "run/attack-sdedit.json").read_text())
    assert [(row["kind"], row["file"]) for row in report["images"]] == [
        (kind, f"kind-{k}/{i:05d}.png") for k, kind in enumerate(["0", "0.7", "0.9"]) for i in range(2)
    ]
    probed, originals = (Images(tmp_path / "run/attack-sdedit" / side) for side in ("original-probed", "attacked"))
    decoded = np.abs(probed.pixels()[:2].int() - originals.pixels()[:2].int())
    assert decoded.max() <= 1  # the autoencoder is the same in both models
    written = (tmp_path / "run/attack-completion.json").stat().st_mtime_ns
    again = command("depth", "run", *FEW, "--oracle", "run")
    assert again.code == 0
    assert (tmp_path / "run/attack-completion.json").stat().st_mtime_ns == written


def test_depth_samples_the_images_without_a_probe_once_for_all_probes(smoke, command, tmp_path, monkeypatch):
    for name in ("run", "other"):
        shutil.copytree(smoke.folder, tmp_path / name)
    sides, generate = [], attack_images.generate_images
    monkeypatch.setattr(attack_images, "generate_images", lambda *parts: sides.append(parts[0]) or generate(*parts))
    assert command("depth", "run", *FEW).code == 0
    assert sides.count("control") == 1
    assert command("attack", "other", "attack=inpaint", *FEW).code == 0
    assert sides.count("control") == 2
    alone = Images(tmp_path / "other/attack-inpaint/control")
    assert len(alone) == 2
    for probe in ("completion", "sdedit", "inpaint", "text_states"):
        shared = Images(tmp_path / f"run/attack-{probe}/control")
        assert [*shared] == [*alone]
        assert all(map(shared.intact, shared))


@pytest.mark.parametrize(("changed", "sampled"), [({}, 1), ({"weights": "another"}, 2), ({"device": "cuda"}, 2)])
def test_a_later_attack_takes_the_images_without_an_attack_of_an_earlier_one(
    changed, sampled, smoke, command, tmp_path, monkeypatch
):
    shutil.copytree(smoke.folder, tmp_path / "run")
    sides, generate = [], attack_images.generate_images
    monkeypatch.setattr(
        attack_images, "generate_images", lambda *parts, **named: sides.append(parts[0]) or generate(*parts, **named)
    )
    assert command("attack", "run", "attack=inpaint", *FEW).code == 0
    report = json.loads((tmp_path / "run/attack-inpaint.json").read_text())
    (tmp_path / "run/attack-inpaint.json").write_text(json.dumps(report | changed))
    (tmp_path / "run/attack-damaged.json").write_text("{")
    assert command("attack", "run", "attack=paraphrases", *FEW).code == 0
    assert sides.count("control") == sampled
    first, second = (Images(tmp_path / f"run/attack-{name}/control") for name in ("inpaint", "paraphrases"))
    assert [*first] == [*second]
    assert all(map(second.intact, second))


def test_a_damaged_image_without_a_probe_is_not_shared(smoke, command, tmp_path, monkeypatch):
    shutil.copytree(smoke.folder, tmp_path / "run")
    prepare = attack_module.prepare_job

    def damaging(spec, method, split, concept, attacked, folder):
        for earlier in attacked.controls.values():
            (earlier / "00000.png").write_bytes(b"")
        return prepare(spec, method, split, concept, attacked, folder)

    monkeypatch.setattr(attack_module, "prepare_job", damaging)
    assert command("depth", "run", *FEW).code == 0
    control = Images(tmp_path / "run/attack-text_states/control")
    assert all(map(control.intact, control))


def test_a_run_that_changed_only_sampling_is_probed_as_it_samples(run, command):
    done = run("algo=word_swap", "metrics=quick")
    outcome = command("attack", done.folder, "attack=text_states", *FEW)
    assert outcome.code == 0
    rows = json.loads((done.folder / "attack-text_states.json").read_text())["images"]
    assert all(row["original"] == row["found"] for row in rows if row["kind"] == ORIGINAL_ENCODER)


def test_runs_of_two_concepts_have_no_common_depth(smoke, run, command):
    other = run("concept=fish", "algo=none", "metrics=quick")
    outcome = command("depth", smoke.folder, "--oracle", other.folder)
    assert outcome.code == 2
    assert outcome.err.endswith(f"error: {other.folder}: its concept is fish, that of {smoke.folder} church\n")


def test_a_run_measures_its_own_depth_and_measures_it_again(run, command):
    done = run("metrics=depth", "metrics.depth.prompts=1", "metrics.depth.per_prompt=1", "sample.prompts=2")
    values = {(value.metric, value.split): value for value in done.values if value.table == "Depth"}
    shares = [split for metric, split in values if metric == "probe_accuracy"]
    assert shares == [
        "completion", "sdedit 0, the autoencoder alone", "sdedit 0.7", "sdedit 0.9", "inpaint",
        f"text_states {ORIGINAL_ENCODER}", f"text_states {ORIGINAL_DENOISER}",
    ]  # fmt: skip
    assert all(value.n == 1 for (metric, _), value in values.items() if metric == "probe_accuracy")
    written = (done.folder / "attack-completion.json").stat().st_mtime_ns
    assert command("measure", done.folder, "metrics=depth", "metrics.depth.prompts=1", "metrics.depth.per_prompt=1").code == 0
    assert (done.folder / "attack-completion.json").stat().st_mtime_ns == written


def test_the_metric_states_the_pooled_depth_first_and_the_shares_of_each_probe(metric_inputs, write_images):
    none = np.zeros((0, 8, 8, 3), np.uint8)
    inputs = metric_inputs(*(write_images(name, none) for name in ("before", "after")))
    requests = []

    def probe(oracle, settings):
        requests.append((oracle, settings))
        return Probed({"completion": images({"": (8, 2)}), "text_states": images({"x": (8, 4)})}, None)

    inputs.probe = probe
    values = Depth(prompts=3, per_prompt=1).measure(inputs)
    assert requests == [(None, ["attack.prompts=3", "attack.per_prompt=1"])]
    assert [(value.metric, value.split, value.unlearned) for value in values] == [
        ("depth", "image probes", 0.75), ("depth", "text_states x", 0.5), ("depth", "completion", 0.75),
        ("probe_accuracy", "completion", 0.25), ("probe_accuracy", "text_states x", 0.5),
    ]  # fmt: skip
    share = values[3]
    assert (share.low, share.high, share.interval) == (0.0, 0.625, "bootstrap over 8 prompts")
    inputs.probe = None
    with pytest.raises(UserError, match=r"metrics\.depth: these images come without the weights"):
        Depth().measure(inputs)


def test_pictoworld_includes_an_oracle_for_some_concepts_and_only_for_its_own_model():
    def oracle_of(concept, path):
        return included_oracle(SimpleNamespace(log={"config": {"concept": {"name": concept}, "model": {"path": path}}}))

    assert oracle_of("church", "pictoworld").name == "church.safetensors"
    assert oracle_of("fish", "pictoworld") is None
    assert oracle_of("church", "tiny") is None


def test_several_concepts_keep_the_autoencoder_out_of_the_depth():
    kinds = {"church, 0": (8, 8), "church, 0.7": (8, 4), "fish, 0": (8, 8), "fish, 0.7": (8, 0)}
    rows = depth_rows({"sdedit": images(kinds)}, None)
    assert [row.depth for row in rows] == [None, 0.5, None, 1.0, 0.75]


def test_depth_draws_some_prompts_under_every_probe_and_nothing_of_deleted_images(smoke, command, tmp_path):
    shutil.copytree(smoke.folder, tmp_path / "run")
    outcome = command("depth", "run", "attack.prompts=3", "attack.per_prompt=2", "--oracle", "run")
    assert outcome.out.splitlines()[-1] == "run: depth.md, depth.json, depth.png"
    sheet = np.asarray(Image.open(tmp_path / "run/depth.png"))
    kinds = 6  # completion, sdedit at two strengths, inpaint, text_states from two sides
    columns = [MARGIN + column * (CELL + GAP) for column in range(2 * kinds)]
    assert sheet.shape[1] == columns[-1] + CELL + GAP
    rows = [[sheet[GAP + row * (CELL + 3) :][:CELL, left : left + CELL] for left in columns] for row in range(4)]
    probed = tmp_path / "run/attack-sdedit/attacked/kind-2"
    assert np.array_equal(rows[2][4][::2, ::2], np.asarray(Image.open(probed / "00000.png")))
    assert all(np.array_equal(unlearned, oracle) for unlearned, oracle in zip(rows[2], rows[3], strict=True))
    assert not np.array_equal(rows[1][4], rows[0][4])
    (tmp_path / "run/depth.png").unlink()
    for folder in (tmp_path / "run").glob("attack-*/attacked"):
        shutil.rmtree(folder)
    outcome = command("depth", "run", "attack.prompts=3", "attack.per_prompt=2", "--oracle", "run")
    assert outcome.out.splitlines()[-1] == "run: depth.md, depth.json"


def test_depth_runs_all_probes_and_refuses_one_that_is_chosen(smoke, command):
    outcome = command("depth", smoke.folder, "attack=sdedit")
    assert outcome.code == 2
    assert outcome.err.startswith("error: attack=sdedit: depth runs all of completion, sdedit, inpaint, text_states; ")


def test_the_originals_images_under_a_probe_are_not_those_of_another_anchor(run, tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARNBENCH_CACHE", str(tmp_path / "cache"))
    counts = []
    for number, anchor in enumerate(("tree", "tree", "star")):
        anchors = f"concept.anchor={{church: {anchor}, chapel: {anchor}}}"
        done = run("metrics=forget_accuracy", anchors, folder=f"run{number}")
        few = ["attack.strengths=[1.0]", "attack.images=2", "attack.steps=2", "attack.prompts=1", "attack.per_prompt=1"]
        attack(done.folder, "attack=classifier_guidance", *few)
        counts.append(len(list((tmp_path / "cache/images").glob("*.png"))))
    assert counts == [counts[0], counts[0], counts[0] + 1]
