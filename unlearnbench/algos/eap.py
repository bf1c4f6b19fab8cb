"""EAP: erase a concept while the words that suffer most are preserved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.negative_guidance import partially_denoise_embeds
from unlearnbench.algos.state import NOT_SAVED
from unlearnbench.algos.training import Step, Training
from unlearnbench.config.ranges import above_zero, at_least
from unlearnbench.data.concept import Concept
from unlearnbench.models.base import Conditioning, TextToImage
from unlearnbench.models.noising import split_prediction
from unlearnbench.models.parameters import gradients
from unlearnbench.models.vocabulary import bare_token_ids, decode_tokens, token_embedding, whole_words
from unlearnbench.storage.fitting_batches import FittingBatches


@dataclass
class EAPState:
    """What the adversary learns: the logits of the preserved words, with their optimizer.

    Attributes:
        logits: of each concept's words, (concepts, words); -inf where a concept has fewer words than another.
        optimizer: of the logits.
        embeddings: each concept's words as prompts, by the original, (words, tokens, width).
        concept_of: the index of each forget prompt's concept.
    """

    logits: Tensor
    optimizer: torch.optim.Optimizer
    embeddings: list[Tensor] = field(metadata=NOT_SAVED)
    concept_of: dict[str, int] = field(metadata=NOT_SAVED)


@dataclass
class EAP(Unlearner):
    """ESD's loss on the predicted images, and the original's for the mixture of words that an adversary finds worst preserved.

    L = |x(c) - (x_0("") - eta (x_0(c) - x_0("")))|^2 + |x(c_p) - x_0(c_p)|^2, with x(c) the clean latents that eps(x_t, c)
    means and x_0 the original's; x_t are samples of the model in training for c and for c_p, stopped at a random step. c_p is
    the mixture of words by Gumbel softmax (temperature 2) over logits, which after each step rise along the gradient of the
    second term (Bui et al. 2024, "Erasing Undesirable Concepts in Diffusion Models with Adversarial Preservation"; the numbers
    are those of the authors' code).

    Ours differs: c are the forget prompts, there the bare concept; the words are k-means representatives, in the encoder's
    output, of the vocabulary's words nearest to the concept's by their token embeddings, there of a list of 3,000 English words;
    x_t is predicted at the step's own t, there at a random one between two steps. Each of several concepts has its own words.

    Attributes:
        eta: strength of the negative guidance.
        words: the number of words of the mixture.
        nearest: of how many nearest words they are representatives.
        temperature: of the Gumbel softmax.
        word_lr: Adam's learning rate of the logits.
        sample_steps: steps of the complete sampling, of which x_t is an intermediate state.
        sample_guidance: guidance scale of that sampling.
    """

    eta: float = 1.0
    words: int = 100
    nearest: int = 1000
    temperature: float = 2.0
    word_lr: float = 1e-3
    sample_steps: int = 50
    sample_guidance: float = 3.0
    needs_images: ClassVar[bool] = False
    passes_with_gradient: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "words", "nearest", "sample_steps")
        above_zero(self, "temperature", "word_lr")

    def requires(self) -> frozenset[str]:
        """See `Unlearner.requires`."""
        return frozenset({"cfg", "one_encoder"})

    def incompatible_reason(self, concept: Concept, prompts: Sequence[str]) -> str | None:
        """See `Unlearner.incompatible_reason`; of several concepts each prompt must name its own."""
        return concept.assignment_problem(prompts)

    def begin(self, training: Training) -> EAPState:
        """Choose the words, and assign the forget prompts to their concepts; a concept's logits start at the same value."""
        parts = training.concept.concepts_by_split("forget").values()
        embeddings = [self.word_embeddings(training, part.name_phrases()) for part in parts]
        logits = torch.full((len(embeddings), max(map(len, embeddings))), -torch.inf)
        for row, words in zip(logits, embeddings, strict=True):
            row[: len(words)] = 1 / len(words)
        logits = logits.to(embeddings[0].device).requires_grad_()
        concept_of = {prompt: training.concept.part_named_in(prompt) for prompt in training.forget.prompts}
        return EAPState(logits, torch.optim.Adam([logits], self.word_lr), embeddings, concept_of)

    @torch.no_grad()
    def word_embeddings(self, training: Training, names: list[str]) -> Tensor:
        """The prompt embeddings (words, tokens, width) of the representatives of the words nearest to the first of the names."""
        model = training.model
        excluded = {token for row in bare_token_ids(model, names) for token in row}
        words = torch.tensor([word for word in whole_words(model).tolist() if word not in excluded])
        table = token_embedding(model).weight.detach().float().cpu()
        own = table[bare_token_ids(model, names[:1])[0]].mean(0)
        nearest = words[(table[words] - own).square().sum(1).argsort()[: self.nearest]]
        texts = decode_tokens(model, nearest[:, None])

        def embeds(part: slice) -> Tensor:
            return model.encode_prompts(texts[part])["prompt_embeds"]

        states = torch.cat([*FittingBatches("words").run(len(texts), embeds)])
        flat = states.flatten(1).double().cpu()
        if len(flat) <= self.words:
            return states
        seed = int(torch.randint(2**31, (), generator=training.generator))
        centres, _ = kmeans2(flat.numpy(), self.words, minit="++", rng=seed)
        chosen = torch.cdist(torch.from_numpy(centres), flat).argmin(1).unique()
        return states[chosen.to(states.device)]

    def step_loss(self, training: Training, step: Step) -> Tensor:
        """The erasing and the preserving loss."""
        model, prompts, generator = training.model, step.forget.prompts, step.generator
        concepts = [training.state.concept_of[prompt] for prompt in prompts]
        with torch.no_grad():
            mixture = self.mixture(training.state, concepts, generator)
        stop = int(torch.randint(self.sample_steps, (), generator=generator))
        x, t = self.partial_sample(model, model.encode_prompts(prompts), stop, generator)
        with training.original() as original:
            conds = original.encode_prompts(prompts), self.destination(original, mixture, len(prompts))
            concept, target = (clean_latents(original, x, t, cond) for cond in conds)
        erased = clean_latents(model, x, t, model.encode_prompts(prompts))
        erasing = (erased - (target - self.eta * (concept - target))).square().mean()
        return erasing + self.preserving_loss(training, mixture, stop, generator)

    def destination(self, original: TextToImage, mixture: Conditioning, count: int) -> Conditioning:
        """What the concept becomes: the empty prompt."""
        return original.encode_prompts([""] * count)

    def preserving_loss(self, training: Training, mixture: Conditioning, stop: int, generator: torch.Generator) -> Tensor:
        """The squared distance to the original's clean latents for a mixture of words."""
        model = training.model
        x, t = self.partial_sample(model, mixture, stop, generator)
        now = clean_latents(model, x, t, mixture)
        with training.original() as original:
            before = clean_latents(original, x, t, {key: value.detach() for key, value in mixture.items()})
        return (now - before).square().mean()

    def after_step(self, training: Training) -> None:
        """One step of the adversary: the logits along the gradient of the preserving loss."""
        state, generator = training.state, training.generator
        stop = int(torch.randint(self.sample_steps, (), generator=generator))
        mixtures = self.mixture(state, range(len(state.embeddings)), generator)
        loss = -self.preserving_loss(training, mixtures, stop, generator)
        (state.logits.grad,) = gradients(loss, [state.logits], training.model)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)

    def mixture(self, state: EAPState, concepts: Sequence[int], generator: torch.Generator) -> Conditioning:
        """A draw of the Gumbel softmax over the words of every concept, as the conditioning of prompts of these concepts."""
        uniform = torch.rand(state.logits.shape, generator=generator).to(state.logits)
        gumbel = -torch.log(-torch.log(uniform + 1e-10) + 1e-10)
        shares = self.sharpened(((state.logits + gumbel) / self.temperature).softmax(1))
        rows = [part[None, : len(words)] @ words.flatten(1) for part, words in zip(shares, state.embeddings, strict=True)]
        embeddings = torch.cat(rows).unflatten(1, state.embeddings[0].shape[1:])
        return {"prompt_embeds": embeddings[[*concepts]]}

    def sharpened(self, shares: Tensor) -> Tensor:
        """The shares of the words in a mixture, from those of a draw: unchanged."""
        return shares

    @torch.no_grad()
    def partial_sample(
        self, model: TextToImage, cond: Conditioning, stop: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The model's latents after `stop` sampling steps and their timesteps."""
        return partially_denoise_embeds(model, cond, self.sample_steps, self.sample_guidance, generator, stop)


def clean_latents(model: TextToImage, noisy_latents: Tensor, timesteps: Tensor, cond: Conditioning) -> Tensor:
    """The clean latents that the model's prediction means."""
    prediction = model.predict(noisy_latents, timesteps, cond)
    return split_prediction(model, noisy_latents, prediction, timesteps)[0]
