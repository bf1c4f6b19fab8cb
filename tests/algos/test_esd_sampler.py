"""ESD with the original as the sampler of x_t, as in the authors' later code."""

from __future__ import annotations

import pytest
import torch
from quick_copy import copied
from shared_examples import CHURCH, LossLog, begun, draws

from unlearnbench.algos.esd import ESD
from unlearnbench.algos.negative_guidance import original_partial_samples
from unlearnbench.algos.training import Step
from unlearnbench.models.base import TextToImage

ORIGINAL = ESD(steps=3, batch=2, lr=1e-3, sample_steps=4, sampler="original")


def test_partial_samples_are_the_originals_whatever_is_sampled_with_them(model):
    prompts = [f"a {colour} church" for colour in ("red", "blue", "green", "yellow", "black", "white")] * 2
    samples = original_partial_samples(model, prompts, 4, 3.0, draws())
    generator = draws()
    stops = torch.randint(4, (len(prompts),), generator=generator).tolist()
    seeds = torch.randint(2**31, (len(prompts),), generator=generator).tolist()
    assert set(stops) == {0, 1, 2, 3}
    for prompt, stop, seed, latents, timestep in zip(prompts, stops, seeds, samples.latents, samples.timesteps, strict=True):
        alone = model.sample_latents([prompt], [torch.Generator().manual_seed(seed)], 4, 3.0, stop_after=stop)[0]
        torch.testing.assert_close(latents, alone, rtol=1e-3, atol=1e-4)
        assert timestep == model.timestep_after(stop, 4)


def test_every_sample_is_taken_before_the_first_step_and_none_after(model, forget, retain, monkeypatch):
    sampled, losses, sample_latents = [], [], TextToImage.sample_latents

    def counted(self, prompts, *arguments, **options):
        sampled.append((len(prompts), len(losses)))
        return sample_latents(self, prompts, *arguments, **options)

    monkeypatch.setattr(TextToImage, "sample_latents", counted)
    ORIGINAL.unlearn(model, forget, retain, CHURCH, 0, LossLog(losses))
    assert sum(count for count, _ in sampled) == ORIGINAL.steps * ORIGINAL.batch
    assert {steps for _, steps in sampled} == {0}
    assert len(losses) == ORIGINAL.steps


def test_the_loss_at_the_original_is_that_of_the_papers_sampler_on_the_same_latents(model, original, forget, retain):
    training = begun(ORIGINAL, model, forget, retain)
    drawn = training.state.draw(2, draws(5))
    target = original.predict(drawn.latents, drawn.timesteps, original.encode_prompts([""] * 2))
    cond = original.predict(drawn.latents, drawn.timesteps, original.encode_prompts(drawn.prompts))
    expected = (cond - (target - ORIGINAL.eta * (cond - target))).square().mean()
    step = Step(training.forget.draw(2, draws()), training.retain.draw(2, draws()), draws(5))
    loss = ORIGINAL.step_loss(training, step)
    torch.testing.assert_close(loss.detach(), expected)


def test_a_resumed_training_has_the_samples_of_the_first(model, forget, retain):
    first, again = (begun(ORIGINAL, copied(model), forget, retain).state for _ in range(2))
    assert first.prompts == again.prompts
    assert torch.equal(first.latents, again.latents)


def test_another_sampler_is_refused():
    with pytest.raises(ValueError, match="sampler"):
        ESD(sampler="orginal")
