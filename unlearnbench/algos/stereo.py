"""STEREO: search for tokens that restore the concept, then erase all of them at once from the original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from unlearnbench.algos.adv_unlearn import insert_prefix
from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.losses import denoising_loss
from unlearnbench.algos.negative_guidance import partially_denoise_embeds
from unlearnbench.algos.state import NOT_SAVED
from unlearnbench.algos.training import Step, Training
from unlearnbench.config.ranges import above_zero, at_least
from unlearnbench.data.concept import Concept
from unlearnbench.data.phrases import without_phrases
from unlearnbench.models.base import Conditioning, TextToImage
from unlearnbench.models.parameters import gradients, replaced_values
from unlearnbench.models.vocabulary import token_embedding, whole_words


@dataclass
class STEREOState:
    """The progress of the search.

    Attributes:
        steps: finished steps.
        learned: tokens learned of each concept.
        words: their embeddings, (rounds, concepts, width); the first `learned` are valid.
        teacher: the trained parameters at the start of the round, by name.
        guides: each concept as a bare phrase.
        concept_of: the index of each forget prompt's concept.
    """

    steps: int
    learned: int
    words: Tensor
    teacher: dict[str, Tensor]
    guides: list[str] = field(metadata=NOT_SAVED)
    concept_of: dict[str, int] = field(metadata=NOT_SAVED)


@dataclass
class STEREO(Unlearner):
    """Erase and attack in turn, which gives adversarial tokens; then erase name and tokens at once from the original.

    Search: each of `rounds` rounds erases one phrase c, first the concept's name, later the last token, by
    |eps(x_t, c) - (eps_r(x_t, c) - eta (eps_r(x_t, c) - eps_r(x_t, "")))|^2, with eps_r the model at the start of the round. Then
    textual inversion learns the next token v through the model: min over v of E |eps(x_t, v + p) - target|^2 on images of the
    concept. Erasure: the model is the original again, c is the name or a token at random, and
    L = |eps(x_t, c) - (eps_0("") + a (eps_0(p) - eps_0("")) - b mean over all c_k of (eps_0(c_k) - eps_0("")))|^2, each at x_t,
    with c_k the name and the tokens, and p a forget prompt, the anchor. x_t is a sample of the model in training for c, stopped
    at a random step (Srivatsan et al. 2025, arXiv 2408.16807).

    Formulas and numbers are those of the authors' code: its guidance scales of 2 come to eta = 1, a = 1 and b = 3, its normalised
    guidance to the plain one, and its anchors name the concept. What trains is that of its command for nudity, and beside it the
    norm layers. Ours differs: x_t is predicted at the step's own t, there at a random one between two steps;
    tokens start at random words, there at a general one; they stand before the forget prompts without the name, on all images in
    each round, there in templates on a part of them; anchors and phrases are drawn independently; Adam has no weight decay.

    Attributes:
        rounds: of the search; each has as many steps as the erasure.
        search_rate: the search's learning rate as a factor on `lr`.
        search_eta: strength of the search's negative guidance, eta.
        anchor_guidance: a.
        negative_guidance: b.
        inversion_steps: Adam steps that learn a token, for each concept; their batch is `batch`, too.
        inversion_lr: learning rate of these steps.
        sample_steps: steps of the complete sampling, of which x_t is an intermediate state.
        sample_guidance: guidance scale of that sampling.
    """

    train: str = "not_xattn"
    rounds: int = 4
    search_rate: float = 0.25
    search_eta: float = 1.0
    anchor_guidance: float = 1.0
    negative_guidance: float = 3.0
    inversion_steps: int = 3000
    inversion_lr: float = 5e-3
    sample_steps: int = 50
    sample_guidance: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "inversion_steps")
        at_least(self, 1, "rounds", "sample_steps")
        above_zero(self, "search_rate", "inversion_lr")

    def requires(self) -> frozenset[str]:
        """See `Unlearner.requires`."""
        return frozenset({"cfg", "one_encoder"})

    def incompatible_reason(self, concept: Concept, prompts: Sequence[str]) -> str | None:
        """See `Unlearner.incompatible_reason`; of several concepts each prompt must name its own."""
        return concept.assignment_problem(prompts)

    @property
    def search_steps(self) -> int:
        """The steps of all rounds, for each concept."""
        return self.rounds * self.steps // (self.rounds + 1)

    def rate(self, progress: float) -> float:
        """`search_rate` in the search."""
        return self.search_rate if progress < self.search_steps / self.steps else 1.0

    def round_at(self, training: Training) -> int:
        """The round of the next step, from 0; `rounds` in the final erasure."""
        steps, search = training.state.steps, self.search_steps * len(training.state.guides)
        return steps * self.rounds // search if steps < search else self.rounds

    def begin(self, training: Training) -> STEREOState:
        """Assign the forget prompts to their concepts; no token is learned yet."""
        parts = list(training.concept.concepts_by_split("forget").values())
        concept_of = {prompt: training.concept.part_named_in(prompt) for prompt in training.forget.prompts}
        table = token_embedding(training.model).weight
        words = torch.zeros(self.rounds, len(parts), table.shape[1], device=table.device)
        teacher = {name: value.detach().clone() for name, value in training.parameters.items()}
        return STEREOState(0, 0, words, teacher, [part.guide for part in parts], concept_of)

    def phrase(self, model: TextToImage, state: STEREOState, concepts: list[int], which: int) -> Conditioning:
        """The name (0) or a learned token (from 1) of each of the concepts, as a prompt of its own."""
        if which == 0:
            return model.encode_prompts([state.guides[concept] for concept in concepts])
        with insert_prefix(model, state.words[which - 1, concepts, None]):
            return model.encode_prompts([""] * len(concepts))

    def step_loss(self, training: Training, step: Step) -> Tensor:
        """The squared distance to the round's target for the last phrase, or to the composed one for any phrase."""
        model, state, generator = training.model, training.state, step.generator
        concepts = [state.concept_of[prompt] for prompt in step.forget.prompts]
        erasure = self.round_at(training) == self.rounds
        which = int(torch.randint(state.learned + 1, (), generator=generator)) if erasure else state.learned
        with torch.no_grad():
            cond = self.phrase(model, state, concepts, which)
            stop = int(torch.randint(self.sample_steps, (), generator=generator))
            x, t = partially_denoise_embeds(model, cond, self.sample_steps, self.sample_guidance, generator, stop)
        if erasure:
            target = self.composed_target(training, step.forget.prompts, concepts, x, t)
        else:
            target = self.search_target(training, concepts, which, x, t)
        return F.mse_loss(model.predict(x, t, self.phrase(model, state, concepts, which)), target)

    @torch.no_grad()
    def search_target(self, training: Training, concepts: list[int], which: int, x: Tensor, t: Tensor) -> Tensor:
        """The negatively guided prediction of the model at the start of the round."""
        model, state = training.model, training.state
        with replaced_values(training.parameters, state.teacher):
            cond = model.predict(x, t, self.phrase(model, state, concepts, which))
            uncond = model.predict(x, t, model.encode_prompts([""] * len(x)))
        return cond - self.search_eta * (cond - uncond)

    def composed_target(self, training: Training, anchors: list[str], concepts: list[int], x: Tensor, t: Tensor) -> Tensor:
        """The original's prediction, guided toward the anchors and away from the name and all tokens."""
        with training.original() as original:
            uncond = original.predict(x, t, original.encode_prompts([""] * len(x)))
            anchor = original.predict(x, t, original.encode_prompts(anchors))
            phrases = [self.phrase(original, training.state, concepts, which) for which in range(training.state.learned + 1)]
            negative = torch.stack([original.predict(x, t, phrase) for phrase in phrases]).mean(0)
        return uncond + self.anchor_guidance * (anchor - uncond) - self.negative_guidance * (negative - uncond)

    def after_step(self, training: Training) -> None:
        """After a round: learn its token, then start the next round, or the final erasure from the original."""
        state, before = training.state, self.round_at(training)
        state.steps += 1
        now = self.round_at(training)
        if now == before:
            return
        state.words[state.learned] = self.learn_token(training)
        state.learned += 1
        for name, value in training.parameters.items():
            if now == self.rounds:
                value.data.copy_(training.original.parameters[name])
            state.teacher[name].copy_(value.detach())
        training.optimizer.state.clear()

    def learn_token(self, training: Training) -> Tensor:
        """Textual inversion through the model: an embedding for each concept, (concepts, width)."""
        model, state, generator = training.model, training.state, training.generator
        vocabulary = token_embedding(model).weight.detach().float()[whole_words(model)]
        rows = torch.randint(len(vocabulary), (len(state.guides),), generator=generator)
        words = vocabulary[rows.to(vocabulary.device)].requires_grad_()
        optimizer, names = torch.optim.Adam([words], self.inversion_lr), training.concept.name_phrases()
        for _ in range(self.inversion_steps * len(state.guides)):
            batch = training.forget.draw(self.batch, generator)
            concepts = [state.concept_of[prompt] for prompt in batch.prompts]
            with insert_prefix(model, words[concepts, None]):
                nameless = replace(batch, prompts=[without_phrases(prompt, names) for prompt in batch.prompts])
                loss = denoising_loss(model, nameless, generator)
            (words.grad,) = gradients(loss, [words], model)
            optimizer.step()
        return words.detach()
