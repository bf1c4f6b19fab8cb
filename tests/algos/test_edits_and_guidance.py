"""Closed-form edits, attention maps and guided sampling, on the tiny model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.closed_form import text_hidden_states
from unlearnbench.algos.examples import Examples
from unlearnbench.algos.fmn import ForgetMeNot
from unlearnbench.algos.mace import MACE
from unlearnbench.algos.rece import RECE
from unlearnbench.algos.safree import SAFREE, TokenProjection, end_token_embeddings, span_projection
from unlearnbench.algos.sld import SLD, SafeGuidance
from unlearnbench.algos.training import Training, TrainingContext, Unlearned
from unlearnbench.algos.uce import UCE, Edit
from unlearnbench.config.compose import compose
from unlearnbench.config.errors import UserError
from unlearnbench.data.concept import Concept
from unlearnbench.models.attention_maps import attention_maps, key_value_weights
from unlearnbench.models.base import SamplingGuidance, stack_conditioning
from unlearnbench.models.parameters import make_trainable
from unlearnbench.models.tiny import Tiny
from unlearnbench.models.tokens import align_tokens, end_positions, phrase_mask, token_ids
from unlearnbench.models.weights import load_weights, save_weights
from unlearnbench.sampling import generate

CHURCH = Concept("church", ["church", "chapel"], "", {"church": "house", "chapel": "house"}, "church", {})
VAN_GOGH = Concept("van_gogh", ["van gogh"], "", {"by van gogh": "", "a van gogh painting of": "a picture of"}, "van gogh", {})
FORGET = ["a small red church on a sky background", "a photo of a large chapel"]
RETAIN = ["a small red house", "a blue tree on the left", "a sketch of a green cross in the middle"]


@pytest.fixture(scope="module")
def loaded() -> Tiny:
    return Tiny(path="tiny", domain="pictoworld", size=64, steps=2, guidance=2.0).load(torch.device("cpu"))


@pytest.fixture
def model(loaded: Tiny) -> Iterator[Tiny]:
    weights = {name: value.detach().clone() for name, value in loaded.named_parameters()}
    yield loaded
    restore(loaded, weights)


def restore(model: Tiny, weights: dict[str, Tensor]) -> None:
    for name, value in model.named_parameters():
        value.data, value.grad = weights[name].clone(), None
        value.requires_grad_(False)


def examples(model: Tiny, concept: Concept = CHURCH, forget: list[str] = FORGET) -> tuple[Examples, Examples]:
    noise = torch.Generator().manual_seed(1)
    latents = [torch.randn(len(texts), *model.latent_shape(), generator=noise) for texts in (forget, RETAIN, forget)]
    anchors = [concept.substitute(p) for p in forget]
    return Examples(forget, anchors, latents[0], anchor_latents=latents[2]), Examples(RETAIN, RETAIN, latents[1])


class StepLog(TrainingContext):
    """Appends each step and its loss to a list."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, float]] = []

    def log(self, step: int, loss: float) -> None:
        self.steps.append((step, loss))


def unlearned(
    model: Tiny, algo: Unlearner, concept: Concept = CHURCH, forget: list[str] = FORGET, context: TrainingContext | None = None
) -> Unlearned:
    outcome = algo.unlearn(model, *examples(model, concept, forget), concept, 0, context)
    assert not any(p.requires_grad for n, p in model.named_parameters() if n in set(outcome.names))
    return outcome


def run(model: Tiny, algo: Unlearner, concept: Concept = CHURCH, forget: list[str] = FORGET) -> list[tuple[int, float]]:
    log = StepLog()
    unlearned(model, algo, concept, forget, log)
    return log.steps


def guidance_of(model: Tiny, algo: Unlearner) -> SamplingGuidance:
    guidance = unlearned(model, algo).guidance
    assert guidance is not None
    return guidance


def conditioned(model: Tiny, guidance: SamplingGuidance, prompts: list[str]) -> dict[str, Tensor]:
    return guidance.conditioned(model, prompts, model.encode_prompts(prompts))


def edit_of(model: Tiny, algo: UCE, concept: Concept = CHURCH, forget: list[str] = FORGET) -> Edit:
    return algo.edit(Training(model, *examples(model, concept, forget), concept, torch.Generator().manual_seed(0)))


def weights_of(model: Tiny) -> dict[str, Tensor]:
    return {n: p.detach().double().clone() for n, p in model.named_parameters() if "attn2.to_k" in n or "attn2.to_v" in n}


def solve(w: Tensor, old: Tensor, new: Tensor, kept: Tensor, erase: float, preserve: float, ridge: float) -> Tensor:
    """The formula of the paper, term by term."""
    left, right = ridge * w, ridge * torch.eye(w.shape[1], dtype=torch.float64)
    for c, target in zip(old, new, strict=True):
        left = left + erase * torch.outer(w @ target, c)
        right = right + erase * torch.outer(c, c)
    for c in kept:
        left = left + preserve * torch.outer(w @ c, c)
        right = right + preserve * torch.outer(c, c)
    return left @ torch.linalg.inv(right)


def images(model: Tiny, prompts: list[str], guidance: SamplingGuidance | None = None, scale: float = 2.0) -> Tensor:
    """Latents, sampled plainly without guidance."""
    noise = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    return model.sample_latents(prompts, noise, 4, scale, guidance)


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_alignment_follows_the_words(model: Tiny) -> None:
    texts = ["a green cross by van gogh", "a green cross", "a van gogh painting of a heart", "a picture of a heart"]
    ids = token_ids(model, texts)
    stops = end_positions(model, ids)

    def said(a: int, b: int) -> list[tuple[str, str]]:
        word = model.tokenizer.convert_ids_to_tokens
        return [
            (word(ids[a][i]), word(ids[b][j])) for i, j, _ in align_tokens(ids[a], ids[b], stops[a], stops[b])[: stops[a] + 2]
        ]

    end = "<|endoftext|>"
    assert said(0, 1)[1:] == [("a</w>", "a</w>"), ("green</w>", "green</w>"), ("cross</w>", "cross</w>"), ("by</w>", end),
                              ("van</w>", end), ("gogh</w>", end), (end, end), (end, end)]  # fmt: skip
    assert said(2, 3)[2:6] == [("van</w>", "picture</w>"), ("gogh</w>", "picture</w>"), ("painting</w>", "picture</w>"),
                               ("of</w>", "of</w>")]  # fmt: skip
    assert [i for i, _, _ in align_tokens(ids[0], ids[1], stops[0], stops[1])] == list(range(len(ids[0])))


def test_spoken_finds_phrases_and_ends(model: Tiny) -> None:
    prompts = ["a church and a house by van gogh", "a tree"]
    assert phrase_mask(model, prompts, ["church", "van gogh"], False).nonzero().tolist() == [[0, 2], [0, 7], [0, 8]]
    both = phrase_mask(model, prompts, [], True)
    assert both[0].nonzero()[0] == 9
    assert both[1, 3:].all()
    assert not both[1, :3].any()


# --- closed forms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", ["last", "tail", "all"])
@pytest.mark.parametrize("phrases", ["names", "prompts", "both"])
def test_uce_is_the_papers_solution(model: Tiny, tokens: str, phrases: str) -> None:
    before = weights_of(model)
    algo = UCE(name="uce", erase=0.7, preserve=0.3, ridge=0.2, phrases=phrases, tokens=tokens)
    edit = edit_of(model, algo)
    log = run(model, algo)
    assert 0 < log[0][1] < 1
    for name, value in weights_of(model).items():
        expected = solve(before[name], edit.old, edit.new, edit.preserved, 0.7, 0.3, 0.2)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_uce_edits_the_last_word_of_names(model: Tiny) -> None:
    edit = edit_of(model, UCE(name="uce"))
    states = text_hidden_states(model, ["church", "chapel", "house", *RETAIN])
    torch.testing.assert_close(edit.old, states[:2, 1])
    torch.testing.assert_close(edit.new, states[[2, 2], 1])
    torch.testing.assert_close(edit.preserved, torch.stack([states[3, 4], states[4, 6], states[5, 9]]))


def test_uce_erases_towards_nothing_where_the_anchor_names_nothing(model: Tiny) -> None:
    edit = edit_of(model, UCE(name="uce"), VAN_GOGH, ["a house by van gogh"])
    torch.testing.assert_close(edit.new[0], text_hidden_states(model, [""])[0, 0])


def test_uce_in_context_makes_the_prompt_read_as_its_anchor(model: Tiny) -> None:
    prompt, anchor = FORGET[0], CHURCH.substitute(FORGET[0])
    noise = torch.randn(1, *model.latent_shape(), generator=torch.Generator().manual_seed(0))
    time = torch.tensor([500])
    with torch.no_grad():
        expected = model.predict(noise, time, model.encode_prompts([anchor]))
        before = (model.predict(noise, time, model.encode_prompts([prompt])) - expected).norm()
        original = {name: value.detach().clone() for name, value in model.named_parameters()}
        distances = []
        for tokens in ("last", "all"):
            restore(model, original)
            run(model, UCE(name="uce", phrases="prompts", tokens=tokens, preserve=0.0, ridge=1e-6), forget=[prompt])
            distances.append((model.predict(noise, time, model.encode_prompts([prompt])) - expected).norm() / before)
    assert distances[1] < 0.5 < distances[0]


def test_uce_says_what_cannot_be_edited(model: Tiny) -> None:
    with pytest.raises(UserError, match=r"algo\.phrases=prompts: concept.anchor replaces nothing"):
        run(model, UCE(name="uce", phrases="prompts"), forget=["a tree"])
    with pytest.raises(UserError, match=r"algo\.train=full: unet.* is no key or value weight of cross-attention"):
        run(model, UCE(name="uce", train="full"))
    with pytest.raises(ValueError, match="tokens: 'first'; known: all, last, tail"):
        UCE(tokens="first")
    with pytest.raises(ValueError, match=r"ridge: 0\.0 is not above 0"):
        UCE(ridge=0.0)


def test_rece_erases_what_brings_the_concept_back(model: Tiny) -> None:
    original = weights_of(model)
    algo = RECE(name="rece", rounds=2, reach=0.05, preserve=0.5)
    edit = edit_of(model, algo)
    assert len(run(model, algo)) == 3
    expected = {n: solve(w, edit.old, edit.new, edit.preserved, 1.0, 0.5, 0.1) for n, w in original.items()}
    for _ in range(2):
        left = sum((w.T @ w for w in expected.values()), 0.05 * torch.eye(edit.old.shape[1], dtype=torch.float64))
        right = sum((w.T @ original[n] for n, w in expected.items()), torch.zeros_like(left))
        again = torch.stack([torch.linalg.inv(left) @ right @ c for c in edit.old])
        expected = {n: solve(w, again, edit.new, edit.preserved, 1.0, 0.5, 0.1) for n, w in expected.items()}
    for name, value in weights_of(model).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_rece_without_rounds_is_uce(model: Tiny) -> None:
    original = {name: value.detach().clone() for name, value in model.named_parameters()}
    run(model, RECE(name="rece", rounds=0))
    edited = weights_of(model)
    restore(model, original)
    run(model, UCE(name="uce", preserve=0.1, ridge=0.1, tokens="all"))
    for name, value in weights_of(model).items():
        assert torch.equal(value, edited[name])


# --- attention --------------------------------------------------------------------------------------------------------


def test_attention_maps_sum_to_one_and_leave_no_trace(model: Tiny) -> None:
    noise = torch.randn(2, *model.latent_shape(), generator=torch.Generator().manual_seed(0))
    times, text = torch.tensor([10, 900]), model.encode_prompts(FORGET)
    processors = model.unet.attn_processors
    plain = model.predict(noise, times, text)
    make_trainable(model, "xattn_kv")
    with attention_maps(model) as maps:
        recorded = model.predict(noise, times, text)
    assert torch.equal(recorded, plain)
    assert model.unet.attn_processors == processors
    assert len(maps) == sum(name.endswith("attn2") for name, _ in model.unet.named_modules())
    for kept in maps:
        assert kept.shape[0] == 2
        assert kept.shape[3] == len(token_ids(model, [""])[0])
        torch.testing.assert_close(kept.sum(3), torch.ones(kept.shape[:3]))
    maps[0].square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.unet.parameters())


def test_attention_maps_are_put_back_after_an_error(model: Tiny) -> None:
    processors = model.unet.attn_processors
    with pytest.raises(RuntimeError, match="stop"), attention_maps(model):
        raise RuntimeError("stop")
    assert model.unet.attn_processors == processors


def test_fmn_lowers_the_attention_on_the_concept(model: Tiny) -> None:
    log = run(model, ForgetMeNot(name="fmn", train="xattn", steps=40, lr=5e-3, batch=4))
    assert sum(loss for _, loss in log[-5:]) < 0.9 * sum(loss for _, loss in log[:5])


def test_fmn_names_a_prompt_without_the_concept(model: Tiny) -> None:
    with pytest.raises(UserError, match="forget prompt 'a tree' contains none of church, chapel"):
        run(model, ForgetMeNot(name="fmn", with_ends=False), forget=[FORGET[0], "a tree"])


# --- MACE -------------------------------------------------------------------------------------------------------------


def test_mace_refines_only_what_the_prompts_share(model: Tiny) -> None:
    before, algo = weights_of(model), MACE(name="mace", preserve=0.5, ridge=0.2)
    forget, _ = examples(model)
    kept = text_hidden_states(model, RETAIN).flatten(0, 1)
    algo.refine(model, key_value_weights(model, "xattn_kv"), forget, 0.5 / len(RETAIN) * kept.T @ kept)
    old, new = text_hidden_states(model, forget.prompts), text_hidden_states(model, forget.anchors)
    place = [row.index(model.tokenizer.convert_tokens_to_ids(f"{w}</w>"))
             for row, w in zip(token_ids(model, FORGET), ("church", "chapel"), strict=True)]  # fmt: skip
    shared = [(i, t) for i in range(2) for t in range(old.shape[1]) if t != place[i]]
    i, t = (list(column) for column in zip(*shared, strict=True))
    for name, value in weights_of(model).items():
        expected = solve(before[name], old[i, t], new[i, t], kept, 1.0, 0.5 / len(RETAIN), 0.2)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_mace_adapts_in_low_rank_and_lowers_the_loss(model: Tiny) -> None:
    before = weights_of(model)
    algo = MACE(name="mace", steps=60, lr=2e-2, batch=4, rank=2)
    weights, generator = key_value_weights(model, "xattn_kv"), torch.Generator().manual_seed(0)
    said = algo.word_examples(model, examples(model)[0], CHURCH, generator)
    assert [word.prompts for word in said] == [[FORGET[0]], [FORGET[1]]]
    log: list[float] = []
    changes = algo.adapt(model, weights, said[0], generator, lambda step, loss: log.append(loss), 0)
    assert sum(log[-5:]) < 0.95 * sum(log[:5])
    assert max(int(torch.linalg.matrix_rank(change)) for change in changes.values()) == 2
    assert all(torch.equal(value, before[name]) for name, value in weights_of(model).items())


def test_mace_fuses_each_change_where_its_prompts_are(model: Tiny) -> None:
    original, algo = weights_of(model), MACE(name="mace", ridge=0.1)
    generator = torch.Generator().manual_seed(0)
    kept, first, second = (text_hidden_states(model, [text]).flatten(0, 1) for text in (RETAIN[1], *FORGET))
    changes = [{n: torch.randn(w.shape, generator=generator) for n, w in original.items()} for _ in range(2)]
    algo.fuse(key_value_weights(model, "xattn_kv"), original, changes, [first.T @ first, second.T @ second], kept.T @ kept)
    for name, value in weights_of(model).items():
        w = original[name]
        left, right = 0.1 * w + w @ kept.T @ kept, 0.1 * torch.eye(w.shape[1], dtype=torch.float64) + kept.T @ kept
        for change, rows in zip(changes, (first, second), strict=True):
            for c in rows:
                left, right = left + torch.outer((w + change[name].double()) @ c, c), right + torch.outer(c, c)
        torch.testing.assert_close(value, left @ torch.linalg.inv(right), rtol=1e-4, atol=1e-5)


def test_mace_whole(model: Tiny) -> None:
    log = run(model, MACE(name="mace", steps=3, batch=2, focal=True))
    assert [step for step, _ in log] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(UserError, match="no forget prompt contains any of church, chapel"):
        run(model, MACE(name="mace", steps=1), forget=["a tree"])


def test_mace_region_is_all_of_the_image_at_zero(model: Tiny) -> None:
    forget, generator = examples(model)[0], torch.Generator().manual_seed(0)
    assert MACE(name="mace", region=0.0).regions(model, forget, generator).min() == 1
    some = MACE(name="mace", region=0.9).regions(model, forget, generator)
    assert 0 < some.mean() < 1


# --- guidance ---------------------------------------------------------------------------------------------------------


def test_stacked_repeats_one_row() -> None:
    text = stack_conditioning({"prompt_embeds": torch.zeros(1, 2, 3)}, {"prompt_embeds": torch.ones(2, 2, 3)})
    assert text["prompt_embeds"].mean((1, 2)).tolist() == [0, 0, 1, 1]


def test_sld_without_scale_is_plain_sampling(model: Tiny) -> None:
    before = images(model, FORGET)
    assert unlearned(model, SLD(name="sld", scale=0.0)).guidance is None
    assert torch.equal(images(model, FORGET), before)
    for algo in (SLD(name="sld", threshold=-1e9, momentum=0.0, warmup=0.0), SLD(name="sld", warmup=1.0)):
        torch.testing.assert_close(images(model, FORGET, guidance_of(model, algo)), before, rtol=1e-4, atol=1e-4)
    assert torch.equal(images(model, FORGET), before)


def test_sld_follows_its_equations(model: Tiny) -> None:
    algo = SLD(name="sld", scale=3.0, threshold=0.02, momentum=0.5, decay=0.7, warmup=0.25)
    guidance = guidance_of(model, algo)
    assert guidance == SafeGuidance(algo, "church")
    empty, text, unsafe = model.encode_prompts([""]), model.encode_prompts(FORGET), model.encode_prompts(["church"])
    predict = guidance.start(model, text, empty, 4, 2.0)
    generator, nu = torch.Generator().manual_seed(3), torch.zeros(())
    with torch.no_grad():
        for step in range(4):
            noisy, time = torch.randn(2, *model.latent_shape(), generator=generator), torch.tensor(900 - 200 * step)
            e, p, s = (
                model.predict(noisy, time, {"prompt_embeds": t["prompt_embeds"].expand(2, -1, -1)}) for t in (empty, text, unsafe)
            )
            mu = ((p - s).abs() * 3).clamp(max=1) * ((p - s) < 0.02)
            away = mu * (s - e) + 0.5 * nu
            nu = 0.7 * nu + 0.3 * away
            expected = e + 2 * (p - e - (away if step >= 1 else 0))
            torch.testing.assert_close(predict(step, noisy, time), expected, rtol=1e-3, atol=1e-4)
    assert not torch.equal(images(model, FORGET, guidance), images(model, FORGET))


@pytest.mark.parametrize(
    ("name", "level"), [("sld_weak", "WEAK"), ("sld", "MEDIUM"), ("sld_strong", "STRONG"), ("sld_max", "MAX")]
)
def test_sld_has_the_strengths_of_diffusers(name: str, level: str) -> None:
    safe = pytest.importorskip("diffusers.pipelines.deprecated.stable_diffusion_safe")
    theirs, ours = getattr(safe.SafetyConfig, level), compose(f"algo={name}", "model=sd14").algo
    assert (ours.scale, ours.threshold) == (theirs["sld_guidance_scale"], theirs["sld_threshold"])
    assert (ours.momentum, ours.decay) == (theirs["sld_momentum_scale"], theirs["sld_mom_beta"])
    assert round(ours.warmup * 50) == theirs["sld_warmup_steps"]


def test_sld_is_off_without_guidance(model: Tiny) -> None:
    guidance = guidance_of(model, SLD(name="sld_max", scale=5000.0, threshold=1.0, warmup=0.0))
    assert torch.equal(images(model, FORGET, guidance, scale=1.0), images(model, FORGET, scale=1.0))


def test_safree_projects_triggers_out_of_the_concept(model: Tiny) -> None:
    guidance = guidance_of(model, SAFREE(name="safree", filtering=False))
    text, ids = conditioned(model, guidance, [FORGET[0]]), token_ids(model, [FORGET[0]])
    stop = end_positions(model, ids)[0]
    concept = span_projection(end_token_embeddings(model, token_ids(model, ["church", "chapel"])))
    masked = end_token_embeddings(model, [[*ids[0][:i], 0, *ids[0][i + 1 :]] for i in range(1, stop)])
    far = (masked - masked @ concept).norm(dim=1)
    trigger = [bool(d > 1.01 * (far.sum() - d) / (len(far) - 1)) for d in far]
    assert any(trigger)
    assert not all(trigger)
    before, after = text["prompt_embeds"][0], text["safe"][0]
    changed = (before != after).any(1)
    assert changed.tolist() == [False, *trigger, *[False] * (len(ids[0]) - stop)]
    moved = after[changed].double()
    assert (moved @ concept).abs().max() < 1e-4
    inside = span_projection(masked)
    expected = before[changed].double() @ inside @ (torch.eye(len(concept), dtype=torch.float64) - concept)
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)
    assert text["hold"].tolist() == [1.0]


def test_safree_leaves_prompts_without_a_trigger_alone(model: Tiny) -> None:
    prompts = [*FORGET, RETAIN[1], ""]
    guidance = guidance_of(model, SAFREE(name="safree", alpha=1e6, filtering=False, negative=False, with_ends=True))
    text = conditioned(model, guidance, prompts)
    assert torch.equal(text["safe"], text["prompt_embeds"])
    torch.testing.assert_close(images(model, prompts, guidance), images(model, prompts))
    guidance = guidance_of(model, SAFREE(name="safree", filtering=False, negative=False))
    empty = conditioned(model, guidance, [""])
    assert torch.equal(empty["safe"], empty["prompt_embeds"])
    assert not torch.equal(images(model, prompts, guidance), images(model, prompts))


@pytest.mark.parametrize("drop", [False, True])
def test_safree_projects_the_ends_too_where_asked(model: Tiny, drop: bool) -> None:
    guidance = guidance_of(model, SAFREE(name="safree", with_ends=True, drop=drop))
    text, stop = conditioned(model, guidance, [FORGET[0]]), end_positions(model, token_ids(model, [FORGET[0]]))[0]
    assert (text["safe"][0, stop:] != text["prompt_embeds"][0, stop:]).any(1).all()
    assert torch.equal(text["safe"][0, 0], text["prompt_embeds"][0, 0])


def test_safree_holds_only_as_long_as_the_filter_says(model: Tiny) -> None:
    algo = SAFREE(name="safree", share=0.5, slope=100.0, middle=0.0, negative=False)
    guidance = guidance_of(model, algo)
    assert isinstance(guidance, TokenProjection)
    text, empty = conditioned(model, guidance, FORGET), model.encode_prompts([""])
    torch.testing.assert_close(text["hold"], torch.tensor([0.5, 0.5]))
    noisy = torch.randn(2, *model.latent_shape(), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        predict = guidance.start(model, text, empty, 4, 1.0)
        for step, key in enumerate(("safe", "safe", "safe", "prompt_embeds")):
            expected = model.predict(noisy, torch.tensor(500), {"prompt_embeds": text[key]})
            torch.testing.assert_close(predict(step, noisy, torch.tensor(500)), expected)


def test_safree_says_the_concept_in_the_negative_prompt(model: Tiny) -> None:
    guidance = guidance_of(model, SAFREE(name="safree", alpha=1e6, filtering=False))
    noise = [torch.Generator().manual_seed(0)]
    expected = model.denoise(model.encode_prompts(FORGET[:1]), model.encode_prompts(["church, chapel"]), noise, 4, 2.0)
    torch.testing.assert_close(images(model, FORGET[:1], guidance), expected)


def test_guidance_changes_no_weight_and_saves_none(model: Tiny, tmp_path) -> None:
    before = model.fingerprint()
    for algo in (SLD(name="sld"), SAFREE(name="safree")):
        names, guidance = algo.unlearn(model, *examples(model), CHURCH, 0)
        assert names == []
        assert guidance is not None
        assert generate(model, FORGET, [0, 1], 2, 2.0, guidance).shape == (2, 64, 64, 3)
        assert model.fingerprint() == before
        save_weights(model, tmp_path / "weights.safetensors", names, guidance)
        assert load_weights(model, tmp_path / "weights.safetensors") is None
        assert model.fingerprint() == before
