"""What every algorithm of conf/algo owes the runner, be it trained, a closed-form edit or a change of sampling."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace

import pytest
import torch
from config_classes import classes_of
from omegaconf import OmegaConf
from quick_copy import copied
from shared_examples import StepLog, by_kind, unlearn
from torch import nn

from unlearnbench.algos.base import OPTIMIZER, Unlearner
from unlearnbench.algos.examples import Examples
from unlearnbench.algos.training import Unlearned
from unlearnbench.config.errors import UserError
from unlearnbench.config.paths import choices
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.models.base import PATTERNS, TextToImage
from unlearnbench.models.frozen import Frozen
from unlearnbench.models.parameters import make_trainable
from unlearnbench.models.tiny import make_pipeline
from unlearnbench.models.weights import load_weights, save_weights
from unlearnbench.sampling import generate

PROMPTS = ["a red church on the left", "a large chapel", "a blue star", "something"]
SEEDS = [1, 2, 3, 4]


@dataclass
class Case:
    """An algorithm, what it makes of a copy of the tiny model, and from `unlearned` the settings it read and its passes."""

    spec: RunSpec
    original: TextToImage
    examples: list[Examples]
    losses: list[tuple[int, float]] = field(default_factory=list)
    reads: frozenset[str] = frozenset()
    passes: float = 0.0

    def unlearn(self, seed):
        """A fresh copy of the model, unlearned, and what the algorithm declares to have changed."""
        model = copied(self.original)
        return model, self.apply(model, seed)

    def apply(self, model, seed):
        """Unlearn in place."""
        self.losses.clear()
        return unlearn(self.spec.algo, model, self.examples, self.spec.concept, seed, StepLog(self.losses))


@pytest.fixture(scope="module", params=by_kind(choices("algo")))
def case(request, loaded, examples, algo_spec):
    return Case(algo_spec(request.param, steps=2, batch=2, lr=1e-3), loaded, examples)


@pytest.fixture(scope="module")
def unlearned(case):
    """The model after the algorithm, and the names that it declares; not to be changed."""
    reads, settings = set(), case.spec.algo

    class Watched(type(settings)):
        def __getattribute__(self, name):
            reads.add(name)
            return super().__getattribute__(name)

    watched = Watched(**{setting.name: getattr(settings, setting.name) for setting in fields(settings) if setting.init})
    reads.clear()
    model = copied(case.original)
    with counted_passes(model) as held:
        result = replace(case, spec=replace(case.spec, algo=watched), losses=case.losses).apply(model, seed=0)
    case.reads, case.passes = frozenset(reads), max(held) / settings.batch
    return model, result


@contextmanager
def counted_passes(model):
    """Within the block, lists how many images of predictions with a gradient are held at once, until the next backward pass."""
    held, predict = [0], model.predict

    def counted(noisy_latents, timesteps, conditioning):
        prediction = predict(noisy_latents, timesteps, conditioning)
        if prediction.requires_grad:
            held[-1] += len(prediction)
        return prediction

    def ended(function):
        def call(*args, **kwargs):
            result = function(*args, **kwargs)
            held.append(0)
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "predict", counted)
        for name in ("backward", "grad"):
            patch.setattr(torch.autograd, name, ended(getattr(torch.autograd, name)))
        yield held


@dataclass
class Again:
    """The algorithm once more from the same seed, with the global generator elsewhere and the original frozen beside it."""

    model: TextToImage
    frozen: Frozen
    unlearned: Unlearned
    generator_untouched: bool


@pytest.fixture(scope="module")
def again(case):
    model = copied(case.original)
    frozen = Frozen(model, dict(model.named_parameters()))
    torch.manual_seed(123)
    before = torch.get_rng_state()
    unlearned = case.apply(model, seed=0)
    return Again(model, frozen, unlearned, torch.equal(torch.get_rng_state(), before))


of_each_class = pytest.mark.parametrize("case", by_kind(classes_of("algo")), indirect=True)  # one of its presets stands for all


def state(model):
    """Every parameter and buffer, by name."""
    return {f"{part}.{name}": value for part, module in model.modules().items() for name, value in module.state_dict().items()}


def changed(model, original):
    """What differs from the original's state, parameters that an algorithm added included."""
    now, then = state(model), state(original)
    assert then.keys() <= now.keys()
    return {name for name in now if name not in then or not torch.equal(now[name], then[name])}


def latents(model, guidance=None, prompts=PROMPTS):
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS[: len(prompts)]]
    return model.sample_latents(prompts, generators, 2, 2.0, guidance)


def test_nothing_is_missing_on_the_tiny_model(case):
    assert case.spec.algo.unavailable_reason(case.spec.model) is None


def test_what_it_does_not_declare_stays_as_it_was_bit_for_bit(case, unlearned):
    model, (names, _) = unlearned
    assert len(set(names)) == len(names)
    assert set(names) <= {name for name, _ in model.named_parameters()}
    assert changed(model, case.original) <= set(names)


def test_it_changes_parameters_or_sampling_and_the_images_of_the_concept(case, unlearned):
    model, (_, guidance) = unlearned
    does_nothing = case.spec.algo.name == "none"
    assert bool(changed(model, case.original) or guidance) != does_nothing
    same = torch.equal(latents(model, guidance, PROMPTS[:2]), latents(case.original, None, PROMPTS[:2]))
    assert same == does_nothing


@of_each_class
def test_it_reads_the_settings_of_the_training_loop_or_says_that_it_does_not(case, unlearned):
    assert (OPTIMIZER | {"train"}) - case.reads == case.spec.algo.unread_settings


@of_each_class
def test_it_says_how_many_passes_of_the_denoiser_it_holds_for_a_backward_pass(case, unlearned):
    algo = case.spec.algo
    assert case.passes == (0 if "steps" in algo.unread_settings else algo.passes_with_gradient)


def test_nothing_is_left_training_and_everything_is_finite(unlearned):
    model, _ = unlearned
    for _, parameter in model.named_parameters():
        assert not parameter.requires_grad
        assert parameter.grad is None
        assert torch.isfinite(parameter).all()


def test_its_log_counts_steps_from_one_with_finite_losses(case, unlearned):
    assert [step for step, _ in case.losses] == list(range(1, len(case.losses) + 1))
    assert all(isinstance(loss, float) and loss == loss for _, loss in case.losses)


@of_each_class
def test_the_same_seed_gives_the_same_weights_whatever_the_global_generator_holds(unlearned, again):
    model, (names, guidance) = unlearned
    assert again.unlearned.names == names
    assert not changed(again.model, model)
    assert again.generator_untouched
    assert torch.equal(latents(again.model, again.unlearned.guidance), latents(model, guidance))


@of_each_class
def test_another_seed_gives_other_weights_where_it_says_that_it_draws(case, unlearned):
    other, _ = case.unlearn(seed=1)
    assert bool(changed(other, unlearned[0])) == case.spec.algo.uses_seed


@of_each_class
def test_saved_weights_over_the_original_give_the_same_images_bit_for_bit(case, unlearned, tmp_path):
    model, (names, guidance) = unlearned
    save_weights(model, tmp_path / "weights.safetensors", names, guidance)
    loaded = copied(case.original)
    restored = load_weights(loaded, tmp_path / "weights.safetensors") or guidance
    assert not changed(loaded, model)
    assert torch.equal(generate(loaded, PROMPTS, SEEDS, 2, 2.0, restored), generate(model, PROMPTS, SEEDS, 2, 2.0, guidance))


@of_each_class
def test_the_frozen_original_predicts_the_same_after_unlearning(case, again):
    model, frozen = again.model, again.frozen
    noisy = torch.randn(4, *model.latent_shape(), generator=torch.Generator().manual_seed(0))
    times = torch.tensor([10, 300, 600, 900])
    if again.unlearned.guidance is None and set(state(model)) == set(state(case.original)):
        expected = case.original.predict(noisy, times, case.original.encode_prompts(PROMPTS))
        assert torch.equal(frozen.predict(noisy, times, PROMPTS), expected)
    now = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with frozen() as original:
        assert not torch.is_grad_enabled()
        assert changed(original, case.original) == set(now) - {name for name, _ in case.original.named_parameters()}
    assert all(torch.equal(parameter, now[name]) for name, parameter in model.named_parameters())
    assert torch.is_grad_enabled()
    assert set(again.unlearned.names) <= set(now)


def test_a_trained_method_declares_what_its_pattern_selects(case, unlearned):
    algo = case.spec.algo
    if type(algo).update is not Unlearner.update or getattr(algo, "rank", 0):
        return
    selected = set(make_trainable(copied(case.original), algo.train))
    if algo.name == "project":
        text = {name for name in make_trainable(copied(case.original), "text_encoder") if name.endswith("weight")}
        assert set(unlearned[1].names) == selected | {name for name in text if is_linear(case.original, name)}
    elif getattr(algo, "whiten", 0):
        assert set(unlearned[1].names) == {
            name for name in selected if name.endswith("weight") and is_linear(case.original, name)
        }
    else:
        assert set(unlearned[1].names) == selected


def is_linear(model, name: str) -> bool:
    part, _, path = name.removesuffix(".weight").partition(".")
    return isinstance(model.modules()[part].get_submodule(path), nn.Linear)


def test_negative_steps_an_empty_batch_and_a_rate_of_zero_are_refused(case):
    for setting, wrong in (("steps", -1), ("batch", 0), ("lr", 0.0)):
        config = OmegaConf.create(case.spec.config)
        config.algo[setting] = wrong
        with pytest.raises(UserError, match=f"algo.{setting}: {wrong} is "):
            RunSpec.of(config)


def test_rates_and_decays_of_an_algorithms_own_optimizers_are_refused_before_they_are_used(case):
    own = [f.name for f in fields(case.spec.algo) if f.name.endswith(("_lr", "_rate", "_decay")) and f.type == "float"]
    for setting in own:
        config = OmegaConf.create(case.spec.config)
        config.algo[setting] = -1.0
        with pytest.raises(UserError, match=f"algo.{setting}: -1.0 is "):
            RunSpec.of(config)


# --- what an algorithm builds on ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", PATTERNS)
def test_a_pattern_selects_what_its_name_says(which, tiny):
    chosen = set(make_trainable(tiny, which))
    parts = {name.split(".")[0] for name in chosen}
    said = {
        "none": not chosen,
        "xattn": parts == {"unet"} and all("attn2" in name for name in chosen),
        "xattn_kv": bool(chosen) and all(".attn2.to_k." in name or ".attn2.to_v." in name for name in chosen),
        "not_xattn": parts == {"unet"} and not any("attn2" in name for name in chosen),
        "self_attn": parts == {"unet"} and all(".attn1." in name for name in chosen),
        "blocks": parts == {"unet"} and all(".attentions." in name for name in chosen),
        "lora": all(re.search(r"attn[12]\.to_(q|k|v|out\.0)\.weight$", name) for name in chosen) and len(chosen) % 8 == 0,
        "full": chosen == {name for name, _ in tiny.named_parameters() if name.startswith("unet.")},
        "text_encoder": parts == {"text_encoder"},
    }
    assert said[which]
    assert {name for name, p in tiny.named_parameters() if p.requires_grad} == chosen


def test_attention_and_the_rest_make_up_the_unet(tiny):
    attention, rest, whole = (set(make_trainable(tiny, which)) for which in ("xattn", "not_xattn", "full"))
    assert attention | rest == whole
    assert not attention & rest
    assert set(make_trainable(tiny, "xattn_kv")) < attention


def test_a_regular_expression_selects_too(tiny):
    assert set(make_trainable(tiny, r"^unet\.conv_in\.weight$")) == {"unet.conv_in.weight"}


def test_examples_are_drawn_evenly_or_by_weight():
    prompts = ["a", "b", "c"]
    even = Examples(prompts, ["x", "y", "z"], torch.arange(3.0))
    batch = even.draw(3000, torch.Generator().manual_seed(0))
    assert all(900 < batch.prompts.count(prompt) < 1100 for prompt in prompts)
    assert [prompts[int(i)] for i in batch.latents] == batch.prompts
    assert [{"a": "x", "b": "y", "c": "z"}[prompt] for prompt in batch.prompts] == batch.anchors
    weighted = Examples(prompts, prompts, torch.empty(0), torch.tensor([0.0, 1.0, 3.0]))
    batch = weighted.draw(4000, torch.Generator().manual_seed(0))
    assert batch.prompts.count("a") == 0
    assert 900 < batch.prompts.count("b") < 1100
    assert not len(batch.latents)


def test_the_fingerprint_tells_weights_scheduler_and_vocabulary(loaded, tiny):
    assert tiny.fingerprint() == loaded.fingerprint()
    tiny.unet.conv_in.bias.data[0] += 1e-6
    assert tiny.fingerprint() != loaded.fingerprint()
    other = copied(loaded)
    other.noise_scheduler.register_to_config(beta_end=0.013)
    assert other.fingerprint() != loaded.fingerprint()


def test_the_tiny_pipeline_is_the_same_every_time_it_is_made(loaded):
    pipeline = make_pipeline()
    assert pipeline.tokenizer.get_vocab() == loaded.tokenizer.get_vocab()
    for name, module in loaded.modules().items():
        result = getattr(pipeline, name).state_dict()
        assert all(torch.equal(value, result[key]) for key, value in module.state_dict().items())


def test_noise_and_target_agree_with_the_scheduler(tiny):
    """v-prediction: x_t = sqrt(a) x + sqrt(1 - a) e, v = sqrt(a) e - sqrt(1 - a) x."""
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(3, *tiny.latent_shape(), generator=generator) for _ in range(2))
    times = torch.tensor([0, 500, 999])
    noisy, target = tiny.add_noise(clean, noise, times), tiny.target(clean, noise, times)
    a = tiny.noise_scheduler.alphas_cumprod[times].reshape(3, 1, 1, 1)
    torch.testing.assert_close(noisy, a.sqrt() * clean + (1 - a).sqrt() * noise)
    torch.testing.assert_close(target, a.sqrt() * noise - (1 - a).sqrt() * clean)


def test_an_image_survives_the_autoencoder_in_shape_and_type(tiny):
    pixels = torch.randint(256, (2, tiny.size, tiny.size, 3), dtype=torch.uint8)
    encoded = tiny.encode_images(pixels)
    assert encoded.shape == (2, *tiny.latent_shape())
    decoded = tiny.decode(encoded)
    assert (decoded.shape, decoded.dtype) == (pixels.shape, torch.uint8)
