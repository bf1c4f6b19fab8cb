"""Losses, masks and penalties of the published fine-tuning methods, against computation by hand on the tiny model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from quick_copy import copied
from shared_examples import CHURCH, LossLog, begun, draws, whole
from torch import nn

from unlearnbench.algos.ca import ConceptAblation
from unlearnbench.algos.erase_diff import EraseDiff, adaptive_lambda
from unlearnbench.algos.examples import Batch
from unlearnbench.algos.losses import denoising_loss, gradients_of, relabelling_loss
from unlearnbench.algos.noise import Noise
from unlearnbench.algos.random_label import RandomLabel
from unlearnbench.algos.sa import SelectiveAmnesia
from unlearnbench.algos.saliency import largest_scores
from unlearnbench.algos.salun import SalUn
from unlearnbench.algos.scissorhands import Scissorhands
from unlearnbench.algos.training import Step, Training, TrainingContext
from unlearnbench.config.errors import UserError
from unlearnbench.models.parameters import make_trainable


def weights(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


class LastSave(TrainingContext):
    """Keeps the training that it was last asked to save."""

    training: Training

    def save(self, training, optimizer, step):
        self.training = training


def noised_by_hand(model, latents, generator):
    """x_t, t and noise from the generator, in the order in which the losses draw: times, then noise."""
    times = torch.randint(1000, (len(latents),), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    return model.add_noise(latents, noise, times), times, noise


# --- noise ----------------------------------------------------------------------------------------------------------


def test_noise_has_the_relative_norm_asked_for_in_every_tensor(model):
    before = weights(model)
    changed = Noise(train="xattn", relative=0.3).unlearn(model, None, None, CHURCH, 0).names
    assert changed == [name for name in before if name.startswith("unet.") and "attn2." in name]
    for name, after in model.named_parameters():
        expected = 0.3 * before[name].norm() if name in changed else torch.tensor(0.0)
        torch.testing.assert_close((after - before[name]).norm(), expected, rtol=1e-4, atol=1e-6)
        assert not after.requires_grad


def test_noise_comes_from_the_seed_and_from_nothing_else(original):
    runs = []
    for seed in (0, 0, 1):
        model = copied(original)
        torch.manual_seed(len(runs))
        Noise(relative=0.1).unlearn(model, None, None, CHURCH, seed)
        runs.append(weights(model))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not all(torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


# --- random_label, salun --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["anchor", "retain"])
def test_random_label_aims_at_the_other_prompts_prediction_on_the_concepts_images(model, forget, retain, other):
    algo = RandomLabel(other=other, alpha=0.7, train="full")
    make_trainable(model, "full")
    asked, kept = whole(forget), whole(retain)
    value = algo.loss(model, None, asked, kept, draws())
    generator = draws()
    x, times, _ = noised_by_hand(model, asked.latents, generator)
    others = asked.anchors if other == "anchor" else kept.prompts
    gap = model.predict(x, times, model.encode_prompts(asked.prompts)) - model.predict(x, times, model.encode_prompts(others))
    x, times, noise = noised_by_hand(model, kept.latents, generator)
    rest = model.predict(x, times, model.encode_prompts(kept.prompts)) - model.target(kept.latents, noise, times)
    torch.testing.assert_close(value, gap.square().mean() + 0.7 * rest.square().mean())


def test_the_target_of_relabelling_passes_no_gradient(model, forget):
    parameters = make_trainable(model, "full")
    asked = whole(forget)
    actual = gradients_of(relabelling_loss(model, asked, asked.anchors, draws()), parameters)
    x, times, _ = noised_by_hand(model, asked.latents, draws())
    target = model.predict(x, times, model.encode_prompts(asked.anchors)).detach()
    by_hand = (model.predict(x, times, model.encode_prompts(asked.prompts)) - target).square().mean()
    for name, value in gradients_of(by_hand, parameters).items():
        torch.testing.assert_close(actual[name], value)
    assert any(value.any() for value in actual.values())


def test_largest_keeps_the_share_of_all_scores_together():
    scores = {"a": torch.tensor([5.0, 0.0, 3.0]), "b": torch.tensor([[4.0], [1.0]])}
    for share, kept in ((1e-6, {5.0}), (0.4, {5.0, 4.0}), (0.6, {5.0, 4.0, 3.0}), (1.0, {5.0, 4.0, 3.0, 1.0, 0.0})):
        mask = largest_scores(scores, share)
        assert {value for name in scores for value in scores[name][mask[name]].tolist()} == kept
        assert all(mask[name].shape == scores[name].shape for name in scores)


def test_saluns_mask_is_the_upper_half_of_the_summed_forget_gradient(model, forget, retain):
    algo = SalUn(train="full", batch=2)
    training = begun(algo, model, forget, retain)
    parameters, generator = training.parameters, draws()
    for rows in (slice(0, 2), slice(2, 3)):
        x, times, noise = noised_by_hand(model, forget.latents[rows], generator)
        predicted = model.predict(x, times, model.encode_prompts(forget.prompts[rows]))
        (predicted - model.target(forget.latents[rows], noise, times)).square().mean().backward()
    sizes = np.concatenate([np.zeros(p.numel()) if p.grad is None else p.grad.abs().flatten() for p in parameters.values()])
    mask = np.concatenate([training.state.mask[name].flatten() for name in parameters])
    assert sizes[mask].min() >= sizes[~mask].max()
    assert mask.sum() == round(len(sizes) / 2)


def test_salun_moves_nothing_outside_its_mask_and_otherwise_is_random_label(model, forget, retain):
    before = weights(model)
    algo = SalUn(train="xattn", batch=2, steps=3, lr=1e-3, share=0.2)
    last = LastSave()
    changed = algo.unlearn(model, forget, retain, CHURCH, 0, last).names
    after = weights(model)
    moved = {name: after[name] != before[name] for name in changed}
    assert any(where.any() for where in moved.values())
    assert not any((where & ~last.training.state.mask[name]).any() for name, where in moved.items())
    assert SalUn.loss is RandomLabel.loss


# --- concept ablation -----------------------------------------------------------------------------------------------


def test_concept_ablation_trains_on_the_anchors_images(model, forget, retain):
    latents = forget.latents.clone()
    training = begun(ConceptAblation(batch=2), model, forget, retain)
    assert torch.equal(training.forget.latents, forget.anchor_latents)
    assert training.forget.prompts == forget.prompts
    assert torch.equal(forget.latents, latents)


def test_concept_ablations_two_forms(model, forget, retain):
    asked = whole(forget)
    make_trainable(model, "xattn_kv")
    x, times, noise = noised_by_hand(model, asked.latents, draws())
    prediction, anchor = (model.predict(x, times, model.encode_prompts(texts)) for texts in (asked.prompts, asked.anchors))
    clean = model.target(asked.latents, noise, times)
    value = ConceptAblation(form="model").loss(model, None, asked, None, draws())
    torch.testing.assert_close(value, (prediction - anchor).square().mean())
    value = ConceptAblation(form="noise").loss(model, None, asked, None, draws())
    torch.testing.assert_close(value, (prediction - clean).square().mean())


def test_concept_ablation_keeps_the_anchors_own_prompt(model, forget):
    asked = whole(forget)
    generator = draws()
    with torch.no_grad():
        base = ConceptAblation(form="noise").loss(model, None, asked, None, generator)
        rest = denoising_loss(model, Batch(asked.anchors, asked.anchors, asked.latents), generator)
        value = ConceptAblation(form="noise", keep=0.5).loss(model, None, asked, None, draws())
    torch.testing.assert_close(value, base + 0.5 * rest)


# --- EraseDiff ------------------------------------------------------------------------------------------------------


def test_erase_diffs_multiplier_by_hand():
    kept, forgetting = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, {"a": torch.tensor([0.0]), "b": torch.tensor([2.0])}
    torch.testing.assert_close(adaptive_lambda(kept, forgetting, 1.0), torch.tensor(0.2))  # cos = 8 / (5 * 2)
    torch.testing.assert_close(
        adaptive_lambda(kept, {"a": torch.tensor([0.0]), "b": torch.tensor([-2.0])}, 1.0), torch.tensor(1.8)
    )
    assert adaptive_lambda(kept, forgetting, 0.5) == 0
    assert torch.isfinite(adaptive_lambda(kept, {name: torch.zeros(1) for name in kept}, 0.5))


@pytest.mark.parametrize("rule", ["fixed", "adaptive"])
def test_erase_diffs_gradient_is_that_of_retain_plus_lambda_forget(model, forget, retain, rule):
    algo = EraseDiff(train="xattn", rule=rule, lam=0.6, eta=1.2)
    training = begun(algo, model, forget, retain)
    parameters, asked, kept = training.parameters, whole(forget), whole(retain)
    value = algo.backward(training, Step(asked, kept, draws()))
    generator = draws()
    losses = [denoising_loss(model, kept, generator), relabelling_loss(model, asked, asked.anchors, generator)]
    flat = [torch.cat([g.flatten() for g in gradients_of(loss, parameters).values()]) for loss in losses]
    lam = 0.6 if rule == "fixed" else max(0.0, 1.2 - nn.functional.cosine_similarity(*flat, dim=0).item())
    actual = torch.cat([parameter.grad.flatten() for parameter in parameters.values()])
    torch.testing.assert_close(actual, flat[0] + lam * flat[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(value.detach(), (losses[0] + lam * losses[1]).detach())


# --- selective amnesia ----------------------------------------------------------------------------------------------


def test_the_fisher_diagonal_is_the_mean_square_of_each_examples_gradient_summed_over_time(model, forget, retain):
    algo = SelectiveAmnesia(train="xattn", batch=2, fisher_images=3, fisher_draws=2)
    training = begun(algo, model, forget, retain)
    parameters, generator = training.parameters, draws()
    chosen = torch.randperm(4, generator=generator)[:3].tolist()
    expected = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for i in chosen:
        losses = []
        for _ in range(2):
            x, times, noise = noised_by_hand(model, retain.latents[[i, i]], generator)
            error = model.predict(x, times, model.encode_prompts([retain.prompts[i]] * 2)) - model.target(
                retain.latents[[i, i]], noise, times
            )
            losses += [error[0].square().mean(), error[1].square().mean()]
        slope = gradients_of(1000 * torch.stack(losses).mean(), parameters)
        for name in parameters:
            expected[name] += slope[name] ** 2 / 3
    for name, value in expected.items():
        torch.testing.assert_close(training.state.fisher[name], value, rtol=1e-3, atol=1e-3 * value.max().item())
    assert any(value.any() for value in expected.values())


def test_the_consolidation_is_zero_at_the_start_and_quadratic_away_from_it(model, forget, retain):
    algo = SelectiveAmnesia(train="xattn", batch=2, fisher_images=1, fisher_draws=1, lam=4.0)
    training = begun(algo, model, forget, retain)
    parameters = training.parameters
    training.state.fisher = {name: torch.full_like(parameter, 0.5) for name, parameter in parameters.items()}
    asked, kept = whole(forget), whole(retain)

    def plain():
        generator = draws()
        return denoising_loss(model, asked, generator) + denoising_loss(model, kept, generator)

    torch.testing.assert_close(algo.step_loss(training, Step(asked, kept, draws())), plain())
    name, parameter = next(iter(parameters.items()))
    parameter.data = parameter.data + 0.1
    value = algo.step_loss(training, Step(asked, kept, draws()))
    torch.testing.assert_close(value - plain(), torch.tensor(4.0 * 0.5 * 0.1**2 * parameter.numel()), rtol=1e-3, atol=1e-4)
    pull = gradients_of(value, parameters)[name] - gradients_of(plain(), parameters)[name]
    torch.testing.assert_close(pull, torch.full_like(parameter, 2 * 4.0 * 0.5 * 0.1), rtol=1e-3, atol=1e-4)


# --- Scissorhands ---------------------------------------------------------------------------------------------------


def test_scissorhands_cuts_the_most_sensitive_weights_where_it_may_and_no_other(model, forget, retain):
    before = weights(model)
    algo = Scissorhands(train="full", batch=2, share=0.1, scans=2, cut="attn1")
    parameters = begun(algo, model, forget, retain).parameters
    after = weights(model)
    for name, parameter in parameters.items():
        parameter.data = before[name].clone()
    generator = draws()
    slopes = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for _ in range(2):
        batch = forget.draw(2, generator)
        x, times, noise = noised_by_hand(model, batch.latents, generator)
        error = model.predict(x, times, model.encode_prompts(batch.prompts)) - model.target(batch.latents, noise, times)
        for name, value in gradients_of(error.square().mean(), parameters).items():
            slopes[name] += value.abs()
    scores = {name: slopes[name] * before[name].abs() for name in parameters}
    ranked = torch.cat([score.flatten() for score in scores.values()]).sort(descending=True).values
    border = ranked[round(0.1 * len(ranked)) - 1]
    moved = 0
    for name in parameters:
        changed = after[name] != before[name]
        allowed = scores[name] >= border * (1 - 1e-3) if "attn1" in name else torch.zeros_like(changed)
        must = scores[name] > border * (1 + 1e-3) if "attn1" in name else torch.zeros_like(changed)
        assert not (changed & ~allowed).any(), name
        assert not (must & ~changed & (before[name] != 0)).any(), name
        if before[name].ndim == 1:
            assert not after[name][changed].any(), name
        moved += int(changed.sum())
    assert moved > 0


def test_scissorhands_mends_towards_the_anchor(model, forget, retain):
    asked, kept = whole(forget), whole(retain)
    generator = draws()
    with torch.no_grad():
        expected = denoising_loss(model, kept, generator) + 0.3 * relabelling_loss(model, asked, asked.anchors, generator)
        torch.testing.assert_close(Scissorhands(lam=0.3).loss(model, None, asked, kept, draws()), expected)


def test_scissorhands_says_when_it_could_cut_nowhere(model, forget, retain):
    with pytest.raises(UserError, match=r"algo\.cut=attn9: matches no parameter that trains"):
        begun(Scissorhands(train="xattn", cut="attn9"), model, forget, retain)


# --- all ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Noise(relative=-1.0), "relative: -1.0 is less than 0"),
        (lambda: RandomLabel(other="x"), "other: 'x'; known: anchor, retain"),
        (lambda: SalUn(share=0.0), "share: 0.0 is not above 0 and at most 1"),
        (lambda: ConceptAblation(form="x"), "form: 'x'; known: model, noise"),
        (lambda: EraseDiff(rule="x"), "rule: 'x'; known: adaptive, fixed"),
        (lambda: SelectiveAmnesia(fisher_images=0), "fisher_images: 0 is less than 1"),
        (lambda: SelectiveAmnesia(fisher_draws=0), "fisher_draws: 0 is less than 1"),
        (lambda: Scissorhands(share=1.5), "share: 1.5 is not above 0 and at most 1"),
        (lambda: Scissorhands(scans=0), "scans: 0 is less than 1"),
        (lambda: Scissorhands(cut="("), r"cut: \( is not a regular expression"),
    ],
)
def test_a_wrong_setting_is_reported_with_its_place(make, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        make()


@pytest.mark.parametrize(
    "algo",
    [
        RandomLabel(other="retain"),
        ConceptAblation(form="noise", keep=0.2),
        EraseDiff(rule="adaptive", eta=1.0),
        SelectiveAmnesia(fisher_images=1, fisher_draws=1, lam=1e-3),
        Scissorhands(train="full", scans=1),
    ],
    ids=lambda algo: type(algo).__name__,
)
def test_a_run_from_the_same_seed_is_the_same_run(original, forget, retain, algo):
    algo.steps, algo.batch, algo.lr = 2, 2, 1e-3
    runs = []
    for _ in range(2):
        model, losses = copied(original), []
        changed = algo.unlearn(model, forget, retain, CHURCH, 0, LossLog(losses)).names
        runs.append((losses, {name: value for name, value in weights(model).items() if name in changed}))
    assert runs[0][0] == runs[1][0]
    assert len(runs[0][0]) == 2
    assert all(torch.equal(value, runs[1][1][name]) for name, value in runs[0][1].items())
    assert any(not torch.equal(value, dict(original.named_parameters())[name]) for name, value in runs[0][1].items())
