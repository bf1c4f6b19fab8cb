"""Ours, and the methods of preference, adapters and adversarial training, against computation by hand on the tiny model."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from quick_copy import copied
from shared_examples import CHURCH, LossLog, begun, by_kind, draws, whole
from torch import nn

from unlearnbench.algos.adv_unlearn import AdvUnlearn, insert_prefix
from unlearnbench.algos.closed_form import text_hidden_states
from unlearnbench.algos.duo import DUO, sdedit
from unlearnbench.algos.esd import ESD
from unlearnbench.algos.eupmu import EUPMU
from unlearnbench.algos.examples import Batch
from unlearnbench.algos.interpolation import interpolate_back
from unlearnbench.algos.losses import denoising_loss, gradients_of, relabelling_loss
from unlearnbench.algos.negative_guidance import negative_guidance_target, partially_denoise
from unlearnbench.algos.push_away import PushAway
from unlearnbench.algos.receler import Receler, concept_region, insert_embeddings, mean_square_outside
from unlearnbench.algos.redirect import Redirect
from unlearnbench.algos.saddle import Saddle
from unlearnbench.algos.spm import SPM, random_embeddings
from unlearnbench.algos.substitute import Substitute
from unlearnbench.algos.surgery import Surgery, project_conflict
from unlearnbench.algos.training import Step
from unlearnbench.config.errors import UserError
from unlearnbench.data.concept import Concept
from unlearnbench.models.adapters.bottleneck import install_bottlenecks
from unlearnbench.models.adapters.gated_lora import FacilitatedTransport, gated_loras
from unlearnbench.models.adapters.lora import install_lora, lora_layers
from unlearnbench.models.adapters.merging import merge_adapters
from unlearnbench.models.adapters.preconditioned import precondition
from unlearnbench.models.frozen import Frozen
from unlearnbench.models.noising import add_random_noise
from unlearnbench.models.parameters import make_trainable
from unlearnbench.models.vocabulary import decode_tokens, replace_random_words, token_embedding, whole_words
from unlearnbench.models.weights import load_weights, save_weights
from unlearnbench.sampling import generate

OURS = (Substitute, PushAway, Saddle, Surgery)


def ready(model, which: str = "xattn") -> Frozen:
    return Frozen(model, make_trainable(model, which))


def moved(model, by: float = 0.05) -> None:
    """What trains, a little off the original."""
    generator = draws(21)
    with torch.no_grad():
        for _, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter += by * torch.randn(parameter.shape, generator=generator)


def snapshot(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def latents_of(model, seed: int = 5):
    return torch.randn(2, *model.latent_shape(), generator=draws(seed))


# --- substitute ---------------------------------------------------------------------------------------------------------


def test_substitute_is_its_formula(model, forget, retain):
    frozen, forget, retain = ready(model), whole(forget), whole(retain)
    moved(model)
    actual = Substitute(keep=2.0).loss(model, frozen, forget, retain, draws())
    generator = draws()
    other = torch.rand(3, generator=generator) < 0.5
    x = add_random_noise(model, torch.where(other[:, None, None, None], forget.anchor_latents, forget.latents), generator)
    anchors = frozen.predict(x.noisy_latents, x.timesteps, forget.anchors)
    first = F.mse_loss(model.predict(x.noisy_latents, x.timesteps, model.encode_prompts(forget.prompts)), anchors)
    x = add_random_noise(model, retain.latents, generator)
    kept = frozen.predict(x.noisy_latents, x.timesteps, retain.prompts)
    second = F.mse_loss(model.predict(x.noisy_latents, x.timesteps, model.encode_prompts(retain.prompts)), kept)
    assert second > 0
    torch.testing.assert_close(actual, first + 2 * second)


@pytest.mark.parametrize("states", ["noised", "original", "own"])
@pytest.mark.parametrize("guided", [False, True])
def test_what_is_kept_costs_nothing_at_the_start(model, retain, states, guided):
    frozen = ready(model)
    algo = Substitute(states=states, guided=guided)
    kept = algo.retain_loss(model, frozen, whole(retain), draws())
    kept.backward()
    assert kept.item() < 1e-12
    moved(model)
    assert algo.retain_loss(model, frozen, whole(retain), draws()).item() > 1e-6


def test_states_of_the_original_stay_when_the_model_moves(model, retain):
    model.steps = 10
    seed = next(s for s in range(9) if torch.randint(10, (), generator=draws(s)) > 2)
    frozen, batch = ready(model), whole(retain)
    recorded = [Substitute(states=s).noisy_inputs(model, frozen, batch, draws(seed))[0] for s in ("original", "own")]
    assert torch.equal(*recorded)
    moved(model, 0.3)
    again = [Substitute(states=s).noisy_inputs(model, frozen, batch, draws(seed))[0] for s in ("original", "own")]
    assert torch.equal(recorded[0], again[0])
    assert not torch.equal(recorded[1], again[1])


def test_a_guided_distance_is_that_of_guided_predictions_over_the_scale(model, retain):
    frozen, x, times = ready(model), latents_of(model), torch.tensor([100, 700])
    prompts = retain.prompts[:2]
    moved(model)
    actual = Substitute(guided=True).distance(model, frozen, x, times, prompts, frozen.predict(x, times, prompts))

    def steered(predict):
        return predict([""] * 2) + model.guidance * (predict(prompts) - predict([""] * 2))

    now = steered(lambda texts: model.predict(x, times, model.encode_prompts(texts)))
    before = steered(lambda texts: frozen.predict(x, times, texts))
    torch.testing.assert_close(actual, ((now - before) / model.guidance).square().mean())


def test_a_decaying_rate_moves_less_and_less(model, forget, retain, monkeypatch):
    algo = Substitute(steps=4, lr=1e-3, decay=True)
    assert [algo.rate(step / 4) for step in range(5)] == pytest.approx([1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4, 0])
    assert {Substitute(steps=4).rate(step / 4) for step in range(4)} == {1}
    path = [snapshot(model)]
    monkeypatch.setattr(Substitute, "after_step", lambda self, training: path.append(snapshot(training.model)))
    algo.unlearn(model, forget, retain, CHURCH, 0)
    assert len(path) == 5
    longest = [max((b[name] - a[name]).abs().max().item() for name in a) for a, b in pairwise(path)]
    assert longest[0] == pytest.approx(1e-3, rel=1e-3)  # Adam's first step
    assert longest[3] < 0.5 * longest[0]


def test_keep_anchor_holds_the_anchors(model, forget, retain):
    frozen, forget, retain = ready(model), whole(forget), whole(retain)

    def added(weight):
        return Substitute(keep_anchor=weight).forget_loss(model, frozen, forget, draws()).item()

    assert added(1.0) == pytest.approx(added(0.0))
    moved(model)
    assert added(1.0) > added(0.0)
    assert added(2.0) - added(0.0) == pytest.approx(2 * (added(1.0) - added(0.0)), rel=1e-3)


def test_near_prompts_are_drawn_more_often(model, forget, retain, tmp_path):
    (tmp_path / "church.csv").write_text("prompt,split\na church,forget\na tree,near\n")
    concept = Concept("church", ["church"], str(tmp_path / "church.csv"), {"church": "house"}, "church", {})
    training = begun(Substitute(near=3.0), model, forget, retain, concept)
    drawn = training.retain.draw(4000, draws()).prompts
    assert drawn.count("a tree") / len(drawn) == pytest.approx(3 / 6, abs=0.03)
    assert retain.weights is None
    Substitute().begin(training)
    assert training.retain.weights is None


def test_step_back_finds_the_nearest_point_that_forgets():
    weight = nn.Parameter(torch.tensor([4.0]))
    asked = []

    def forgetting():
        asked.append(weight.item())
        return (1 - weight.item() / 4) ** 2

    share = interpolate_back({"w": weight}, {"w": torch.zeros(1)}, forgetting, allowed=0.25, halvings=12)
    assert share == pytest.approx(0.5, abs=1e-3)
    assert weight.item() == pytest.approx(2.0, abs=4e-3)
    assert asked[:2] == [0.0, 4.0]


def test_step_back_of_nothing_stays(model, forget, retain):
    weight = nn.Parameter(torch.tensor([4.0]))
    assert interpolate_back({"w": weight}, {"w": torch.zeros(1)}, lambda: -weight.item(), allowed=0.0) == 1.0
    assert weight.item() == 4.0


def test_stepping_back_brings_the_weights_nearer(original, forget, retain):
    def distance(share):
        model = copied(original)
        names = Substitute(steps=3, lr=1e-2, step_back=share).unlearn(model, forget, retain, CHURCH, 0).names
        now, before = dict(model.named_parameters()), dict(original.named_parameters())
        return sum((now[n] - before[n]).square().sum().item() for n in names) ** 0.5

    assert 0 < distance(0.5) < distance(0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"states": "noise"}, "states: 'noise'; known: noised, original, own"),
        ({"near": 0.0}, "near: 0.0 is not above 0"),
        ({"from_anchor": 1.5}, "from_anchor: 1.5 is not between 0 and 1"),
        ({"step_back": -1.0}, "step_back: -1.0 is not between 0 and 1"),
        ({"rank": -1}, "rank: -1 is less than 0"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Substitute(**settings)


# --- push_away and ESD --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["empty", "concept"])
def test_the_target_of_esd(model, source):
    frozen, x, times, prompts = ready(model), latents_of(model), torch.tensor([10, 900]), ["a church", "a red church"]
    prediction, empty = frozen.predict(x, times, prompts), frozen.predict(x, times, ["", ""])
    moved(model)
    base = {"empty": empty, "concept": prediction}[source]
    torch.testing.assert_close(
        negative_guidance_target(frozen, x, times, prompts, 1.5, source), base - 1.5 * (prediction - empty)
    )


def test_esd_is_its_formula(model, forget, retain):
    frozen, batch = ready(model), whole(forget)
    algo = ESD(eta=1.0, source="empty", sample_steps=4)
    actual = algo.loss(model, frozen, batch, whole(retain), draws())
    x, times = partially_denoise(model, batch.prompts, 4, 3.0, draws())
    prediction, empty = (frozen.predict(x, times, p) for p in (batch.prompts, [""] * 3))
    torch.testing.assert_close(actual, (prediction - (2 * empty - prediction)).square().mean())


def test_push_away_is_esd_with_the_retain_term(model, forget, retain):
    frozen, forget, retain = ready(model), whole(forget), whole(retain)
    moved(model)
    actual = PushAway(keep=3.0).loss(model, frozen, forget, retain, draws())
    generator = draws()
    torch.rand(3, generator=generator)
    x = add_random_noise(model, forget.latents, generator)
    target = negative_guidance_target(frozen, x.noisy_latents, x.timesteps, forget.prompts, 1.0, "empty")
    first = F.mse_loss(model.predict(x.noisy_latents, x.timesteps, model.encode_prompts(forget.prompts)), target)
    torch.testing.assert_close(actual, first + 3 * Substitute().retain_loss(model, frozen, retain, generator))


# --- saddle -------------------------------------------------------------------------------------------------------------


def test_the_multiplier_follows_the_budget(model, forget, retain, monkeypatch):
    algo = Saddle(keep=1.0, budget=1e-3, ascent=0.5)
    given = iter([3e-3, 0.0, 1e-3, 0.0, 0.0, 0.0, 0.0])
    monkeypatch.setattr(algo, "forget_loss", lambda *_: torch.tensor(0.1))
    monkeypatch.setattr(algo, "retain_loss", lambda *_: torch.tensor(next(given)))
    training = begun(algo, model, forget, retain)
    values, multipliers = [], []
    for _ in range(7):
        values.append(algo.step_loss(training, Step(whole(forget), whole(retain), draws())).item())
        multipliers.append(training.state.multiplier)
    assert multipliers == pytest.approx([2.0, 1.5, 1.5, 1.0, 0.5, 0.0, 0.0], abs=1e-5)
    assert values[:3] == pytest.approx([0.1 + 1 * 2e-3, 0.1 - 2 * 1e-3, 0.1], abs=1e-6)


def test_a_small_budget_keeps_more_than_a_large_one(original, forget, retain):
    def change(budget):
        model = copied(original)
        Saddle(steps=12, lr=5e-3, budget=budget, ascent=1.0).unlearn(model, forget, retain, CHURCH, 0)
        x, times = latents_of(model), torch.tensor([200, 600])
        prediction = [m.predict(x, times, m.encode_prompts(retain.prompts[:2])) for m in (original, model)]
        return F.mse_loss(*prediction).item()

    assert change(1e-7) < change(1.0)


# --- surgery ------------------------------------------------------------------------------------------------------------


def test_projection_takes_only_what_is_against():
    def projected(expected, guarded):
        return project_conflict({"w": torch.tensor(expected)}, {"w": torch.tensor(guarded)})["w"].tolist()

    assert projected([1.0, 0.0], [-1.0, 1.0]) == [0.5, 0.5]
    assert projected([1.0, 0.0], [1.0, 1.0]) == [1.0, 0.0]
    assert projected([1.0, 2.0], [0.0, 0.0]) == [1.0, 2.0]
    assert projected([-3.0, 0.0], [3.0, 0.0]) == [0.0, 0.0]


def test_projection_counts_all_parameters_as_one_vector():
    expected = {"a": torch.tensor([1.0]), "b": torch.tensor([[1.0, 0.0]])}
    guarded = {"a": torch.tensor([-3.0]), "b": torch.tensor([[1.0, 0.0]])}
    actual = project_conflict(expected, guarded)
    assert actual["a"].item() == pytest.approx(1 - 0.2 * 3)
    assert actual["b"].tolist() == [[pytest.approx(1 + 0.2), 0.0]]
    assert sum((actual[n] * guarded[n]).sum() for n in expected) == pytest.approx(0, abs=1e-6)


def test_the_step_of_surgery(model, forget, retain):
    algo = Surgery(memory=0.75, keep=2.0)
    training = begun(algo, model, forget, retain)
    parameters, frozen, forget, retain = training.parameters, training.original, whole(forget), whole(retain)
    moved(model)
    firsts = None
    for seed in (3, 4):
        algo.backward(training, Step(forget, retain, draws(seed)))
        generator = draws(seed)
        expected = gradients_of(algo.forget_loss(model, frozen, forget, generator), parameters)
        retaining = gradients_of(denoising_loss(model, retain, generator), parameters)
        held = gradients_of(2 * algo.retain_loss(model, frozen, retain, generator), parameters)
        mean = retaining if firsts is None else {n: 0.75 * firsts[n] + 0.25 * g for n, g in retaining.items()}
        firsts = firsts or retaining
        for name, projected in project_conflict(expected, mean).items():
            torch.testing.assert_close(parameters[name].grad, projected + held[name], rtol=1e-4, atol=1e-7)


# --- eupmu --------------------------------------------------------------------------------------------------------------


def test_eupmu_weighs_by_its_multiplier(model, forget, retain):
    algo = EUPMU(retain_weight=0.5, epsilon=-0.003, multiplier_lr=0.25, multiplier_decay=0.0)
    training = begun(algo, model, forget, retain)
    forget, retain = whole(forget), whole(retain)

    def parts(seed):
        generator = draws(seed)
        return 0.5 * denoising_loss(model, retain, generator), relabelling_loss(model, forget, forget.anchors, generator)

    first = algo.step_loss(training, Step(forget, retain, draws(1)))
    torch.testing.assert_close(first, parts(1)[1])
    algo.after_step(training)
    second = algo.step_loss(training, Step(forget, retain, draws(2)))  # nothing changed between: lambda's gradient is epsilon
    assert training.state.multiplier.item() == pytest.approx(0.25, abs=1e-4)
    kept, relabelled = parts(2)
    torch.testing.assert_close(second, (0.25 * kept + relabelled) / 1.25, rtol=1e-4, atol=1e-6)


def test_eupmu_lets_go_where_the_retain_loss_falls(model, forget, retain):
    algo = EUPMU(epsilon=0.1, multiplier_lr=0.25)
    training = begun(algo, model, forget, retain)
    for seed in (1, 2, 3):
        algo.step_loss(training, Step(whole(forget), whole(retain), draws(seed)))
        algo.after_step(training)
    assert training.state.multiplier.item() == 0.0


# --- redirect -----------------------------------------------------------------------------------------------------------


def test_redirect_is_its_formula_token_by_token_and_needs_no_denoiser(model, original):
    model.unet = None
    said = Batch(["a red church", "a church on the left"], ["a red house", "a small house on the left"], torch.empty(0))
    kept = Batch(["a blue star"], [""], torch.empty(0))
    algo = Redirect(keep=3.0)
    training = begun(algo, model, said, kept)
    assert training.state.others == []
    moved(model)
    actual = algo.step_loss(training, Step(said, kept, draws()))

    def far(prompt, wanted, places):
        expected, taught = (
            model.encode_prompts([prompt])["prompt_embeds"][0],
            original.encode_prompts([wanted])["prompt_embeds"][0, places],
        )
        return expected, taught

    tokens = model.encode_prompts([""])["prompt_embeds"].shape[1]
    # start, a, house for church, on, the, left, end; small, which stands nowhere, in the first place of the padding
    places = {1: [0, 1, 3, 4, 5, 6, 7, 2, *range(9, tokens), tokens - 1]}
    pairs = [far(*of, places.get(i, list(range(tokens)))) for i, of in enumerate(zip(said.prompts, said.anchors, strict=True))]
    first = sum(((a - b) ** 2).sum() for a, b in pairs) / sum((b**2).sum() for _, b in pairs)
    now, before = far(kept.prompts[0], kept.prompts[0], list(range(tokens)))
    torch.testing.assert_close(actual, first + 3 * ((now - before) ** 2).mean() / (before**2).mean())
    actual.backward()
    assert all(p.grad is None for n, p in model.named_parameters() if not n.startswith("text_encoder."))
    assert any(p.grad is not None and p.grad.any() for p in model.text_encoder.parameters())


def test_redirect_holds_what_no_retain_prompt_says(model, forget, retain):
    algo, recorded = Redirect(whiten=0.05, others=20), []
    training = begun(algo, model, forget, retain)
    assert all(name.startswith("text_encoder.") and ".parametrizations.weight.0." in name for name in training.parameters)
    others = training.state.others
    assert set(others).isdisjoint(retain.prompts)
    assert len(others) > 10
    encode = model.encode_prompts
    model.encode_prompts = lambda prompts: recorded.append(list(prompts)) or encode(prompts)
    algo.step_loss(training, Step(whole(forget), whole(retain, 2), draws(1)))
    algo.step_loss(training, Step(whole(forget), whole(retain, 2), draws(2)))
    expected = [prompts for prompts in recorded if prompts[0] == forget.prompts[0]]
    assert all(len(prompts) == 3 + 2 + 2 and set(prompts[5:]) <= set(others) for prompts in expected)
    assert expected[0][5:] != expected[1][5:]


def test_redirect_trains_text_encoders_alone():
    with pytest.raises(ValueError, match="trains only text encoders, so try text_encoder"):
        Redirect(train="xattn")


# --- adapters -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{"rank": 2}, {"whiten": 0.01, "train": "xattn_kv"}, {"whiten": 0.01, "train": "text_encoder"}], ids=str
)
@pytest.mark.parametrize("cls", OURS)
def test_adapters_train_alone_and_merge_exactly(original, forget, retain, cls, settings, tmp_path):
    model = copied(original)
    algo = cls(steps=2, lr=1e-2, **settings)
    generator = draws()
    parameters = algo.trainable(model, generator)
    assert all(re.search(r"\.parametrizations\.weight\.0\.|\.lora_[AB]\.default\.weight$", name) for name in parameters)
    x, times, prompts = latents_of(model), torch.tensor([300, 800]), ["a church", "a star"]
    before = original.predict(x, times, original.encode_prompts(prompts))
    assert torch.equal(model.predict(x, times, model.encode_prompts(prompts)), before)
    frozen = Frozen(model, parameters)
    moved(model)
    apart = model.predict(x, times, model.encode_prompts(prompts))
    assert not torch.allclose(apart, before)
    torch.testing.assert_close(frozen.predict(x, times, prompts), before)
    names = merge_adapters(model)
    assert set(dict(model.named_parameters())) == set(dict(original.named_parameters()))
    torch.testing.assert_close(model.predict(x, times, model.encode_prompts(prompts)), apart)
    save_weights(model, tmp_path / "weights.safetensors", names)
    other = copied(original)
    load_weights(other, tmp_path / "weights.safetensors")
    assert torch.equal(
        other.predict(x, times, other.encode_prompts(prompts)), model.predict(x, times, model.encode_prompts(prompts))
    )


def test_a_merged_weight_keeps_what_half_precision_would_round_away():
    layer = torch.nn.Linear(8, 8, bias=False).bfloat16()
    before = layer.weight.detach().float()
    unet = torch.nn.ModuleDict({"one": layer})
    model = SimpleNamespace(
        modules=lambda: {"unet": unet}, named_parameters=lambda: ((f"unet.{name}", p) for name, p in unet.named_parameters())
    )
    parameters = install_lora(model, ["unet.one.weight"], 1, draws())
    assert all(parameter.dtype == torch.float32 for parameter in parameters.values())
    down, up = parameters["unet.one.lora_A.default.weight"], parameters["unet.one.lora_B.default.weight"]
    up.data += 1e-5
    assert merge_adapters(model) == ["unet.one.weight"]
    assert unet["one"] is layer
    assert layer.weight.dtype == torch.float32
    torch.testing.assert_close(layer.weight, before + up @ down)
    assert not torch.equal(layer.weight, before)


def test_a_whitened_step_is_the_gradient_times_the_inverse_second_moment(original, forget, retain):
    ridge, rate = 0.05, 100.0
    plain, white = copied(original), copied(original)
    states = text_hidden_states(original, list(dict.fromkeys(retain.prompts))).flatten(0, -2)
    moment = sum(torch.outer(state, state) for state in states)
    moment *= len(moment) / moment.trace()
    inverse = torch.linalg.inv(moment + ridge * torch.eye(len(moment), dtype=moment.dtype)).float()
    changes = []
    for model, settings in ((plain, {}), (white, {"whiten": ridge})):
        algo = Substitute(train="xattn_kv", **settings)
        training = begun(algo, model, forget, retain)
        algo.backward(training, Step(forget.draw(2, draws()), retain.draw(2, draws()), draws(1)))
        torch.optim.SGD(training.parameters.values(), rate).step()
        merge_adapters(model)
        before = dict(original.named_parameters())
        changes.append(
            {n: (p - before[n]).detach() for n, p in model.named_parameters() if "attn2.to_k" in n or "attn2.to_v" in n}
        )
    assert changes[0]
    for name, change in changes[0].items():
        torch.testing.assert_close(changes[1][name], change @ inverse, rtol=1e-3, atol=1e-5)
    assert max(change.abs().max() for change in changes[1].values()) > 1e-2


def test_a_text_encoder_is_whitened_by_what_each_of_its_layers_reads(model, forget, retain):
    ridge, prompts = 0.05, list(dict.fromkeys(retain.prompts))
    algo, read = Substitute(train="text_encoder", whiten=ridge), {}
    parameters = begun(algo, model, forget, retain).parameters
    linear = {name: layer for name, layer in model.text_encoder.named_modules() if isinstance(layer, nn.Linear)}
    assert {f"text_encoder.{name}.parametrizations.weight.0.up" for name in linear} == set(parameters)
    for name, layer in linear.items():
        layer.register_forward_hook(lambda layer, inputs, actual, name=name: read.update({name: inputs[0].double()}))
    with torch.no_grad():
        model.encode_prompts(prompts)
    for name, layer in linear.items():
        rows = read[name].flatten(0, -2)
        moment = torch.einsum("ni,nj->ij", rows, rows)
        moment *= len(moment) / moment.trace()
        white = layer.parametrizations.weight[0].preconditioner.double()
        held = moment + ridge * torch.eye(len(moment), dtype=moment.dtype)
        torch.testing.assert_close(white @ held @ white, torch.eye(len(held), dtype=held.dtype), rtol=0, atol=1e-3)


def test_other_words_are_held_too(model, forget, retain):
    retained, never = list(dict.fromkeys(retain.prompts)), CHURCH.name_phrases()
    reworded = replace_random_words(model, retained, 50, never, draws(3))
    assert len(reworded) == 50
    assert (
        reworded
        == replace_random_words(model, retained, 50, never, draws(3))
        != replace_random_words(model, retained, 50, never, draws(4))
    )
    vocabulary = decode_tokens(model, whole_words(model)[:, None])
    came = set()
    for prompt in reworded:
        exchanges = [(a, b) for old in retained if len(old.split()) == len(prompt.split()) for a, b in [differences(old, prompt)]]
        came |= {b[0] for a, b in exchanges if len(b) == 1}
        assert any(len(b) <= 1 for a, b in exchanges)
    assert came <= set(vocabulary) - {"church"}
    assert len(came) > 10
    algo, whites = Substitute(train="text_encoder", whiten=0.05, others=50), []
    begun(algo, model, forget, retain, seed=3, parameters=algo.trainable(model, draws()))
    layer = next(layer for layer in model.text_encoder.modules() if isinstance(layer, nn.Linear))
    whites.append(layer.parametrizations.weight[0].preconditioner.clone())
    for prompts in ([*retained, *(prompt for prompt in reworded if not CHURCH.is_named_in(prompt))], retained):
        precondition(model, prompts, 0.05)
        whites.append(layer.parametrizations.weight[0].preconditioner.clone())
    assert torch.equal(whites[0], whites[1])
    assert not torch.allclose(whites[0], whites[2], rtol=0.1)


def differences(old, new):
    """The words in which two prompts of the same length differ: those of the one, and those of the other."""
    pairs = [(a, b) for a, b in zip(old.split(), new.split(), strict=True) if a != b]
    return [a for a, _ in pairs], [b for _, b in pairs]


def test_whitening_is_for_layers_that_read_the_text_alone(model):
    with pytest.raises(UserError, match="does not depend on the text alone"):
        Substitute(train="xattn", whiten=0.1).trainable(model, draws())
    with pytest.raises(ValueError, match="at most one of them"):
        Substitute(rank=2, whiten=0.1)


def test_adapters_have_their_rank(model):
    algo = SPM(train=r"^unet\..*attentions\.", rank=1, transport=False)
    parameters = algo.trainable(model, draws())
    weights = {n: p for n, p in model.named_parameters() if n.endswith(".base_layer.weight")}
    assert len(parameters) == 2 * len(weights)
    assert any(w.dim() == 4 for w in weights.values())
    for name, weight in weights.items():
        layer = name.removesuffix("base_layer.weight")
        assert parameters[f"{layer}lora_B.default.weight"].flatten(1).shape == (len(weight), 1)
        assert parameters[f"{layer}lora_A.default.weight"].flatten(1).shape == (1, weight[0].numel())
        assert not weight.requires_grad
    moved(model)
    before = {n: p.detach().clone() for n, p in weights.items()}
    merge_adapters(model)
    merged = dict(model.named_parameters())
    for name, weight in before.items():
        change = merged[name.replace(".base_layer.weight", ".weight")] - weight
        assert torch.linalg.matrix_rank(change.flatten(1).detach(), rtol=1e-3) == 1


def test_an_adapted_convolution_is_two_convolutions(model):
    SPM(train=r"^unet\.conv_in\.weight$", rank=3, transport=False).trainable(model, draws())
    moved(model)
    layer, x = model.unet.conv_in, latents_of(model)
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert down.shape == (3, 4, 3, 3)
    assert up.shape[1:] == (3, 1, 1)
    original = F.conv2d(x, layer.base_layer.weight, layer.base_layer.bias, padding=1)
    expected = original + F.conv2d(F.conv2d(x, down, padding=1), up)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    weight = layer.base_layer.weight + torch.einsum("or,rikl->oikl", up.flatten(1), down)
    merge_adapters(model)
    torch.testing.assert_close(model.unet.conv_in.weight, weight)
    torch.testing.assert_close(model.unet.conv_in(x), expected, rtol=1e-4, atol=1e-5)


def test_lora_starts_from_the_given_generator_alone(model):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    weights = [name for name, _ in model.named_parameters() if name.startswith("unet.")]
    parameters = install_lora(model, weights, 2, draws())
    assert torch.equal(torch.get_rng_state(), before)
    generator = draws()
    for _, layer in lora_layers(model):
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        bound = down[0].numel() ** -0.5
        expected = torch.empty(2, down[0].numel()).uniform_(-bound, bound, generator=generator)
        assert torch.equal(down.flatten(1), expected)
        assert not up.any()
    assert len(parameters) == 2 * len(lora_layers(model))
    merge_adapters(model)
    assert not lora_layers(model)


def test_nothing_to_adapt_is_reported(model):
    with pytest.raises(UserError, match="selects no weight of a linear or convolution layer to adapt"):
        SPM(train=r"^unet\..*bias$").trainable(model, draws())
    with pytest.raises(UserError, match="selects no weight of a linear or convolution layer to adapt"):
        SPM(train=r"^unet\..*bias$", transport=False).trainable(model, draws())


# --- duo ----------------------------------------------------------------------------------------------------------------


def test_duo_starts_at_log_two(model, forget, retain):
    algo = DUO(rank=2, train=r"^unet\..*attn1\.", beta=100.0, keep=10.0)
    frozen = Frozen(model, algo.trainable(model, draws()))
    pairs = Batch(forget.prompts, forget.anchors, torch.cat([forget.latents, forget.latents.flip(0)], dim=1))
    assert algo.loss(model, frozen, pairs, whole(retain), draws()).item() == pytest.approx(math.log(2), abs=1e-5)


def test_duo_is_its_formula(model, forget, retain):
    algo = DUO(rank=2, train=r"^unet\..*attn1\.", beta=50.0, keep=2.0, latest=0.5)
    frozen = Frozen(model, algo.trainable(model, draws()))
    moved(model, 0.2)
    edits = forget.latents.flip(0)
    pairs = Batch(forget.prompts, forget.anchors, torch.cat([forget.latents, edits], dim=1))
    actual = algo.loss(model, frozen, pairs, whole(retain), draws())
    generator, empty = draws(), [""] * 3
    times = torch.randint(500, (3,), generator=generator)
    noise = torch.randn(3, *model.latent_shape(), generator=generator)

    def worse(clean):
        x, y = model.add_noise(clean, noise, times), model.target(clean, noise, times)
        errors = [
            (p - y).square().mean((1, 2, 3))
            for p in (model.predict(x, times, model.encode_prompts(empty)), frozen.predict(x, times, empty))
        ]
        return errors[0] - errors[1]

    preference = (1 + (50 * (worse(edits) - worse(forget.latents))).exp()).log().mean()
    end = torch.tensor([999] * 3)
    kept = F.mse_loss(model.predict(noise, end, model.encode_prompts(empty)), frozen.predict(noise, end, empty))
    torch.testing.assert_close(actual, preference + 2 * kept, rtol=1e-3, atol=1e-4)


def test_duo_pairs_leave_the_examples_alone(original, forget, retain):
    latents = forget.latents.clone()
    names = DUO(steps=2, rank=2, train=r"^unet\..*attn1\.").unlearn(copied(original), forget, retain, CHURCH, 0).names
    assert torch.equal(forget.latents, latents)
    assert names
    assert all("attn1" in name for name in names)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_an_edit_ends_at_what_the_model_sees(model, forget, monkeypatch, kind):
    model.noise_scheduler.register_to_config(prediction_type=kind)
    expected = forget.latents.flip(0) + 1

    def seer(x, times, text):
        one, zero = torch.ones_like(x), torch.zeros_like(x)
        a, b = model.add_noise(one, zero, times), model.add_noise(zero, one, times)
        return model.target(expected, (x - a * expected) / b, times)

    monkeypatch.setattr(model, "predict", seer)
    noise = torch.randn(forget.latents.shape, generator=draws())
    torch.testing.assert_close(sdedit(model, whole(forget), 0.75, noise), expected, rtol=1e-3, atol=1e-3)


# --- spm ----------------------------------------------------------------------------------------------------------------


def test_random_embeddings_have_nearly_the_norm(model):
    text = model.encode_prompts(["a church", "a red church on the left"])
    actual = random_embeddings(text, draws())["prompt_embeds"]
    ratio = actual.flatten(1).norm(dim=1) / text["prompt_embeds"].flatten(1).norm(dim=1)
    assert actual.shape == text["prompt_embeds"].shape
    assert ((ratio > 0.8 - 1e-4) & (ratio < 1.2 + 1e-4)).all()
    assert not torch.equal(actual[0], actual[1])


def test_spm_starts_as_esd(model, forget, retain):
    algo = SPM(train=r"^unet\..*attentions\.", sample_steps=4)
    training = begun(algo, model, forget, retain)
    actual = algo.step_loss(training, Step(whole(forget), whole(retain), draws()))
    same = ESD(eta=1.0, source="empty", sample_steps=4, sample_guidance=3.0)
    torch.testing.assert_close(actual, same.loss(model, training.original, whole(forget), whole(retain), draws()))
    moved(model)
    still, weighed = (
        replace(algo, keep=keep).step_loss(training, Step(whole(forget), whole(retain), draws())).item() for keep in (0.0, 1000.0)
    )
    assert weighed > still


def test_a_membrane_adds_what_a_merged_adapter_adds(original):
    merged, apart = copied(original), copied(original)
    for model, algo in ((merged, SPM(train="full", rank=2, transport=False)), (apart, SPM(train="full", rank=2))):
        parameters = algo.trainable(model, draws())
        for other, parameter in enumerate(parameters.values()):
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=draws(other))
    merge_adapters(merged)
    x, times, text = latents_of(original), torch.tensor([300, 800]), original.encode_prompts(["a church", "a star"])
    torch.testing.assert_close(apart.predict(x, times, text), merged.predict(x, times, text), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(original.predict(x, times, text), merged.predict(x, times, text), atol=1e-2)


def test_a_prompt_opens_a_membrane_by_its_likeness_to_the_concept(model):
    transport = FacilitatedTransport([["red church", "chapel"], ["star"]])
    prompts = ["a red church", "a church", "a star", "a red star on the left", "", "a red church"]
    plain = model.encode_prompts(prompts)
    text = transport.conditioned(model, prompts, plain)
    assert "gates" not in plain
    assert torch.equal(text["prompt_embeds"], plain["prompt_embeds"])
    states, of = (model.encode_prompts(some)["prompt_embeds"].flatten(1) for some in (prompts, ["red church", "chapel", "star"]))
    cosines = F.cosine_similarity(states[:, None], of[None], dim=-1)
    shares = torch.tensor([[1.0, 0, 0], [0.5, 0, 0], [0, 0, 1], [0.5, 0, 1], [0, 0, 0], [1, 0, 0]])
    both = torch.maximum(cosines, shares)
    torch.testing.assert_close(text["gates"], torch.stack([both[:, :2].amax(1), both[:, 2]], dim=1))
    assert text["gates"][[0, 5], 0].tolist() == [1.0, 1.0]
    assert text["gates"][[2, 3], 1].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_half_open_membrane_adds_half(model, scale):
    transport = FacilitatedTransport([["church"], ["star"]])
    for number in range(2):
        parameters = SPM(train=r"^unet\.(conv_in|.*attentions)\.").trainable(model, draws(number))
        for parameter in parameters.values():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=draws(number))
    x, prompts = latents_of(model), ["a church", "a house"]
    text, empty = transport.conditioned(model, prompts, model.encode_prompts(prompts)), model.encode_prompts([""])
    actual = transport.start(model, text, empty, 4, scale)(0, x, torch.tensor(500))
    for row, gates in enumerate(text["gates"]):
        by_hand = copy.deepcopy(model)
        for number, membrane in gated_loras(by_hand):
            membrane.up.data *= gates[number]
        prediction = by_hand.predict(x, torch.tensor([500, 500]), text)
        if scale > 1:
            without = by_hand.predict(x, torch.tensor([500, 500]), {"prompt_embeds": empty["prompt_embeds"].expand(2, -1, -1)})
            prediction = without + scale * (prediction - without)
        torch.testing.assert_close(actual[row], prediction[row], rtol=1e-3, atol=1e-4)
    assert all(membrane.gate is None for _, membrane in gated_loras(model))


def test_membranes_of_one_concept_after_another_load_again_with_what_opens_them(original, forget, retain, tmp_path):
    model = copied(original)
    algo = SPM(steps=2, lr=1e-2, train=r"^unet\..*attentions\.", sample_steps=2)
    names, guidance = algo.unlearn(model, forget, retain, CHURCH, 0)
    assert guidance == FacilitatedTransport([CHURCH.name_phrases()])
    once = {name: parameter.clone() for name, parameter in model.named_parameters() if name in names}
    more, guidance = algo.unlearn(model, forget, retain, replace(CHURCH, name="star"), 1, guidance=guidance)
    names = [*names, *more]
    assert len(set(names)) == len(names) == 2 * len(once)
    now = dict(model.named_parameters())
    assert all(torch.equal(value, now[name]) for name, value in once.items())
    assert all(torch.equal(value, now[name]) for name, value in original.named_parameters())
    save_weights(model, tmp_path / "weights.safetensors", names, guidance)
    other, asked = copied(original), (["a church", "a star"], [0, 1], 2, 2.0)
    for _ in range(2):
        again = load_weights(other, tmp_path / "weights.safetensors")
        assert again == guidance == FacilitatedTransport([CHURCH.name_phrases(), CHURCH.name_phrases()])
        assert torch.equal(generate(other, *asked, again), generate(model, *asked, guidance))
    with pytest.raises(UserError, match="set save_pipeline=false"):
        model.save_pipeline(tmp_path / "pipeline")


# --- adv_unlearn --------------------------------------------------------------------------------------------------------


def test_a_prefix_is_read_as_words_are(model):
    table, prompts = token_embedding(model).weight.detach(), ["church", "red church"]
    red = model.tokenizer("red", add_special_tokens=False).input_ids
    with insert_prefix(model, table[red].expand(2, -1, -1)):
        states = model.encode_prompts(prompts)["prompt_embeds"]
    torch.testing.assert_close(states, model.encode_prompts(["red church", "red red church"])["prompt_embeds"])
    with insert_prefix(model, None):
        assert torch.equal(model.encode_prompts(prompts)["prompt_embeds"], model.encode_prompts(prompts)["prompt_embeds"])


def test_the_attack_brings_the_concept_nearer(model, forget):
    frozen = ready(model, AdvUnlearn.train)
    moved(model, 0.3)
    batch = whole(forget)

    def distance(steps):
        algo = AdvUnlearn(attack_steps=steps, attack_lr=0.1, tokens=2, sample_steps=2)
        prefix = algo.learn_prefix(model, frozen, batch.prompts, draws())
        x, times = latents_of(model)[:1].expand(3, -1, -1, -1), torch.tensor([500] * 3)
        with torch.no_grad(), insert_prefix(model, prefix):
            prediction = model.predict(x, times, model.encode_prompts(batch.prompts))
        assert prefix.shape == (3, 2, 16)
        return F.mse_loss(prediction, frozen.predict(x, times, batch.prompts)).item()

    assert distance(20) < distance(0)


def test_adv_unlearn_warms_up_without_a_prefix(original, forget, retain, monkeypatch):
    attacked, losses = [], []
    attack = AdvUnlearn.learn_prefix
    monkeypatch.setattr(AdvUnlearn, "learn_prefix", lambda self, *given: attacked.append(len(losses)) or attack(self, *given))
    model, algo = copied(original), AdvUnlearn(steps=4, warm_up=2, attack_steps=1, sample_steps=2)
    names = algo.unlearn(model, forget, retain, CHURCH, 0, LossLog(losses)).names
    assert attacked == [2, 3]
    assert all(name.startswith("text_encoder.") and "embedding" not in name for name in names)
    changed = dict(model.named_parameters())
    assert any(not torch.equal(changed[n], p) for n, p in original.named_parameters() if n in names)
    assert all(torch.equal(changed[n], p) for n, p in original.named_parameters() if n not in names)


# --- receler ------------------------------------------------------------------------------------------------------------


def test_erasers_start_at_nothing_and_load_again(original, forget, retain, tmp_path):
    model = copied(original)
    x, times, prompts = latents_of(model), torch.tensor([300, 800]), ["a church", "a star"]
    before = original.predict(x, times, original.encode_prompts(prompts))
    algo = Receler(steps=2, lr=1e-2, rank=3, tokens=2, attack_steps=1, sample_steps=2)
    install_bottlenecks(model.modules(), 3, draws())
    assert torch.equal(model.predict(x, times, model.encode_prompts(prompts)), before)
    model = copied(original)
    names = algo.unlearn(model, forget, retain, CHURCH, 0).names
    after = model.predict(x, times, model.encode_prompts(prompts))
    assert not torch.allclose(after, before)
    assert all(".attn2.to_out.1." in name for name in names)
    save_weights(model, tmp_path / "weights.safetensors", names)
    other = copied(original)
    load_weights(other, tmp_path / "weights.safetensors")
    assert torch.equal(other.predict(x, times, other.encode_prompts(prompts)), after)
    load_weights(other, tmp_path / "weights.safetensors")
    assert torch.equal(other.predict(x, times, other.encode_prompts(prompts)), after)
    with pytest.raises(UserError, match="a plain pipeline has no place for adapters: set save_pipeline=false"):
        model.save_pipeline(tmp_path / "pipeline")


def test_receler_starts_as_esd_where_it_attacks_nothing(model, forget, retain):
    algo = Receler(rank=3, tokens=1, attack_steps=0, sample_steps=4)
    install_bottlenecks(model.modules(), algo.rank, draws())
    training = begun(algo, model, forget, retain)
    batch = whole(forget)
    end = model.token_tensor(batch.prompts[:1])[0].tolist().index(model.tokenizer.eos_token_id)
    training.state.words = model.encode_prompts(batch.prompts[:1])["prompt_embeds"][:, end][None]
    one = Batch(batch.prompts[:1], batch.anchors[:1], batch.latents[:1])
    same = ESD(eta=1.0, source="empty", sample_steps=4)
    actual = algo.step_loss(training, Step(one, one, draws()))
    torch.testing.assert_close(actual, same.loss(model, training.original, one, one, draws()))


def test_receler_learns_words_of_each_concept(model, forget, retain):
    other = replace(CHURCH, name="house", words=["house"], guide="house", anchor={"house": "tree"})
    both = SimpleNamespace(
        concepts_by_split=lambda base: {"a": other, "b": CHURCH},
        name_phrases=lambda: ["house", "church"],
        words=["house", "church"],
    )
    algo = Receler(rank=3, tokens=2, attack_steps=1, attack_decay=0.0, sample_steps=2)
    install_bottlenecks(model.modules(), algo.rank, draws())
    training = begun(algo, model, forget, retain, both)
    before = training.state.words.detach().clone()
    algo.step_loss(training, Step(whole(forget), whole(retain), draws()))
    assert torch.equal(training.state.words[0], before[0])
    assert not torch.equal(training.state.words[1], before[1])


def test_learned_words_follow_the_prompt_and_fit():
    text = {"prompt_embeds": torch.zeros(2, 5, 3)}
    actual = insert_embeddings(text, torch.tensor([1.0, 2.0]).view(2, 1, 1).expand(2, 3, 3), [1, 3])["prompt_embeds"]
    assert actual[:, :, 0].tolist() == [[0, 1, 1, 1, 0], [0, 0, 0, 2, 2]]
    assert not text["prompt_embeds"].any()


def test_the_place_of_a_concept_by_hand():
    coarse, fine = torch.zeros(1, 2, 4, 3), torch.zeros(1, 2, 256, 3)
    coarse[:, :, 0] = 1.0
    fine[0, :, 0, 1] = torch.tensor([0.5, 1.5])
    fine[0, :, 1, 1] = 0.05
    fine[0, :, 2, 1] = 0.2
    fine[0, :, 3, 2] = 1.0
    place = concept_region([coarse, fine], torch.tensor([[False, True, False]]), 0.1)
    assert place.shape == (1, 1, 16, 16)
    assert place.flatten().nonzero().flatten().tolist() == [0, 2]
    output = torch.arange(256.0).view(1, 256, 1).expand(-1, -1, 2)
    expected = (sum(i * i for i in range(256)) - 2 * 2) / 254
    assert mean_square_outside(output, place).item() == pytest.approx(expected, rel=1e-5)


def test_receler_wants_the_concept_named(model, forget, retain):
    forget.prompts[0] = "a red house"
    algo = Receler(rank=2)
    install_bottlenecks(model.modules(), algo.rank, draws())
    with pytest.raises(UserError, match="'a red house' contains none of church"):
        begun(algo, model, forget, retain)


# --- all of them --------------------------------------------------------------------------------------------------------


SEEDED = [
    Substitute(steps=2, lr=1e-3, states="own", guided=True, keep_anchor=1.0),
    PushAway(steps=2, lr=1e-3, states="original"),
    Saddle(steps=2, lr=1e-3),
    Surgery(steps=2, lr=1e-3, rank=1),
    EUPMU(steps=2, lr=1e-3),
    DUO(steps=2, lr=1e-3, train=r"^unet\..*attn1\."),
    SPM(steps=2, lr=1e-3, train=r"^unet\..*attentions\.", sample_steps=2),
    AdvUnlearn(steps=2, lr=1e-3, warm_up=1, attack_steps=1, sample_steps=2),
    Receler(steps=2, lr=1e-3, rank=4, tokens=2, attack_steps=1, sample_steps=2),
]


@pytest.mark.parametrize("algo", by_kind(SEEDED, SEEDED[::3]), ids=[type(algo).__name__ for algo in SEEDED])
def test_a_seed_decides_all(original, forget, retain, algo):
    outcomes = []
    for seed in (0, 0, 1):
        model = copied(original)
        names = algo.unlearn(model, forget, retain, CHURCH, seed).names
        parameters = dict(model.named_parameters())
        assert not any(parameter.requires_grad for parameter in parameters.values())
        outcomes.append({name: parameters[name] for name in names})
    assert all(torch.equal(value, outcomes[1][name]) for name, value in outcomes[0].items())
    assert any(not torch.equal(value, outcomes[2][name]) for name, value in outcomes[0].items())
