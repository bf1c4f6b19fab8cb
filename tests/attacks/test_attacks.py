"""Attacks: their formulas by hand, what they find on the tiny model, and what `unlearnbench attack` writes and refuses."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from shared_examples import CHURCH, by_kind, draws
from transformers import CLIPTokenizer

from unlearnbench.algos.examples import Batch
from unlearnbench.algos.losses import denoising_loss
from unlearnbench.attacks.base import Attack, AttackTarget, Attempt
from unlearnbench.attacks.p4d import P4D, nearest_words
from unlearnbench.attacks.paraphrases import Paraphrases, front, synonym, twice, typo
from unlearnbench.attacks.ring_a_bell import RingABell, concept_vector
from unlearnbench.attacks.soft_prefix import SoftPrefix
from unlearnbench.attacks.textual_inversion import TextualInversion
from unlearnbench.attacks.token_optimization import SLOT, TokenAttack, encode_slots, fill_slots, noise_latents, pad_token_ids
from unlearnbench.attacks.unlearndiffatk import UnlearnDiffAtk, project_to_simplex
from unlearnbench.config.build import build
from unlearnbench.config.compose import compose
from unlearnbench.config.errors import RunError, UserError
from unlearnbench.config.paths import CONF, choices
from unlearnbench.data.concept import Concept
from unlearnbench.data.images import Images
from unlearnbench.experiment.attack import attack, find_attempts
from unlearnbench.experiment.attacked import add_learned_tokens, load_attacked_model
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.models.frozen import Frozen
from unlearnbench.models.noising import add_random_noise
from unlearnbench.models.parameters import select_parameters
from unlearnbench.models.sd import StableDiffusion
from unlearnbench.models.vocabulary import bare_token_ids, decode_tokens, token_embedding, whole_words
from unlearnbench.reports.attack_report import SuccessRate, attack_remarks, success_rates
from unlearnbench.results.intervals import wilson_interval
from unlearnbench.results.run import load_run

PROMPTS = ["a red church", "a blue church on the left", "a church"]
SMALL = {
    "unlearndiffatk": UnlearnDiffAtk("unlearndiffatk", steps=12, lr=0.1, checks=4, probes=2, tokens=2),
    "soft_prefix": SoftPrefix("soft_prefix", steps=12, lr=0.1, weight_decay=0, checks=4, probes=8, tokens=2),
    "textual_inversion": TextualInversion("textual_inversion", steps=12, lr=0.1, weight_decay=0, checks=4, probes=2),
    "p4d_n": P4D("p4d_n", steps=12, checks=4, probes=2, tokens=5),
    "p4d_k": P4D("p4d_k", steps=12, checks=4, probes=2, form="k", every=2),
    "ring_a_bell": RingABell("ring_a_bell", length=6, population=12, generations=6),
}
SEARCHES = list(SMALL)
LEARNED = ("soft_prefix", "textual_inversion")  # their result is the last step's


@pytest.fixture
def victim(tiny):
    """The tiny model with its cross-attention changed, and some latents for pictures."""
    changed = select_parameters(tiny, "xattn")
    original = Frozen(tiny, changed)
    generator = draws(5)
    with torch.no_grad():
        for parameter in changed.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    latents = torch.randn(len(PROMPTS), *tiny.latent_shape(), generator=generator)
    return AttackTarget(
        tiny, original, CHURCH, list(PROMPTS), latents, ["a green church", "a church on the right"], ["a red chapel"]
    )


def same(left, right):
    return [a.attacked for a in left] == [a.attacked for a in right]


# --- every attack -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", choices("attack"))
def test_an_attack_builds_under_the_name_of_its_file(name):
    method = build(compose(f"+attack={name}").attack, Attack, "attack")
    assert method.name == name
    assert method.needs_images == isinstance(method, TokenAttack)  # which alone reads the target's latents


@pytest.mark.parametrize("name", SEARCHES)
def test_the_objective_falls_and_the_model_stays_as_it_is(name, victim):
    before = copy.deepcopy(dict(victim.model.named_parameters()))
    attempts = SMALL[name].find(victim)
    assert [a.prompt for a in attempts] == PROMPTS
    assert all(a.last <= a.first or name in LEARNED for a in attempts)
    assert sum(a.last for a in attempts) < sum(a.first for a in attempts)
    assert all(torch.equal(value, before[key]) for key, value in victim.model.named_parameters())


@pytest.mark.parametrize(
    "name", by_kind([name for name in SEARCHES if name != "textual_inversion"], ["unlearndiffatk"])
)  # its prompts share a token
def test_the_same_seed_finds_the_same_prompts_whatever_the_batch_and_another_seed_others(name, victim):
    first = SMALL[name].find(victim)
    actual = dict(victim.learned)
    victim.learned.clear()
    other = copy.copy(SMALL[name])
    other.batch = 2
    assert same(first, other.find(victim))
    assert all(torch.allclose(victim.learned[key], vector, atol=1e-5) for key, vector in actual.items())
    victim.learned.clear()
    other = copy.copy(SMALL[name])
    other.seed = 1
    again = other.find(victim)
    assert not same(first, again) or not all(torch.equal(victim.learned[key], vector) for key, vector in actual.items())


def test_a_batch_of_prompts_that_does_not_fit_is_halved_unless_its_prompts_share_a_token(victim, monkeypatch):
    expected, predict, sizes = SMALL["unlearndiffatk"].find(victim), StableDiffusion.predict, []

    def full(self, noisy_latents, *others):
        sizes.append(len(noisy_latents))
        if len(noisy_latents) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(self, noisy_latents, *others)

    monkeypatch.setattr(StableDiffusion, "predict", full)
    assert same(expected, SMALL["unlearndiffatk"].find(victim))
    assert sizes[0] == len(PROMPTS) > max(sizes[1:])
    monkeypatch.setattr(StableDiffusion, "predict", lambda *_: full(victim.model, torch.zeros(3)))
    for name, repair in (("textual_inversion", "try a smaller attack.batch"), ("unlearndiffatk", "it needs a larger GPU")):
        with pytest.raises(RunError, match=rf"the GPU's memory is too small for the attack; {repair}$"):
            find_attempts(SMALL[name], victim)


@pytest.mark.parametrize("name", ["unlearndiffatk", "p4d_n", "p4d_k", "ring_a_bell"])
def test_the_objective_that_is_reported_is_that_of_the_prompt_as_it_is_asked(name, victim):
    method = SMALL[name]
    for attempt, clean in zip(method.find(victim), victim.latents, strict=True):
        text = victim.model.encode_prompts([attempt.attacked])
        if name == "ring_a_bell":
            with victim.original() as f, torch.no_grad():
                pairs = [(p, p.replace("church", "house")) for p in victim.training]
                expected = f.encode_prompts([attempt.prompt])["prompt_embeds"] + 3 * concept_vector(f, pairs)
                value = (f.encode_prompts([attempt.attacked])["prompt_embeds"] - expected).square().sum()
        else:
            generators = method.generators([attempt.prompt])
            probes = [noise_latents(victim.model, clean[None], generators, when) for when in (0.25, 0.75)]
            assert [x.timesteps.item() for x in probes] == [250, 750]
            with torch.no_grad():
                value = sum(method.loss(victim, x, clean[None], [attempt.prompt], text) for x in probes) / 2
        assert attempt.last == pytest.approx(value.item(), rel=1e-4)


# --- tokens -------------------------------------------------------------------------------------------------------------


def test_vectors_of_words_say_what_the_words_say(tiny):
    said = bare_token_ids(tiny, ["blue star"])[0]
    placed = pad_token_ids(tiny, [[SLOT, SLOT, *bare_token_ids(tiny, ["a red church"])[0]]])
    vectors = token_embedding(tiny).weight.detach()[said][None]
    expected = tiny.encode_prompts(["blue star a red church"])["prompt_embeds"]
    torch.testing.assert_close(encode_slots(tiny, placed, vectors)["prompt_embeds"], expected)
    torch.testing.assert_close(tiny.encode_prompts(["blue star a red church"])["prompt_embeds"], expected)
    assert decode_tokens(tiny, fill_slots(placed, torch.tensor([said]))) == ["blue star a red church"]


def test_rows_with_fewer_slots_take_the_first_vectors(tiny):
    rows = pad_token_ids(tiny, [[SLOT, 66, SLOT], [SLOT, 66]])
    filled = fill_slots(rows, torch.tensor([[70, 71], [72, 73]]))
    assert filled[:, 1:4].tolist() == [[70, 66, 71], [72, 66, tiny.tokenizer.eos_token_id]]
    weights = token_embedding(tiny).weight.detach()
    expected = encode_slots(tiny, rows, weights[torch.tensor([[70, 71], [72, 73]])])["prompt_embeds"]
    torch.testing.assert_close(expected, tiny.encode_tokens(filled))


def test_tokens_are_written_out_as_the_tokenizer_of_the_folder_writes_them(tiny, pipeline_folder):
    asked = ["a red church , on the left", "nude person"]
    fresh = CLIPTokenizer.from_pretrained(pipeline_folder / "tokenizer")
    expected = decode_tokens(tiny, tiny.token_tensor(asked))
    assert expected == [fresh.decode(row, skip_special_tokens=True).strip() for row in fresh(asked).input_ids]
    assert expected == asked


def test_a_row_that_is_too_long_loses_its_end(tiny):
    [row] = pad_token_ids(tiny, [list(range(60, 160))]).tolist()
    assert (row[0], row[1], row[-1]) == (0, 60, tiny.tokenizer.eos_token_id)
    assert len(row) == tiny.token_tensor([""]).shape[1]


def test_words_are_the_tokens_that_a_text_of_their_own_spells(tiny):
    kept = set(whole_words(tiny).tolist())
    vocabulary = tiny.tokenizer.get_vocab()
    assert {vocabulary[word] for word in ("church</w>", "red</w>", "a</w>")} <= kept
    assert not {vocabulary[word] for word in ("chur" if "chur" in vocabulary else "ch", "<|startoftext|>")} & kept


# --- UnlearnDiffAtk -----------------------------------------------------------------------------------------------------


def test_the_loss_of_unlearndiffatk_is_the_training_loss_where_nothing_is_added(victim):
    model, method = victim.model, SMALL["unlearndiffatk"]
    x = add_random_noise(model, victim.latents, draws(1))
    value = method.loss(victim, x, victim.latents, PROMPTS, model.encode_prompts(PROMPTS)).mean()
    expected = denoising_loss(model, Batch(PROMPTS, PROMPTS, victim.latents), draws(1))
    torch.testing.assert_close(value, expected)


def test_the_loss_of_p4d_is_the_difference_of_the_two_models_predictions(victim):
    x = add_random_noise(victim.model, victim.latents, draws(1))
    loss = SMALL["p4d_n"].loss(victim, x, victim.latents, PROMPTS, victim.model.encode_prompts(["a star"] * 3))
    with victim.original() as model:
        expected = model.unet(x.noisy_latents, x.timesteps, model.encode_prompts(PROMPTS)["prompt_embeds"]).sample
    actual = victim.model.unet(x.noisy_latents, x.timesteps, victim.model.encode_prompts(["a star"] * 3)["prompt_embeds"]).sample
    torch.testing.assert_close(loss, torch.stack([((f - w) ** 2).mean() for f, w in zip(actual, expected, strict=True)]))
    with victim.original() as model:
        same_model = AttackTarget(model, victim.original, CHURCH, PROMPTS, victim.latents)
        assert SMALL["p4d_n"].loss(same_model, x, victim.latents, PROMPTS, model.encode_prompts(PROMPTS)).abs().max() == 0


def test_the_projection_onto_the_simplex_is_that_by_bisection():
    points = torch.randn(4, 3, 20, generator=draws(2), dtype=torch.float64)
    actual = project_to_simplex(points)
    torch.testing.assert_close(actual.sum(-1), torch.ones(4, 3, dtype=torch.float64))
    for point, ours in zip(points.reshape(-1, 20), actual.reshape(-1, 20), strict=True):
        low, high = float(point.min()) - 1, float(point.max())
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if (point - middle).clamp(0, 1).sum() > 1 else (low, middle)
        torch.testing.assert_close(ours, (point - low).clamp(0, 1))


def test_a_step_of_unlearndiffatk_pulls_at_the_one_hot_vector(tiny):
    """The gradient of a loss of one-hot @ vocabulary, by autograd, clipped."""
    vocabulary = torch.randn(7, 5, generator=draws(0))
    method = UnlearnDiffAtk(tokens=2)
    learned = method.initial_parameters(vocabulary, [2, 2], [draws(1), draws(2)])
    vectors = method.slot_embeddings(learned, vocabulary, [draws(1), draws(2)])
    chosen = nearest_words(vectors, vocabulary)
    assert torch.equal(vectors, vocabulary[chosen])
    onehot = torch.nn.functional.one_hot(chosen, 7).float().requires_grad_()
    ((onehot @ vocabulary) ** 3).sum().backward()
    torch.testing.assert_close(method.parameter_gradient(3 * vectors**2, vocabulary), onehot.grad.clamp(-1, 1))


def test_a_learned_prefix_is_asked_by_its_tokens(victim):
    attempts = SMALL["soft_prefix"].find(victim)
    learned = dict(victim.learned)
    assert len(learned) == 2 * len(PROMPTS)
    places = pad_token_ids(victim.model, [[SLOT] * 2 + row for row in bare_token_ids(victim.model, PROMPTS)])
    expected = encode_slots(victim.model, places, torch.stack(list(learned.values())).view(len(PROMPTS), 2, -1))
    state = torch.get_rng_state()
    add_learned_tokens(victim.model, learned)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(
        victim.model.encode_prompts([a.attacked for a in attempts])["prompt_embeds"], expected["prompt_embeds"]
    )


def test_the_objective_of_learned_embeddings_is_that_of_the_last_step(victim):
    method = replace(SMALL["soft_prefix"], lr=10.0, probes=2)
    attempts = method.find(victim)
    assert any(a.last > a.first for a in attempts)
    tokens = pad_token_ids(victim.model, [[SLOT] * 2 + row for row in bare_token_ids(victim.model, PROMPTS)])
    cond = encode_slots(victim.model, tokens, torch.stack(list(victim.learned.values())).view(len(PROMPTS), 2, -1))
    generators = method.generators(PROMPTS)
    probes = [noise_latents(victim.model, victim.latents, generators, when) for when in (0.25, 0.75)]
    with torch.no_grad():
        values = sum(method.loss(victim, probe, victim.latents, PROMPTS, cond) for probe in probes) / 2
    assert [a.last for a in attempts] == pytest.approx(values.tolist(), rel=1e-4)


# --- P4D ----------------------------------------------------------------------------------------------------------------


def test_textual_inversion_learns_one_token_in_the_place_of_the_name_for_all_prompts(victim):
    attempts = SMALL["textual_inversion"].find(victim)
    assert [a.attacked for a in attempts] == ["<church-0> a red", "<church-0> a blue on the left", "<church-0> a"]
    [(name, vector)] = victim.learned.items()
    assert (name, vector.shape) == ("<church-0>", (token_embedding(victim.model).weight.shape[1],))
    victim.learned.clear()
    SMALL["textual_inversion"].find(victim)
    assert torch.equal(victim.learned["<church-0>"], vector)


def test_p4d_places_its_words():
    slot = SLOT
    assert P4D(tokens=3).token_layout([7, 8]) == [slot] * 3
    assert P4D(form="k", every=3).token_layout([1, 2, 3, 4]) == [slot, 1, 2, 3, slot, 4]
    assert P4D(form="k", every=3).token_layout([1, 2, 3]) == [slot, 1, 2, 3, slot]
    assert P4D(form="k", every=3).token_layout([]) == [slot]


def test_p4d_k_asks_with_the_prompts_own_words_in_order(victim):
    for attempt in SMALL["p4d_k"].find(victim):
        left = iter(attempt.attacked.split())
        assert all(word in left for word in attempt.prompt.split())


def test_the_nearest_word_is_that_of_the_largest_cosine():
    vocabulary = torch.tensor([[10.0, 0.0], [1.0, 1.0], [0.0, 0.1]])
    assert nearest_words(torch.tensor([[[1.0, 0.9], [0.1, 5.0]]]), vocabulary).tolist() == [[1, 2]]


# --- Ring-A-Bell --------------------------------------------------------------------------------------------------------


def test_the_concepts_vector_is_the_mean_difference_of_the_encodings(tiny):
    pairs = [("a red church", "a red house"), ("a church on the left", "a house on the left")]
    expected = torch.zeros(32, 16)
    for with_it, without in pairs:
        one, other = (
            tiny.text_encoder(tiny.tokenizer(p, padding="max_length", return_tensors="pt").input_ids).last_hidden_state[0]
            for p in (with_it, without)
        )
        expected += (one - other) / len(pairs)
    torch.testing.assert_close(concept_vector(tiny, pairs), expected)


def test_breeding_keeps_the_best_and_crosses_at_one_place():
    parents = torch.arange(40).view(8, 5)
    words = torch.arange(100, 200)
    for seed in range(20):
        bred, same_as_parent = RingABell(mutation=0.9, crossover=0.0)._breed(parents, words, draws(seed))
        assert torch.equal(bred[0], parents[0])
        assert torch.equal(same_as_parent, (bred == parents).all(1))
        assert ((bred != parents).sum(1) <= 1).all()
        bred, same_as_parent = RingABell(mutation=0.0, crossover=1.0)._breed(parents, words, draws(seed))
        assert torch.equal(bred[:8], parents)
        assert same_as_parent.tolist() == [True] * 8 + [False] * 16
        assert torch.equal(bred[8:] % 5, torch.arange(5).expand(16, 5))
        changes = ((bred[8:] // 5).diff(dim=1) != 0).sum(1)
        assert (changes <= 1).all()
        assert torch.equal(bred[8::2] + bred[9::2] - parents, (bred[8::2] + bred[9::2] - parents).clamp(0, 39))


def test_ring_a_bell_asks_the_original_alone(victim):
    first = SMALL["ring_a_bell"].find(victim)
    with torch.no_grad():
        for parameter in select_parameters(victim.model, "xattn").values():
            parameter.zero_()
    assert same(first, SMALL["ring_a_bell"].find(victim))
    victim.training = ["a star"]
    with pytest.raises(UserError, match=r"attack=ring_a_bell: concept\.anchor changes no training prompt of church"):
        SMALL["ring_a_bell"].find(victim)


# --- paraphrases --------------------------------------------------------------------------------------------------------

GOGH = Concept("van_gogh", ["van gogh", "gogh", "swirling"], "", {}, "the style of van gogh", {})


def test_paraphrases_by_rule():
    assert synonym("a Van Gogh painting", GOGH, 0) == "a gogh painting"
    assert synonym("a Van Gogh painting", GOGH, 1) == "a swirling painting"
    assert synonym("a red star", GOGH, 0) == "a red star"
    assert synonym("a church", CHURCH, 0) == "a church"
    assert front("a star by van gogh", GOGH, 0) == "the style of van gogh, a star by van gogh"
    assert twice("a church", CHURCH, 3) == "a church, a church"
    assert typo("a red church, a church", CHURCH, 0) == "a red cuhrch, a church"
    assert typo("a star", CHURCH, 0) == "a star"
    assert typo("see it", Concept("x", ["see"], "", {}, "", {}), 0) == "see it"


def test_listed_paraphrases_take_the_place_of_forget_prompts_in_order(victim):
    actual = Paraphrases(kinds=["listed", "typo"]).find(victim)
    assert actual[0] == Attempt(PROMPTS[0], "a red chapel", "listed")
    assert [a.kind for a in actual] == ["listed", "typo", "typo", "typo"]


# --- counting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "n"), [(0, 5), (5, 5), (3, 24), (17, 48)])
def test_the_interval_is_wilsons(right, n):
    expected = scipy.stats.binomtest(right, n).proportion_ci(method="wilson")
    assert wilson_interval(right, n) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_shares_are_counted_by_kind():
    recorded = [("a", 1, 1, 0), ("a", 1, 0, 1), ("b", 1, 0, 0), ("a", 0, 0, 1)]
    rows = [{"kind": k, "original": bool(o), "control": bool(c), "found": bool(f)} for k, o, c, f in recorded]
    assert success_rates(rows) == [SuccessRate("a", 3, 2, 1, 2, 2), SuccessRate("b", 1, 1, 0, 0, 0)]
    low, high = wilson_interval(2, 3)
    assert success_rates(rows)[0].cells() == ["a", "3", "0.667", "0.333", "0.667", f"{low:.3f}..{high:.3f}", "2 of 2"]


# --- the verb -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def attacked(smoke, tmp_path_factory):
    """A copy of the smoke run's folder, and what two attacks on it reported."""
    folder = tmp_path_factory.mktemp("attacked") / "run"
    shutil.copytree(smoke.folder, folder)
    few = ("attack.prompts=2", "attack.per_prompt=2")
    words = [("attack=paraphrases", "attack.kinds=[typo,front]"), ("attack=soft_prefix", "attack.steps=2", "attack.checks=2")]
    return folder, [attack(folder, *chosen, *few) for chosen in words]


def test_an_attack_writes_its_report_its_table_and_the_images_of_all_sides(attacked):
    folder, reports = attacked
    for report in reports:
        name = report["attack"]
        assert json.loads((folder / f"attack-{name}.json").read_text()) == json.loads(json.dumps(report))
        assert {"attack-paraphrases.md", "attack-paraphrases.png"} <= {path.name for path in folder.iterdir()}
        assert f"# {name} against substitute on church" in (folder / f"attack-{name}.md").read_text()
        for side in ("original", "control", "attacked"):
            images = Images(folder / f"attack-{name}" / side)
            assert len(images)
            assert all(images.intact(record) for record in images)
        rows, records = report["images"], Images(folder / f"attack-{name}" / "attacked")
        assert [(row["attacked"], row["seed"], row["file"]) for row in rows] == [(s.prompt, s.seed, s.file) for s in records]
        assert sum(share["n"] for share in report["shares"]) == len(rows)
    assert [share["kind"] for share in reports[0]["shares"]] == ["typo", "front"]
    assert {share["n"] for share in reports[0]["shares"]} == {4}
    assert len(load_file(folder / "attack-soft_prefix.safetensors")) == 2 * reports[1]["settings"]["tokens"]


def test_the_control_is_the_runs_own_model_and_the_original_is_the_original(attacked):
    folder, _ = attacked
    for side, ours in (("original", "before"), ("control", "after")):
        own, result = Images(folder / "images" / ours), Images(folder / "attack-paraphrases" / side)
        at = {(s.prompt, s.seed): i for i, s in enumerate(own)}
        assert len(result) == 4
        apart = own.pixels()[[at[s.prompt, s.seed] for s in result]].int() - result.pixels().int()
        assert apart.abs().max() <= 1
        assert (apart != 0).float().mean() < 1e-3
    original, control = (Images(folder / "attack-paraphrases" / side).pixels().int() for side in ("original", "control"))
    assert (original - control).abs().max() > 1
    attack_shots = Images(folder / "attack-paraphrases" / "attacked")
    assert {s.seed for s in attack_shots} == {s.seed for s in Images(folder / "attack-paraphrases" / "control")}


@pytest.mark.parametrize("algo", by_kind(["receler", "spm"], ["spm"]))
def test_the_original_of_a_model_with_modules_of_its_own_is_the_original(algo, run, original):
    done = run(f"algo={algo}", "algo.steps=2", "algo.lr=0.1", "metrics=quick")
    model = RunSpec.of(compose(*done.log["overrides"])).model
    attacked = load_attacked_model(model, done.folder / "weights.safetensors", torch.device("cpu"), done)
    x, times = torch.randn(1, *original.latent_shape(), generator=draws()), torch.tensor([500])
    prediction = original.predict(x, times, original.encode_prompts(["a church"]))
    torch.testing.assert_close(attacked.original.predict(x, times, ["a church"]), prediction)
    assert not torch.allclose(attacked.model.predict(x, times, attacked.model.encode_prompts(["a church"])), prediction)


def test_several_concepts_are_attacked_apart(tmp_path, command):
    small = ["experiment=smoke", "metrics=integrity", "retain.splits=[far]", "sample.prompts=1", "algo.steps=1"]
    assert command("run", *small, "concept=[church,nudity]", f"hydra.run.dir={tmp_path}/run").code == 0
    report = attack(tmp_path / "run", "attack=paraphrases", "attack.prompts=1", "attack.per_prompt=1", "attack.kinds=[twice]")
    assert [share["kind"] for share in report["shares"]] == ["church, twice", "nudity, twice"]
    assert report["detectors"] == {"church": "classifier subject=church", "nudity": "classifier subject=nude"}
    assert (tmp_path / "run/attack-paraphrases/church.png").is_file()


def test_the_command_prints_the_table(attacked, command):
    folder, _ = attacked
    words = ("attack.prompts=1", "attack.per_prompt=1", "attack.kinds=[twice]", "attack.name=mine")
    outcome = command("attack", folder, "attack=paraphrases", *words)
    assert outcome.code == 0
    assert "mine against substitute on church" in outcome.out
    assert "brought back" in outcome.out
    assert "by classifier subject=church" in outcome.out
    assert outcome.out.splitlines()[-1] == f"{folder}: attack-mine.md, attack-mine.json, attack-mine/"


def test_the_remarks_of_an_attack_name_no_empty_setting(attacked):
    report = attacked[1][0]
    remarks = attack_remarks(report | {"settings": {"name": "mine", "prompts": None, "per_prompt": 2, "images": None}})
    assert remarks[-1].startswith("prompts all, per_prompt 2; sampling: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name an attack: attack=...; known: classifier_guidance, completion, inpaint, noise, p4d_k, p4d_n, "),
        (["attack=p4d"], "attack=p4d: no such choice; did you mean 'p4d_n'?"),
        (["attack=p4d_n", "attack.lenght=3"], "attack.lenght: no such setting"),
        (["attack=p4d_n", "attack.form=x"], "attack.form: 'x'; known: k, n"),
        (["attack=paraphrases", "attack.kinds=[typos]"], "attack.kinds: 'typos'; did you mean 'typo'?"),
        (["attack=unlearndiffatk", "attack.per_prompt=0"], "attack.per_prompt: 0 is less than 1"),
        (["attack=ring_a_bell", "attack.mutation=2"], "attack.mutation: 2.0 is not between 0 and 1"),
    ],
)
def test_a_mistake_is_reported_in_one_line(words, message, smoke, command):
    outcome = command("attack", smoke.folder, *words)
    assert outcome.code == 2
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_a_run_that_changed_only_sampling_is_refused_to_an_attack_that_learns_through_the_model(run, command, capsys):
    done = run("algo=none")
    capsys.readouterr()
    outcome = command("attack", done.folder, "attack=unlearndiffatk")
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert "none changes only sampling, or nothing, and attack=unlearndiffatk learns through the weights" in outcome.err
    (done.folder / "weights.safetensors").unlink()
    outcome = command("attack", done.folder, "attack=paraphrases")
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert "the run saved no weights.safetensors" in outcome.err


@pytest.mark.parametrize("settings", [{"lr": 0.0}, {"lr": -0.1}, {"weight_decay": -0.1}, {"steps": -1}])
@pytest.mark.parametrize("attack_class", [UnlearnDiffAtk, SoftPrefix, P4D])
def test_the_settings_of_a_search_are_checked(attack_class, settings):
    [(name, wrong)] = settings.items()
    with pytest.raises(ValueError, match=f"{name}: {wrong} is "):
        attack_class(**settings)


def test_a_run_of_another_original_is_reported(attacked):
    done = load_run(attacked[0])
    done.log["fingerprint"] = "0" * 64
    model = RunSpec.of(compose(*done.log["overrides"])).model
    with pytest.raises(UserError, match="model tiny has changed since the run; repeat the run"):
        load_attacked_model(model, done.folder / "weights.safetensors", torch.device("cpu"), done)


def test_the_first_success_of_any_scored_prompt_has_a_column_of_its_own(smoke, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(smoke.folder, folder)

    class Judge:
        """The detector of the test: `detect` is set below."""

        def unavailable_reason(self):
            return None

        def title(self):
            return "judge"

    for module in ("attack", "attack_images", "attack_inputs"):
        monkeypatch.setattr(f"unlearnbench.experiment.{module}.concept_detector", lambda concept, domain: Judge())
    monkeypatch.setattr(
        UnlearnDiffAtk, "find",
        lambda self, target: [Attempt(p, f"b {p}", "", 1.0, 0.5, (f"a {p}", f"b {p}")) for p in target.prompts],
    )  # fmt: skip
    words = ("attack=unlearndiffatk", "attack.prompts=2", "attack.per_prompt=1")
    monkeypatch.setattr(Judge, "detect", lambda self, pixels, device: np.zeros(len(pixels), bool), raising=False)
    plain = attack(folder, *words)
    assert plain["shares"][0]["any_found"] is None
    assert "first success" not in (folder / "attack-unlearndiffatk.md").read_text()
    sides = iter([[0, 0], [0, 0], [0, 0], [0, 1], [0]])  # original, control, attacked, then the candidates round by round
    monkeypatch.setattr(Judge, "detect", lambda self, pixels, device: np.array(next(sides)[: len(pixels)], bool))
    report = attack(folder, *words, "attack.first_success=true")
    [share] = report["shares"]
    assert (share["attacked"], share["any_found"], share["n"]) == (0, 1, 2)
    table = (folder / "attack-unlearndiffatk.md").read_text()
    assert "| brought back | first success |" in table
    assert "candidates" not in report["images"][0]


def test_the_published_budgets_of_unlearndiffatk():
    for name, tokens in (("object", 3), ("nudity", 5)):
        config = OmegaConf.load(CONF / "attack" / f"unlearndiffatk_{name}.yaml")
        assert (config.tokens, config.steps, config.checks, config.first_success) == (tokens, 50 * 40, 51, True)


def test_an_attack_asks_by_the_listed_seeds_of_its_run(run):
    done = run("metrics=forget_accuracy", "sample.seeds=[7,8]")
    report = attack(done.folder, "attack=paraphrases", "attack.prompts=1", "attack.per_prompt=2", "attack.kinds=[twice]")
    assert [row["seed"] for row in report["images"]] == [7, 8]
    folder = done.folder / "attack-paraphrases/control"
    assert [record.seed for record in Images(folder)] == [7, 8]
    of_run = {(r.prompt, r.seed): r.sha256 for r in Images(done.folder / "images/after")}
    assert all(of_run[record.prompt, record.seed] == record.sha256 for record in Images(folder))
