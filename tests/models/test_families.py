"""Every model family by a tiny random pipeline: images equal to those of diffusers, training, and checks of its files."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import shutil
import sys
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from quick_copy import copied
from safetensors.torch import save_file
from shared_examples import CHURCH, LossLog, by_kind, draws, tiny_examples

from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.closed_form import text_hidden_states
from unlearnbench.algos.examples import Batch
from unlearnbench.algos.ga import GradientAscent
from unlearnbench.algos.losses import denoising_loss
from unlearnbench.config.build import build
from unlearnbench.config.compose import compose
from unlearnbench.config.errors import UserError
from unlearnbench.config.paths import choices
from unlearnbench.experiment.memory import least_memory, memory_problem
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.models.base import PATTERNS, TextToImage
from unlearnbench.models.checkpoint_headers import known_shapes
from unlearnbench.models.compvis_names import single_file_weights
from unlearnbench.models.diffusers_model import DiffusersModel, fp32_precision
from unlearnbench.models.parameters import make_optimizer, make_trainable, select_parameters
from unlearnbench.models.tiny_pipelines import tiny_overrides
from unlearnbench.models.tokens import aligned_positions
from unlearnbench.models.weights import load_weights, save_weights
from unlearnbench.sampling import ImageGenerator, SamplingBatch, generate

FAMILIES = ("sd15", "sd21", "sdxl", "sd3", "flux")
PROMPTS = ["a red church on the left", "a blue star", ""]
SEEDS = [1, 2, 3]
CPU = torch.device("cpu")
DOCS = Path(__file__).parents[2] / "docs/families.md"


def unloaded(family, path, *more):
    return build(compose(*tiny_overrides(family, path), *more).model, TextToImage, "model")


def load(family, path, *more):
    model = unloaded(family, path, *more)
    assert model.unavailable_reason() is None
    return model.load(CPU)


@pytest.fixture(scope="module")
def folders(family_folder):
    """The tiny checkpoint of every family, a folder each."""
    return {family: family_folder(family) for family in FAMILIES}


@pytest.fixture(scope="module")
def models(folders):
    """The loaded model of every family; not to be changed."""
    return {family: load(family, folders[family]) for family in FAMILIES}


@pytest.fixture(params=by_kind(FAMILIES, ("sd15", "flux")))
def family(request):
    return request.param


@pytest.fixture
def model(family, models):
    """A model of the test's own."""
    return copied(models[family])


def loss_of(model, seed=0):
    forget, _ = tiny_examples(model)
    return denoising_loss(model, Batch(forget.prompts, forget.anchors, forget.latents), draws(seed))


# --- images and predictions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("guidance", "shape"), [(1.0, (32, 32)), (4.0, (32, 32)), (4.0, (32, 64))])
def test_images_are_those_of_diffusers_own_pipeline(model, guidance, shape):
    pipeline = model.pipeline
    pipeline.set_progress_bar_config(disable=True)
    length = {"max_sequence_length": model.tokens} if hasattr(model, "tokens") else {}
    theirs = pipeline(
        PROMPTS[:2], num_inference_steps=3, guidance_scale=guidance, height=shape[0], width=shape[1], output_type="np",
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS[:2]], **length,
    ).images  # fmt: skip
    ours = ImageGenerator(model).batch(SamplingBatch(PROMPTS[:2], SEEDS[:2], 3, guidance, shape))
    assert ours.shape == (2, *shape, 3)
    apart = (ours.int() - torch.from_numpy((theirs * 255).round()).int()).abs()
    assert apart.max() <= 1
    assert (ours[0].int() - ours[1].int()).abs().max() > 20


def test_noisy_latents_and_targets_are_those_of_the_family(family, model):
    clean, noise = (torch.randn(2, *model.latent_shape(), generator=draws(seed)) for seed in (0, 1))
    times = torch.tensor([100, 700])
    noisy, target = model.add_noise(clean, noise, times), model.target(clean, noise, times)
    if family in ("sd3", "flux"):
        share = (times / 1000).view(2, 1, 1, 1)
        torch.testing.assert_close(noisy, (1 - share) * clean + share * noise)
        torch.testing.assert_close(target, noise - clean)
    else:
        kept = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).cumprod(0)[times].view(2, 1, 1, 1)
        torch.testing.assert_close(noisy, kept.sqrt() * clean + (1 - kept).sqrt() * noise)
        velocity = kept.sqrt() * noise - (1 - kept).sqrt() * clean
        torch.testing.assert_close(target, velocity if family == "sd21" else noise)


def test_training_timesteps_have_the_density_of_the_family(family, model):
    times = model.draw_timesteps(4000, draws())
    assert torch.equal(times, model.draw_timesteps(4000, draws()))
    share = times.float() / 1000
    if family == "sd3":  # sigma = 3 u / (1 + 2 u), with u logit-normal
        share = share / (3 - 2 * share)
        assert abs(float(share.logit(1e-4).mean())) < 0.1
        assert abs(float(share.logit(1e-4).std()) - 1) < 0.05
    else:
        assert abs(float(share.mean()) - 0.5) < 0.02
        assert abs(float(share.std()) - 12**-0.5) < 0.01


def test_latents_of_stopped_sampling_have_the_scale_that_predict_takes(family, model):
    text, empty = model.encode_prompts(["a star"]), model.encode_prompts([""])
    starts = [torch.Generator().manual_seed(0)]
    noise = torch.randn(1, *model.latent_shape(), generator=torch.Generator().manual_seed(0))
    begun = model.denoise(text, empty, starts, 3, 2.0, stop_after=0)
    torch.testing.assert_close(begun, noise, rtol=1e-2, atol=1e-2)
    times = [float(model.timestep_after(step, 3)) for step in range(3)]
    assert times == sorted(times, reverse=True)
    assert 600 < times[0] <= 1000


def test_conditioning_and_fingerprint_depend_on_every_text_encoder(family, model):
    before = model.encode_prompts(["a church"])
    fingerprint = model.fingerprint()
    for name in (part for part in model.parts if part.startswith("text_encoder")):
        other = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in getattr(other, name).parameters():
                parameter.mul_(1.3)
        after = other.encode_prompts(["a church"])
        assert any(not torch.equal(before[key], after[key]) for key in before)
        assert other.fingerprint() != fingerprint


def test_the_empty_prompt_embeddings_of_sdxl_are_zeros_as_in_training(models):
    text = models["sdxl"].encode_prompts(["", "a star"])
    for value in text.values():
        assert not value[0].any()
        assert value[1].any()


def test_closed_form_edits_encode_the_empty_prompt_instead_of_zeros(models):
    with torch.no_grad():
        said, *_ = models["sdxl"].pipeline.encode_prompt("", device=CPU, do_classifier_free_guidance=False)
    assert said.any()
    torch.testing.assert_close(text_hidden_states(models["sdxl"], [""]), said.double())


def test_t5_is_finite_in_fp16_where_its_sums_overflow(folders):
    model = load("sd3", folders["sd3"], "model.dtype=fp16")
    with torch.no_grad():
        for name, parameter in model.text_encoder_3.named_parameters():
            if name.endswith("wo.weight"):
                parameter.mul_(1e7)
    embeds = model.t5_embeds(["a red star"])
    assert embeds.isfinite().all()
    assert embeds.any()


def test_weights_that_exist_only_as_a_variant_are_loaded(folders, models, tmp_path):
    models["sdxl"].pipeline.save_pretrained(tmp_path / "half", safe_serialization=True, variant="fp16")
    assert not list((tmp_path / "half/unet").glob("*model.safetensors"))
    assert load("sdxl", tmp_path / "half").fingerprint() == models["sdxl"].fingerprint()


def test_a_tilde_is_the_home_folder(folders, monkeypatch):
    monkeypatch.setenv("HOME", str(folders["sd15"].parent))
    assert load("sd15", "'~/sd15'").path == str(folders["sd15"])


def test_an_invalid_hub_id_is_reported():
    model = unloaded("sd15", "a/b/c")
    assert model.unavailable_reason() == "model.path=a/b/c: no such folder, and not a valid hub id"
    assert model.local_folder() is None


def test_the_autoencoder_splits_large_batches(models, monkeypatch):
    model = copied(models["sd15"])
    latents = torch.randn(5, *model.latent_shape(), generator=draws())
    whole = model.decode(latents)
    encoded = model.encode_images(whole)
    monkeypatch.setattr(DiffusersModel, "vae_batch", lambda self: 2)
    taken = []
    decode = model.vae.decode
    monkeypatch.setattr(model.vae, "decode", lambda part: taken.append(len(part)) or decode(part))
    assert (model.decode(latents).int() - whole.int()).abs().max() <= 1
    assert taken == [2, 2, 1]
    torch.testing.assert_close(model.encode_images(whole), encoded)


def test_stable_diffusion_3_generates_without_t5(folders, models, tmp_path):
    pipeline = copy.deepcopy(models["sd3"].pipeline)
    pipeline.register_modules(text_encoder_3=None, tokenizer_3=None)
    pipeline.save_pretrained(tmp_path / "lean", safe_serialization=True)
    lean = load("sd3", tmp_path / "lean")
    assert (
        lean.encode_prompts(["a star"])["prompt_embeds"].shape == models["sd3"].encode_prompts(["a star"])["prompt_embeds"].shape
    )
    assert not torch.equal(generate(lean, ["a star"], [0], 2, 2.0), generate(models["sd3"], ["a star"], [0], 2, 2.0))
    assert known_shapes(lean).keys() <= known_shapes(unloaded("sd3", tmp_path / "lean")).keys()  # of its files, also a buffer


def test_guidance_is_an_input_of_flux_but_not_of_schnell(models):
    flux = copied(models["flux"])
    low, high = (generate(flux, ["a star"], [0], 2, guidance) for guidance in (1.0, 30.0))
    assert not torch.equal(low, high)
    flux.transformer.register_to_config(guidance_embeds=False)
    embedding = flux.transformer.time_text_embed
    flux.transformer.time_text_embed.forward = lambda time, pooled: embedding.text_embedder(pooled)
    assert torch.equal(*(generate(flux, ["a star"], [0], 2, guidance) for guidance in (1.0, 30.0)))


# --- what trains --------------------------------------------------------------------------------------------------------


def test_patterns_select_corresponding_parameters_in_every_family(family, model):
    assert set(model.patterns) == set(PATTERNS)
    chosen = {which: set(select_parameters(model, which)) for which in PATTERNS}
    assert chosen["xattn"] | chosen["not_xattn"] == chosen["full"]
    assert not chosen["xattn"] & chosen["not_xattn"]
    assert not chosen["none"]
    assert chosen["xattn_kv"] < chosen["xattn"] < chosen["full"]
    assert chosen["self_attn"] < chosen["blocks"] < chosen["full"]
    assert not chosen["self_attn"] & chosen["xattn"]
    encoders = {part for part in model.parts if part.startswith("text_encoder")}
    assert {name.split(".")[0] for name in chosen["text_encoder"]} == encoders
    assert {name.rpartition(".attn")[2] for name in chosen["lora"]} >= {
        "sd3": {".add_k_proj.weight", ".to_q.weight", "2.to_q.weight", ".to_add_out.weight"},
        "flux": {".add_k_proj.weight", ".to_q.weight", ".to_out.0.weight", ".to_add_out.weight"},
    }.get(family, {"1.to_q.weight", "2.to_k.weight", "2.to_out.0.weight"})


def test_cross_attention_of_a_joint_transformer_is_its_text_stream(models):
    for family in ("sd3", "flux"):
        layers = {name.rpartition(".attn.")[2].rpartition(".")[0] for name in select_parameters(models[family], "xattn")}
        assert layers == {"add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"}
        assert not any("single" in name for name in select_parameters(models[family], "xattn"))


@pytest.mark.parametrize("which", ["xattn", "text_encoder"])
def test_the_loss_has_gradients_for_the_trained_parameters(family, model, which):
    chosen = make_trainable(model, which)
    loss_of(model).backward()
    reached = {name.split(".")[0] for name, parameter in chosen.items() if parameter.grad is not None and parameter.grad.any()}
    assert reached == {name.split(".")[0] for name in chosen}


def test_gradient_checkpointing_changes_no_gradient(family, folders):
    plain, lean = (load(family, folders[family], f"model.checkpointing={way}") for way in ("false", "true"))
    gradients = []
    for one in (plain, lean):
        chosen = make_trainable(one, "full")
        loss_of(one).backward()
        gradients.append({name: parameter.grad for name, parameter in chosen.items()})
    assert any(getattr(module, "gradient_checkpointing", False) for module in lean.modules()[lean.denoiser].modules())
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value)


def test_gradient_checkpointing_changes_no_gradient_of_lora(family, folders):
    gradients = []
    for checkpointing in ("false", "true"):
        model = load(family, folders[family], f"model.checkpointing={checkpointing}")
        parameters = GradientAscent(train="lora").trainable(model, draws())
        loss_of(model).backward()
        gradients.append({name: parameter.grad for name, parameter in parameters.items()})
    reached = {name for name, gradient in gradients[0].items() if gradient is not None and gradient.any()}
    assert len(reached) >= 0.4 * len(gradients[0])  # A has none as long as B is zero
    for name in reached:
        torch.testing.assert_close(gradients[1][name], gradients[0][name])


def test_attention_maps_work_with_gradient_checkpointing(folders):
    gradients = []
    for checkpointing in ("false", "true"):
        model = load("sdxl", folders["sdxl"], f"model.checkpointing={checkpointing}")
        algo = build(compose("algo=fmn", "algo.steps=1", "algo.lr=1e-3").algo, Unlearner, "algo")
        algo.unlearn(model, *tiny_examples(model), CHURCH, 0)
        gradients.append(dict(model.named_parameters()))
        assert any(getattr(m, "gradient_checkpointing", False) for m in model.unet.modules()) == (checkpointing == "true")
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_trained_parameters_are_fp32_in_half_precision(family, folders, models, dtype):
    model = load(family, folders[family], f"model.dtype={dtype}")
    assert {parameter.dtype for _, parameter in model.named_parameters()} <= {
        getattr(torch, {"bf16": "bfloat16", "fp16": "float16"}[dtype]),
        torch.float32,
    }
    fine, coarse = (generate(one, PROMPTS[:1], SEEDS[:1], 2, 2.0).float() for one in (models[family], model))
    assert (fine - coarse).abs().mean() < 8
    for which in ("xattn", "lora"):
        chosen = GradientAscent(train=which).trainable(model, draws())
        loss = loss_of(model)
        loss.backward()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert all(parameter.dtype == torch.float32 and parameter.grad.dtype == torch.float32 for parameter in chosen.values())


# --- every algorithm on every family ------------------------------------------------------------------------------------


@cache
def quick(name):
    """An algorithm, its counts cut to a few."""
    node = compose("experiment=smoke", f"algo={name}").algo
    few = {key: 2 for key, value in node.items() if type(value) is int and value > 2}
    more = {"lr": 1e-3} | ({"weights": "other.safetensors"} if "weights" in node else {})
    return build(OmegaConf.merge(node, few, more), Unlearner, "algo")


@pytest.mark.parametrize("name", by_kind(choices("algo")))
@pytest.mark.parametrize("family", FAMILIES[2:], indirect=True)  # test_algos.py runs each on a velocity-predicting UNet
def test_an_algorithm_runs_on_the_families_that_it_supports_and_on_no_other(family, name, model, models, tmp_path):
    algo = quick(name)
    if hasattr(algo, "weights"):
        other = copy.deepcopy(model)
        for _, parameter in other.named_parameters():
            parameter.data *= 1.01
        save_weights(other, tmp_path / "other.safetensors", list(select_parameters(other, "full")))
    if reason := algo.unavailable_reason(model):
        assert re.fullmatch(
            rf"algo={name}: requires .+, and \w+ has none; `unlearnbench list --support` lists the models of each algorithm",
            reason,
        )
        assert algo.requires() - model.capabilities
        return
    losses = []
    names, guidance = algo.unlearn(model, *tiny_examples(model), CHURCH, 0, LossLog(losses))
    now, then = (dict(one.named_parameters()) for one in (model, models[family]))
    moved = {key for key in now if key not in then or not torch.equal(now[key], then[key])}
    assert moved <= set(names)
    assert bool(moved or guidance) == (name != "none")
    assert all(loss == loss for loss in losses)
    image = generate(model, PROMPTS[:1], SEEDS[:1], 2, 2.0, guidance)
    assert image.shape == (1, 32, 32, 3)
    save_weights(model, tmp_path / "weights.safetensors", names, guidance)
    again = copied(models[family])
    restored = load_weights(again, tmp_path / "weights.safetensors") or guidance
    assert torch.equal(generate(again, PROMPTS[:1], SEEDS[:1], 2, 2.0, restored), image)


@pytest.mark.thorough
def test_the_table_in_the_docs_is_the_computed_one(command):
    output = command("list", "--support")
    assert output.out in DOCS.read_text(encoding="utf-8")
    assert re.search(r"\| uce +\| runs \| runs \| no xattn \| no xattn \|", output.out)


@pytest.mark.parametrize("which", ["lora", "lora2"])
def test_any_method_trains_lora(family, model, models, which):
    algo = copy.copy(quick("salun"))
    algo.train = which
    names = algo.unlearn(model, *tiny_examples(model), CHURCH, 0).names
    assert set(names) == set(select_parameters(models[family], "lora"))
    now, then = (dict(one.named_parameters()) for one in (model, models[family]))
    assert now.keys() == then.keys()
    ranks = {int(torch.linalg.matrix_rank(now[name] - then[name], rtol=1e-3)) for name in names}
    assert max(ranks) == {"lora": 4, "lora2": 2}[which]


@pytest.mark.parametrize("name", ["substitute_text", "redirect"])
def test_every_text_encoder_trains_preconditioned(family, model, models, name):
    algo = dataclasses.replace(quick(name), whiten=0.01, others=10)
    names = algo.unlearn(model, *tiny_examples(model), CHURCH, 0).names
    now, then = (dict(one.named_parameters()) for one in (model, models[family]))
    encoders = {name.split(".")[0] for name in then if name.startswith("text_encoder")}
    assert {name.split(".")[0] for name in names if not torch.equal(now[name], then[name])} == encoders
    assert all(torch.equal(now[name], then[name]) for name in then.keys() - set(names))


def test_a_longer_prompt_is_aligned_token_by_token_in_every_encoder(family, model):
    if family in ("sd3", "flux"):
        model.tokens = 60  # room for the longer one
    short, long = "a red church on the left", "a red house with a tower on the left"
    places, count = (
        aligned_positions(model, [short, short], [short, long]),
        model.encode_prompts([short])["prompt_embeds"].shape[1],
    )
    assert places[0].tolist() == list(range(count))
    first = 0
    for (end, ids), (_, others) in zip(model.tokenize([short]), model.tokenize([long]), strict=True):
        row, said = ids[0], others[0]
        there = [place - first for place in places[1, first : first + len(row)].tolist()]
        assert all(0 <= place < len(said) for place in there)
        stop = row.index(end)
        assert there[stop] == said.index(end) > stop
        assert row[stop - 3 : stop] == [said[place] for place in there[stop - 3 : stop]]
        first += len(row)
    assert first == count


@pytest.mark.parametrize("family", ["sdxl", "flux"], indirect=True)
def test_a_whole_run_and_a_pipeline_that_diffusers_loads(family, folders, command, tmp_path):
    few = ["concept=church", "metrics=integrity", "sample.prompts=1", "sample.per_prompt=1", "retain.splits=[far]"]
    output = command("run", *tiny_overrides(family, folders[family]), *few, "algo=substitute", "algo.steps=2", "algo.batch=2",
                   "training.per_prompt=1", "sample.steps=1", "save_pipeline=true", "hydra.run.dir=done")  # fmt: skip
    assert output.code == 0, output.err
    log = json.loads((tmp_path / "done/run.json").read_text())
    assert log["status"] == "done"
    again = load(family, tmp_path / "done/pipeline")
    original = load(family, folders[family])
    load_weights(original, tmp_path / "done/weights.safetensors")
    assert torch.equal(generate(again, PROMPTS[:1], SEEDS[:1], 2, 2.0), generate(original, PROMPTS[:1], SEEDS[:1], 2, 2.0))


# --- single files -------------------------------------------------------------------------------------------------------


def test_a_single_file_generates_the_images_of_its_folder(folders, models, tmp_path):
    save_file(single_file_weights(models["sd15"].pipeline), tmp_path / "model.safetensors")
    for folder in ("unet", "vae", "text_encoder"):
        (tmp_path / "config" / folder).mkdir(parents=True)
        shutil.copy(folders["sd15"] / folder / "config.json", tmp_path / "config" / folder)
    for folder in ("tokenizer", "scheduler"):
        shutil.copytree(folders["sd15"] / folder, tmp_path / "config" / folder)
    shutil.copy(folders["sd15"] / "model_index.json", tmp_path / "config")
    model = load("sd15", tmp_path / "model.safetensors", f"model.config={tmp_path / 'config'}")
    assert model.fingerprint() == models["sd15"].fingerprint()
    assert torch.equal(generate(model, PROMPTS, SEEDS, 2, 2.0), generate(models["sd15"], PROMPTS, SEEDS, 2, 2.0))


@pytest.mark.parametrize("family", ["sd3", "flux"], indirect=True)
def test_a_single_file_of_a_transformer_is_loaded_with_the_other_parts(family, folders, model, models, tmp_path):
    with torch.no_grad():
        for parameter in model.transformer.parameters():
            parameter.mul_(1.1)
    save_file(model.transformer.state_dict(), tmp_path / "transformer.safetensors")
    loaded = load(family, tmp_path / "transformer.safetensors", f"model.config={folders[family]}")
    assert torch.equal(generate(loaded, PROMPTS[:1], SEEDS[:1], 2, 2.0), generate(model, PROMPTS[:1], SEEDS[:1], 2, 2.0))
    assert loaded.fingerprint() == model.fingerprint() != models[family].fingerprint()


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_single_file_of_a_transformer_takes_the_other_parts_in_their_variant_and_without_t5(variant, folders, models, tmp_path):
    config = shutil.copytree(folders["sd3"], tmp_path / "config", ignore=shutil.ignore_patterns("*_3", "transformer"))
    index = json.loads((config / "model_index.json").read_text())
    (config / "model_index.json").write_text(json.dumps(index | {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}))
    for path in [*config.glob("*/*.safetensors")] if variant else []:
        path.rename(path.with_suffix(f".{variant}.safetensors"))
    (config / "transformer").mkdir()
    shutil.copy(folders["sd3"] / "transformer/config.json", config / "transformer")
    save_file(models["sd3"].transformer.state_dict(), tmp_path / "transformer.safetensors")
    loaded = load("sd3", tmp_path / "transformer.safetensors", f"model.config={config}")
    assert loaded.text_encoder_3 is None
    assert all(torch.equal(a, b) for a, b in zip(loaded.vae.parameters(), models["sd3"].vae.parameters(), strict=True))


# --- what is refused ----------------------------------------------------------------------------------------------------


def load_problem(family, path, *more):
    return unloaded(family, path, *more).unavailable_reason()


def test_a_checkpoint_of_another_family_is_reported_with_the_one_that_fits(folders):
    problem = load_problem("sd15", folders["sdxl"])
    assert problem == (
        f"model.path={folders['sdxl']}: its model_index.json names StableDiffusionXLPipeline, this family is "
        "StableDiffusionPipeline; use model=sdxl"
    )
    assert load_problem("flux", folders["sd3"]).endswith("use model=sd3 or sd35")
    with pytest.raises(UserError, match=r"use model=flux$"):
        unloaded("sdxl", folders["flux"]).load(CPU)


def test_a_pipeline_of_no_family_is_reported(folders, tmp_path):
    shutil.copytree(folders["sd15"], tmp_path / "other")
    index = json.loads((tmp_path / "other/model_index.json").read_text())
    (tmp_path / "other/model_index.json").write_text(json.dumps({**index, "_class_name": "KandinskyPipeline"}))
    problem = load_problem("sd15", tmp_path / "other")
    assert "names KandinskyPipeline" in problem
    assert problem.endswith("known: StableDiffusionPipeline, StableDiffusionXLPipeline, StableDiffusion3Pipeline, FluxPipeline")


@pytest.mark.parametrize(("family", "part"), [("sdxl", "text_encoder_2"), ("flux", "text_encoder_2"), ("sd3", "text_encoder")])
def test_a_missing_text_encoder_is_reported(family, part, folders, tmp_path):
    shutil.copytree(folders[family], tmp_path / "lame")
    shutil.rmtree(tmp_path / "lame" / part)
    missing = f"{part}/config.json, {part}/*.safetensors missing; fetch the whole folder again"
    assert load_problem(family, tmp_path / "lame") == f"model.path={tmp_path / 'lame'}: {missing}"


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".pt"])
def test_a_pickle_is_refused_with_its_conversion(suffix, tmp_path):
    (tmp_path / f"model{suffix}").write_bytes(b"\x80\x04")
    problem = load_problem("sd15", tmp_path / f"model{suffix}")
    command = f"unlearnbench convert {tmp_path}/model{suffix} {tmp_path}/model.safetensors"
    assert f"{suffix} is a pickle, which is not opened; convert it once: `{command}`" in problem


@pytest.mark.parametrize(
    ("family", "needed"),
    [
        ("sd15", "model_index.json, the config.json of every part, the scheduler and the tokenizers (no weights)"),
        ("flux", "model_index.json, the transformer's config.json, and all other parts with their weights"),
    ],
)
def test_a_single_file_without_config_is_reported_with_the_content_it_needs(family, needed, folders, tmp_path):
    names = ["model.diffusion_model.x", "first_stage_model.x", "cond_stage_model.x", "double_blocks.x"]
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "model.safetensors")
    for config in ("nowhere/at/all", tmp_path / "nowhere", *(["null"] if family == "flux" else [])):
        problem = load_problem(family, tmp_path / "model.safetensors", f"model.config={config}")
        assert problem.endswith(f"a single file holds weights alone; name a folder in diffusers' layout with {needed}")
    problem = load_problem(family, tmp_path / "model.safetensors", f"model.config={folders['sdxl']}")
    assert problem.startswith(f"model.config={folders['sdxl']}: its model_index.json names StableDiffusionXLPipeline")
    with pytest.raises(UserError, match="cannot be loaded: "):
        load(family, tmp_path / "model.safetensors", f"model.config={folders[family]}")


@pytest.mark.parametrize(("family", "missing"), [("sd15", "tokenizer/tokenizer.json"), ("flux", "vae/config.json")])
def test_a_folder_of_settings_beside_a_single_file_is_whole(family, missing, folders, tmp_path):
    names = ["model.diffusion_model.x", "first_stage_model.x", "cond_stage_model.x", "double_blocks.x"]
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "model.safetensors")
    config = shutil.copytree(folders[family], tmp_path / "config")
    model = unloaded(family, tmp_path / "model.safetensors", f"model.config={config}")
    assert model.unavailable_reason() is None
    shutil.rmtree((config / missing).parent)
    assert model.unavailable_reason() == f"model.config={config}: {missing} missing; fetch the whole folder again"
    assert model.download() is None


@pytest.mark.parametrize(("family", "side"), [("sdxl", 4), ("sd3", 8), ("flux", 8)])
def test_a_size_that_is_no_multiple_is_reported(family, side, folders):
    with pytest.raises(UserError, match=f"model.size=36|model.size=30: must be a multiple of {side} for "):
        unloaded(family, folders[family], f"model.size={30 if side == 4 else 36}").load(CPU)


# --- memory and speed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling x")],
    ids=["torch", "cublas"],
)
def test_a_batch_that_does_not_fit_into_memory_is_halved_and_gives_the_same_images(error, models, monkeypatch, caplog):
    model = copied(models["sdxl"])
    prompts, seeds = [f"a {color} star" for color in ("red", "blue", "large", "left", "the")], [1, 2, 3, 4, 5]
    whole = generate(model, prompts, seeds, 2, 2.0)
    denoise, tried = type(model).denoise, []

    def small(self, text, empty, noise, *rest):
        tried.append(len(noise))
        if len(noise) > 1:
            raise error
        return denoise(self, text, empty, noise, *rest)

    monkeypatch.setattr(type(model), "denoise", small)
    generator = ImageGenerator(model)
    difference = (generator.batch(SamplingBatch(prompts, seeds, 2, 2.0)).int() - whole.int()).abs()
    assert difference.max() <= 1
    assert tried == [5, 2, 1, 1, 1, 1, 1]
    assert "out of memory with 5 images in a batch; trying 2" in caplog.text
    tried.clear()
    generator.batch(SamplingBatch(prompts[:2], seeds[:2], 2, 2.0))
    assert tried == [1, 1]


def test_one_image_that_exceeds_memory_is_an_error(models, monkeypatch):
    def full(*given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(DiffusersModel, "denoise", full)
    with pytest.raises(torch.OutOfMemoryError):
        generate(copied(models["sd15"]), ["a star", "a tree"], [1, 2], 2, 2.0)


@pytest.mark.parametrize(
    ("settings", "train"),
    [
        ([], lambda frozen, trained, thin: 4 * frozen + 20 * trained),
        (["model.dtype=bf16"], lambda frozen, trained, thin: 2 * frozen + 18 * trained),
        (["model.dtype=bf16", "model.adam8bit=true"], lambda frozen, trained, thin: 2 * frozen + 12 * trained),
        (["algo.train=lora2"], lambda frozen, trained, thin: 4 * (frozen + trained) + 20 * thin),
        (["algo=uce"], lambda frozen, trained, thin: 4 * (frozen + trained)),
    ],
)
def test_the_least_memory_is_counted_from_the_headers(settings, train, folders, models, monkeypatch):
    spec = RunSpec.of(compose(*tiny_overrides("sdxl", folders["sdxl"]), "concept=church", "algo=esd_x", *settings))
    trained = sum(p.numel() for p in select_parameters(models["sdxl"], "xattn").values())
    frozen = sum(p.numel() for _, p in models["sdxl"].named_parameters()) - trained
    thin = sum(2 * sum(p.shape) for p in select_parameters(models["sdxl"], "lora").values())
    expected = train(frozen, trained, thin)
    assert least_memory(spec.model, spec.algo, folders["sdxl"]) == expected
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Toy")
    for there in (expected, expected - 1):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, n=there: SimpleNamespace(total_memory=n))
        problem = memory_problem(spec.model, spec.algo, gpu)
        assert (problem is None) == (there == expected)
    assert re.search(r"weights and training state need 0\.0 GB without activations, and Toy has 0\.0; try ", problem)
    assert memory_problem(spec.model, spec.algo, CPU) is None


@pytest.mark.parametrize(
    ("family", "algo"), [("sdxl", "redirect"), ("sd3", "redirect"), ("sd15", "project")], indirect=["family"]
)
def test_the_least_memory_of_preconditioned_training_counts_deltas_and_preconditioners(family, algo, model, folders):
    spec, idle = (
        RunSpec.of(compose(*tiny_overrides(family, folders[family]), "concept=church", f"algo={a}")) for a in (algo, "none")
    )
    weights = {name for name, _ in model.named_parameters()}
    parameters = spec.algo.trainable(model, draws())
    white = sum(
        b.numel() for part in model.modules().values() for name, b in part.named_buffers() if name.endswith(".preconditioner")
    )
    assert white > 0
    trained = sum(p.numel() for p in parameters.values())
    frozen = least_memory(idle.model, idle.algo, folders[family])
    own = sum(p.numel() for name, p in parameters.items() if name in weights)  # in place of the weights, not beside them
    assert (own > 0) == (algo == "project")
    assert least_memory(spec.model, spec.algo, folders[family]) == frozen + 20 * trained - 4 * own + 4 * white


def test_8_bit_adam_is_an_extra_and_the_optimizer(folders, monkeypatch):
    model = unloaded("sd15", folders["sd15"], "model.adam8bit=true")
    assert model.unavailable_reason() == (
        "model.adam8bit=true needs bitsandbytes: pip install 'unlearnbench[adam8bit]', or leave it false"
    )

    class Adam8bit(torch.optim.SGD):
        pass

    parent, child = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
    child.Adam8bit = Adam8bit
    monkeypatch.setitem(sys.modules, "bitsandbytes", parent)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", child)
    assert type(make_optimizer(model, [torch.nn.Parameter(torch.zeros(1))], 0.1)) is Adam8bit


def test_compile_and_tf32_are_set_and_part_of_the_fingerprint(folders, models):
    model = load("sdxl", folders["sdxl"], "model.compile=true", "model.tf32=true")
    assert model.unet._compiled_call_impl is not None
    assert models["sdxl"].unet._compiled_call_impl is None
    model.compile = False
    assert model.fingerprint() != models["sdxl"].fingerprint()
    model.tf32 = False
    assert model.fingerprint() == models["sdxl"].fingerprint()
    kept = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        fp32_precision(True)
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", True)
        fp32_precision(False)
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)
    finally:
        torch.set_float32_matmul_precision(kept[0])
        torch.backends.cudnn.allow_tf32 = kept[1]
