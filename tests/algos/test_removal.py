"""`project`, and baselines of removal and editing, against computation by hand on the tiny model."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from shared_examples import CHURCH, begun, draws, unlearn, whole

from unlearnbench.algos.adavd import AdaVD, ValueProjection, concept_part, gram_schmidt
from unlearnbench.algos.age import AGE
from unlearnbench.algos.concept_prune import ConceptPrune
from unlearnbench.algos.eap import EAP, clean_latents
from unlearnbench.algos.examples import Examples
from unlearnbench.algos.hirm import HiRM, attention_output
from unlearnbench.algos.negative_guidance import partially_denoise_embeds
from unlearnbench.algos.project import Project
from unlearnbench.algos.redirect import Redirect
from unlearnbench.algos.salun import SalUn
from unlearnbench.algos.scissorhands import Scissorhands
from unlearnbench.algos.sdd import SDD
from unlearnbench.algos.speed import SPEED, invariant_tokens
from unlearnbench.algos.spm import SPM
from unlearnbench.algos.stereo import STEREO
from unlearnbench.algos.task_vectors import TaskVectors
from unlearnbench.algos.training import Step
from unlearnbench.algos.uce import Edit
from unlearnbench.config.compose import compose
from unlearnbench.data.concept import Concept
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.models.noising import add_random_noise, denoising_prediction, split_prediction
from unlearnbench.models.vocabulary import bare_token_ids, token_embedding


def weights_of(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def step_of(examples, seed):
    return Step(*(whole(side, 2) for side in examples), draws(seed))


# --- project ------------------------------------------------------------------------------------------------------------


def project_training(model, examples, **settings):
    algo = Project(steps=2, batch=2, others=4, whiten=0.1, **settings)
    return algo, begun(algo, model, *examples)


def test_project_trains_the_denoiser_and_the_preconditioned_text_encoder(tiny, examples):
    _, training = project_training(tiny, examples)
    parts = {name.split(".")[0] for name in training.parameters}
    assert parts == {"unet", "text_encoder"}
    assert all("parametrizations" in name for name in training.parameters if name.startswith("text_encoder"))


def test_what_the_denoiser_preserves_costs_nothing_at_the_start(tiny, examples):
    algo, training = project_training(tiny, examples, removal=0, substitution=0, preservation=5)
    loss = algo.denoiser_loss(training, step_of(examples, 4))
    loss.backward()
    assert loss.item() < 1e-10
    with torch.no_grad():
        for name, parameter in training.parameters.items():
            parameter += 0.05 * torch.randn(parameter.shape, generator=draws(len(name)))
    assert algo.denoiser_loss(training, step_of(examples, 4)).item() > 1e-6


def test_the_denoiser_reads_the_originals_text_states(tiny, examples):
    algo, training = project_training(tiny, examples)
    before = algo.denoiser_loss(training, step_of(examples, 4))
    with torch.no_grad():
        for name, parameter in training.parameters.items():
            if name.startswith("text_encoder"):
                parameter += 0.5
    assert torch.equal(algo.denoiser_loss(training, step_of(examples, 4)), before)


def test_the_target_of_removal_leads_from_the_concepts_image_to_the_anchors_by_the_concepts_part(tiny, examples):
    algo, training = project_training(tiny, examples, contrast=2)
    batch, retained = whole(examples[0], 2), examples[1].prompts
    noised = add_random_noise(tiny, batch.latents, draws(1))

    def predict(prompts):
        return tiny.predict(noised.noisy_latents, noised.timesteps, tiny.encode_prompts(prompts))

    def squared(vector):
        return vector.square().sum((1, 2, 3), keepdim=True)

    with torch.no_grad():
        sides = [tiny.encode_prompts(prompts) for prompts in (batch.prompts, [""] * 2)]
        known = algo.known(training, batch, noised, *sides, draws(2))
        rows = torch.randint(len(retained), (4,), generator=draws(2)).tolist()
        mean = (predict([retained[i] for i in rows[:2]]) + predict([retained[i] for i in rows[2:]])) / 2
        concept, empty = predict(batch.prompts), predict(["", ""])
        d = concept - mean
        w = ((d * (empty - mean)).sum((1, 2, 3), keepdim=True) / squared(d)).clamp(0, 1)
        torch.testing.assert_close(known.share, w, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(known.without_prompt, empty, rtol=1e-4, atol=1e-5)
        shifted = tiny.target(batch.latents, noised.noise, noised.timesteps) + known.shift
        clean, _ = split_prediction(tiny, noised.noisy_latents, shifted, noised.timesteps)
        torch.testing.assert_close(clean, batch.anchor_latents, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(known.weight, (squared(d) / squared(known.shift)).clamp(max=1), rtol=1e-3, atol=1e-5)


def test_a_model_that_follows_its_targets_denoises_the_concepts_image_to_the_anchors(tiny, examples):
    batch = whole(examples[0], 2)
    noised = add_random_noise(tiny, batch.latents, draws(1))
    prediction = denoising_prediction(tiny, noised.noisy_latents, batch.anchor_latents, noised.timesteps)
    clean, _ = split_prediction(tiny, noised.noisy_latents, prediction, noised.timesteps)
    torch.testing.assert_close(clean, batch.anchor_latents, rtol=1e-3, atol=1e-3)
    itself = denoising_prediction(tiny, noised.noisy_latents, batch.latents, noised.timesteps)
    torch.testing.assert_close(itself, tiny.target(batch.latents, noised.noise, noised.timesteps), rtol=1e-3, atol=1e-3)


def test_where_steps_are_spared_the_originals_unconditional_prediction_is_the_target(tiny, examples, monkeypatch):
    algo, training = project_training(tiny, examples, substitution=0)
    assert algo.denoiser_loss(training, step_of(examples, 4)).item() > 1e-3
    monkeypatch.setattr(Project, "spared_above", lambda algo, model: -1.0)
    assert algo.denoiser_loss(training, step_of(examples, 4)).item() < 1e-10


def test_the_spared_steps_are_the_first_of_sampling_and_half_of_what_is_retained_is_drawn_there(tiny):
    tiny.steps = 10
    for spared, steps in ((0.1, 1), (0.3, 3)):
        assert Project(spared=spared).spared_above(tiny) == tiny.timestep_after(steps, 10)
    assert Project(spared=0.0).spared_above(tiny) == math.inf
    tiny.steps = 4
    assert Project(spared=0.9).spared_above(tiny) == tiny.timestep_after(3, 4)
    tiny.steps = 10
    latents = torch.randn(400, *tiny.latent_shape(), generator=draws(1))
    evenly, noisier = (Project(spared=spared).partly_noisiest(tiny, latents, draws(2)) for spared in (0.0, 0.2))
    assert torch.equal(evenly.noisy_latents, add_random_noise(tiny, latents, draws(2)).noisy_latents)
    bound = Project(spared=0.2).spared_above(tiny)
    expected = 0.5 + 0.5 * (1 - bound / 1000)
    assert (noisier.timesteps > bound).float().mean().item() == pytest.approx(expected, abs=0.07)
    assert noisier.timesteps.max() < 1000
    assert torch.equal(noisier.noisy_latents, tiny.add_noise(latents, noisier.noise, noisier.timesteps))


@pytest.mark.parametrize("settings", [{"removal": -1}, {"contrast": 0}, {"preservation": -0.1}, {"spared": 1.0}])
def test_settings_of_project_are_checked(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Project(**settings)


# --- SDD and task vectors -------------------------------------------------------------------------------------------------


def test_sdd_returns_the_moving_average(loaded, examples):
    results = {}
    for decay in (0.0, 0.9, 1.0):
        model = copy.deepcopy(loaded)
        unlearn(SDD(train="xattn", steps=1, batch=1, lr=1e-2, sample_steps=2, decay=decay), model, examples, CHURCH)
        results[decay] = weights_of(model)
    before = weights_of(loaded)
    assert all(torch.equal(results[1.0][name], before[name]) for name in before)
    assert any(not torch.equal(results[0.0][name], before[name]) for name in before)
    for name, value in results[0.9].items():
        torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * results[0.0][name])


def test_sdd_teaches_the_models_own_unconditional_prediction(tiny, examples):
    algo = SDD(sample_steps=3)
    training = begun(algo, tiny, *examples)
    x, t = torch.randn(2, *tiny.latent_shape(), generator=draws(1)), torch.tensor([500, 500])
    seed = 7
    with torch.no_grad():
        actual = algo.step_loss(training, step_of(examples, seed))
        generator = draws(seed)
        stop = int(torch.randint(3, (), generator=generator))
        seeds = torch.randint(2**31, (2,), generator=generator).tolist()
        prompts = examples[0].prompts[:2]
        x = tiny.sample_latents(prompts, [draws(s) for s in seeds], 3, 3.0, None, stop_after=stop)
        t = tiny.timestep_after(stop, 3).expand(2)
        sides = [tiny.predict(x, t, tiny.encode_prompts(side)) for side in (prompts, ["", ""])]
    torch.testing.assert_close(actual, F.mse_loss(*sides))


def test_task_vectors_go_the_other_way(loaded, examples):
    changes = []
    for alpha in (0.0, 1.0, 2.0):
        model = copy.deepcopy(loaded)
        unlearn(TaskVectors(train="xattn", steps=1, batch=1, lr=1e-3, alpha=alpha), model, examples, CHURCH)
        changes.append({name: value - weights_of(loaded)[name] for name, value in weights_of(model).items()})
    assert all(not change.any() for change in changes[0].values())
    assert any(change.any() for change in changes[1].values())
    for name, change in changes[1].items():
        torch.testing.assert_close(changes[2][name], 2 * change, rtol=1e-3, atol=1e-6)


def test_an_adapters_task_vector_is_negated_as_a_whole(loaded, examples):
    class FineTuned(TaskVectors):
        def finish(self, training):
            pass

    changes = []
    for algo in (FineTuned, TaskVectors):
        model = copy.deepcopy(loaded)
        unlearn(algo(train="lora", steps=3, batch=1, lr=1e-1), model, examples, CHURCH)
        changes.append({name: value - weights_of(loaded)[name] for name, value in weights_of(model).items()})
    assert any(change.any() for change in changes[0].values())
    for name, change in changes[0].items():
        torch.testing.assert_close(changes[1][name], -change, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Scissorhands(train="lora"), lambda: SalUn(train="lora16"), lambda: Project(train="lora"),
        lambda: SPM(train="lora", rank=1), lambda: Redirect(train="lora", whiten=0.1),
    ],
)  # fmt: skip
def test_a_method_that_cannot_train_lora_says_so(build):
    with pytest.raises(ValueError, match=r"^train: lora(16)?: "):
        build()


# --- SPEED ----------------------------------------------------------------------------------------------------------------


def test_speed_moves_the_concept_and_neither_what_is_retained_nor_the_invariants(tiny):
    generator = draws(0)
    weight, words = (torch.randn(n, 12, generator=generator, dtype=torch.float64) for n in (5, 9))
    edit = Edit(words[:1], words[1:2], words[2:6])
    invariants = words[6:9]
    algo = SPEED(augment=0, threshold=1e-6, retain=1e-3)
    change = algo.change(weight, edit, invariants, generator)
    assert (edit.preserved @ change.T).norm() < 1e-6 * weight.norm()
    assert (invariants @ change.T).norm() < 1e-6 * weight.norm()
    assert (edit.old @ change.T).norm() > 0.1 * (edit.old @ weight.T).norm()
    first = invariant_tokens(tiny, draws(1))
    assert first.shape == (4, tiny.encode_prompts([""])["prompt_embeds"].shape[2])
    assert torch.equal(first, invariant_tokens(tiny, draws(1)))


def test_speed_keeps_the_words_that_the_plain_edit_moves_most_and_noisy_copies():
    weight = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    plain = torch.diag(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    words = torch.eye(3, dtype=torch.float64)
    kept = SPEED(augment=4).influenced(weight, plain, words, draws(0))
    assert torch.equal(kept[0], words[0])
    assert torch.equal(kept[1:, :2], words[:1, :2].expand(len(kept) - 1, 2))  # noise along the last axis alone
    assert torch.equal(SPEED(augment=0).influenced(weight, plain, words, draws(0)), words)


# --- ConceptPrune ---------------------------------------------------------------------------------------------------------


def test_a_weight_is_pruned_that_is_high_for_the_concept_and_lower_for_the_base():
    weight = torch.tensor([[1.0, -2.0, 3.0, 0.1], [1.0, 1.0, 1.0, 1.0]])
    concept, base = torch.tensor([1.0, 2.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, 2.0, 0.0])
    mask = ConceptPrune(ratio=0.5).mask(weight, concept, base)
    assert mask.tolist()[0] == [False, True, False, False]  # the third is high, and higher for the base
    assert mask[1, 1]


def test_pruning_only_sets_weights_to_zero(tiny, examples):
    before = weights_of(tiny)
    algo = ConceptPrune(ratio=0.5, first=2, sample_steps=2)
    norms = algo.input_norms(tiny, [n for n in before if n.endswith("ff.net.2.weight")], ["a red church"], [0])
    assert norms
    assert all(len(steps) == 2 for steps in norms.values())
    names, _ = unlearn(algo, tiny, examples, CHURCH)
    after = weights_of(tiny)
    assert set(names) == set(norms)
    assert all(((after[name] == before[name]) | (after[name] == 0)).all() for name in names)
    assert any((after[name] == 0).any() for name in names)


# --- AdaVD ----------------------------------------------------------------------------------------------------------------


def test_the_part_of_a_value_along_the_concept_is_weighted_by_a_sigmoid_of_the_cosine():
    target = torch.tensor([[2.0, 0.0]])
    values = torch.tensor([[[4.0, 0.0], [0.0, 3.0], [1.0, 1.0]]])
    part = concept_part(values, target, AdaVD(slope=10, middle=0.5, height=2))
    cosines = torch.tensor([1.0, 0.0, 0.5**0.5])
    shares = 2 / (1 + torch.exp(-10 * (cosines - 0.5)))
    torch.testing.assert_close(part[0, :, 0], shares * torch.tensor([4.0, 0.0, 1.0]))
    assert not part[..., 1].any()


def test_several_targets_are_made_orthogonal():
    rows = torch.randn(3, 8, generator=draws(0))
    transform, basis = gram_schmidt(rows)
    torch.testing.assert_close(transform @ rows, basis, rtol=1e-4, atol=1e-5)
    products = basis @ basis.T
    torch.testing.assert_close(products, torch.diag(products.diag()), rtol=1e-4, atol=1e-4)


def test_adavd_leaves_values_that_are_unlike_the_concept(tiny):
    def sampled(guidance):
        return tiny.sample_latents(["a blue star"], [draws(0)], 2, 2.0, guidance)

    plain = sampled(None)
    nothing = sampled(ValueProjection(AdaVD(middle=5.0), ["church"]))
    torch.testing.assert_close(nothing, plain, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(sampled(ValueProjection(AdaVD(middle=-5.0), ["church"])), plain, atol=1e-3)


# --- EAP ------------------------------------------------------------------------------------------------------------------


def test_the_adversary_raises_the_words_that_suffer(tiny, examples):
    algo = EAP(sample_steps=2, words=4, word_lr=0.1)
    training = begun(algo, tiny, *examples)
    assert [len(words) <= 4 for words in training.state.embeddings] == [True]
    before = training.state.logits.detach().clone()
    assert torch.equal(before, torch.full_like(before, 1 / before.shape[1]))
    algo.after_step(training)
    assert torch.equal(training.state.logits, before)  # nothing suffers yet
    with torch.no_grad():
        for name, parameter in training.parameters.items():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draws(len(name)))
    algo.after_step(training)
    assert not torch.equal(training.state.logits, before)


def test_each_of_several_concepts_has_words_of_its_own(tiny, examples):
    group = RunSpec.of(compose("model=tiny", "concept=[church,nudity]")).concept
    prompts = ["a church", "a nude person", "two churches"]
    assert [group.part_named_in(prompt) for prompt in prompts] == [0, 1, 0]
    sides = Examples(prompts, prompts, examples[0].latents[[0, 1, 0]]), examples[1]
    algo = EAP(sample_steps=2, words=4, nearest=6)
    state = begun(algo, tiny, *sides, concept=group).state
    mixtures = [algo.mixture(state, concepts, draws(3))["prompt_embeds"] for concepts in ([0, 1, 0], [1])]
    assert torch.equal(mixtures[0][0], mixtures[0][2])
    assert torch.equal(mixtures[0][1:2], mixtures[1])
    assert not torch.equal(mixtures[0][0], mixtures[0][1])
    assert algo.incompatible_reason(group, [*prompts, "a tree"]) is not None


def test_eap_asks_once_which_concept_a_prompt_names(tiny, examples, monkeypatch):
    asked, ask = [], Concept.part_named_in
    monkeypatch.setattr(Concept, "part_named_in", lambda self, prompt: asked.append(prompt) or ask(self, prompt))
    EAP(steps=3, batch=2, sample_steps=2, words=4, nearest=6).unlearn(tiny, *examples, CHURCH, 0)
    assert sorted(asked) == sorted(examples[0].prompts)


def test_eap_erases_by_esds_target_on_the_clean_latents_and_preserves_a_mixture(tiny, examples):
    algo = EAP(sample_steps=2, words=4, eta=2.0)
    training = begun(algo, tiny, *examples)
    with torch.no_grad():
        loss = algo.step_loss(training, step_of(examples, 9))
        generator, prompts = draws(9), examples[0].prompts[:2]
        algo.mixture(training.state, [0, 0], generator)
        stop = int(torch.randint(2, (), generator=generator))
        x, t = algo.partial_sample(tiny, tiny.encode_prompts(prompts), stop, generator)
        concept, empty = (clean_latents(tiny, x, t, tiny.encode_prompts(side)) for side in (prompts, ["", ""]))
    torch.testing.assert_close(loss, (3 * (concept - empty)).square().mean(), rtol=1e-4, atol=1e-6)


def test_age_erases_into_a_mixture_of_few_words_which_is_also_preserved(tiny, examples):
    algo = AGE(sample_steps=2, words=4, eta=2.0, top=2)
    training = begun(algo, tiny, *examples)
    with torch.no_grad():
        loss = algo.step_loss(training, step_of(examples, 9))
        generator, prompts = draws(9), examples[0].prompts[:2]
        mixture = algo.mixture(training.state, [0, 0], generator)
        stop = int(torch.randint(2, (), generator=generator))
        x, t = algo.partial_sample(tiny, tiny.encode_prompts(prompts), stop, generator)
        concept, target = (clean_latents(tiny, x, t, cond) for cond in (tiny.encode_prompts(prompts), mixture))
    torch.testing.assert_close(loss, (3 * (concept - target)).square().mean(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(algo.sharpened(torch.tensor([[0.1, 0.4, 0.3, 0.2]])), torch.tensor([[0.0, 4 / 7, 3 / 7, 0.0]]))


def test_hirm_moves_the_first_block_of_the_text_encoder_toward_a_far_vector_in_the_last(tiny, examples):
    algo = HiRM(steps=3, batch=2, lr=1e-2)
    training = begun(algo, tiny, *examples)
    assert {name.partition("layers.")[2].split(".")[0] for name in training.parameters} == {"0"}
    assert all(name.startswith("text_encoder.") for name in training.parameters)
    direction = training.state.direction
    assert direction.norm().item() == pytest.approx(1)
    step = step_of(examples, 9)
    before = attention_output(tiny, step.forget.prompts)
    loss = algo.step_loss(training, step)
    torch.testing.assert_close(loss, (before - 500 * direction).square().mean())
    last = [m for n, m in tiny.text_encoder.named_modules() if n.endswith("self_attn.out_proj")][-1]
    assert before.shape == (2, tiny.tokenizer.model_max_length, last.out_features)
    loss.backward()
    assert all(p.grad is not None for name, p in training.parameters.items() if "self_attn" in name)


def test_hirm_toward_the_anchor_has_reached_it_where_both_are_the_same(tiny, examples):
    algo = HiRM(toward="anchor")
    assert (algo.needs_anchors, HiRM().needs_anchors) == (True, False)
    same = [Examples(side.prompts, side.prompts, side.latents) for side in examples]
    training = begun(algo, tiny, *same)
    assert algo.step_loss(training, step_of(same, 9)).item() < 1e-9
    assert algo.step_loss(begun(algo, tiny, *examples), step_of(examples, 9)).item() > 1e-9


# --- stereo -------------------------------------------------------------------------------------------------------------


def stereo_training(model, examples, **settings):
    algo = STEREO(**{"steps": 3, "batch": 2, "lr": 1e-3, "rounds": 2, "inversion_steps": 1, "sample_steps": 2} | settings)
    training = begun(algo, model, *examples)
    training.optimizer = torch.optim.Adam(training.parameters.values(), algo.lr)
    return algo, training


def partial_sample(algo, model, cond, generator):
    stop = int(torch.randint(algo.sample_steps, (), generator=generator))
    return partially_denoise_embeds(model, cond, algo.sample_steps, algo.sample_guidance, generator, stop)


def test_stereos_first_round_erases_the_bare_name_by_negative_guidance(tiny, examples):
    algo, training = stereo_training(tiny, examples, search_eta=3.0)
    with torch.no_grad():
        loss = algo.step_loss(training, step_of(examples, 9))
        name, empty = (tiny.encode_prompts([text] * 2) for text in ("church", ""))
        x, t = partial_sample(algo, tiny, name, draws(9))
        cond, uncond = (tiny.predict(x, t, phrase) for phrase in (name, empty))
    torch.testing.assert_close(loss, (3 * (cond - uncond)).square().mean())


def test_stereo_at_last_erases_name_and_tokens_toward_an_anchor_of_the_original(tiny, examples):
    algo, training = stereo_training(tiny, examples, anchor_guidance=2.0, negative_guidance=3.0)
    state, step = training.state, step_of(examples, 9)
    state.steps, state.learned = 2, 2
    state.words[:] = token_embedding(tiny).weight[[7, 8]][:, None].detach()
    with torch.no_grad():
        for value in training.parameters.values():
            value += 0.05 * torch.randn(value.shape, generator=draws(value.numel()))
        loss, generator = algo.step_loss(training, step), draws(9)
        which = int(torch.randint(3, (), generator=generator))
        phrases = [algo.phrase(tiny, state, [0, 0], k) for k in range(3)]
        x, t = partial_sample(algo, tiny, phrases[which], generator)
        now = tiny.predict(x, t, phrases[which])
        uncond, anchor = (training.original.predict(x, t, texts) for texts in (["", ""], step.forget.prompts))
        with training.original() as original:
            negative = sum(original.predict(x, t, phrase) for phrase in phrases) / 3
    target = uncond + 2 * (anchor - uncond) - 3 * (negative - uncond)
    torch.testing.assert_close(loss, (now - target).square().mean())


def test_a_token_of_stereo_is_a_prompt_of_one_word(tiny, examples):
    algo, training = stereo_training(tiny, examples)
    (word,) = bare_token_ids(tiny, ["church"])[0]
    training.state.words[0] = token_embedding(tiny).weight[word].detach()
    with torch.no_grad():
        token, name = (algo.phrase(tiny, training.state, [0, 0], which)["prompt_embeds"] for which in (1, 0))
    torch.testing.assert_close(token, name)


def test_each_round_of_stereo_ends_with_a_token_and_the_last_with_the_original(tiny, examples):
    algo, training = stereo_training(tiny, examples)
    before, state = weights_of(tiny), training.state
    rounds = []
    for _ in range(3):
        rounds.append(algo.round_at(training))
        algo.step_loss(training, step_of(examples, 9)).backward()
        training.optimizer.step()
        trained = {name: value.detach().clone() for name, value in training.parameters.items()}
        assert any(not torch.equal(trained[name], before[name]) for name in trained)
        algo.after_step(training)
        start = before if len(rounds) == 2 else trained
        assert all(torch.equal(value, start[name]) for name, value in training.parameters.items())
        if len(rounds) < 3:
            assert all(torch.equal(value, start[name]) for name, value in state.teacher.items())
            assert (state.learned, dict(training.optimizer.state)) == (len(rounds), {})
    assert (rounds, state.steps, state.learned) == ([0, 1, 2], 3, 2)
    assert state.words.norm(dim=-1).min() > 0
    assert [STEREO(steps=1000).rate(progress) for progress in (0.0, 0.799, 0.8, 0.999)] == [0.25, 0.25, 1.0, 1.0]


def test_stereos_inversion_fits_a_token_to_the_images_and_changes_no_weight(tiny, examples):
    algo, training = stereo_training(tiny, examples, inversion_steps=1, inversion_lr=0.25)
    before = weights_of(tiny)
    token = algo.learn_token(training)
    moved = (token - token_embedding(tiny).weight.detach()).abs()
    assert (moved - 0.25).abs().amax(1).min() < 1e-3  # Adam's first step from a word of the vocabulary
    assert all(torch.equal(value, before[name]) for name, value in tiny.named_parameters())


def test_stereo_learns_tokens_for_each_concept_and_each_prompt_must_name_its_own(tiny, examples):
    parts = {name: Concept(name, [name], "", {}, name, {}) for name in ("church", "chapel")}

    class Both(Concept):
        def concepts_by_split(self, base):
            return parts

    both = Both("both", ["church", "chapel"], "", {}, "church, chapel", {})
    algo = STEREO(steps=3, rounds=2)
    training = begun(algo, tiny, *examples, both)
    assert list(training.state.concept_of.values()) == [0, 1]
    assert training.state.words.shape[:2] == (2, 2)
    assert algo.round_at(training) == 0
    training.state.steps = 3
    assert algo.round_at(training) == 1
    assert "contains none of church, chapel" in algo.incompatible_reason(both, ["a red house"])
    assert algo.incompatible_reason(parts["church"], ["a red house"]) is None
