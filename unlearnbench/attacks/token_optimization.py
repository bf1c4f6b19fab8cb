"""Optimise some tokens of a prompt through the unlearned model: the loop that white-box attacks share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor

from unlearnbench.attacks.base import Attack, AttackTarget, Attempt
from unlearnbench.config.ranges import above_zero, at_least
from unlearnbench.console import ProgressBar, progress_bar
from unlearnbench.models.base import Conditioning
from unlearnbench.models.noising import NoisedLatents
from unlearnbench.models.parameters import gradients
from unlearnbench.models.vocabulary import bare_token_ids, decode_tokens, token_embedding, whole_words
from unlearnbench.storage.fitting_batches import FittingBatches

SLOT = -1


@dataclass
class TokenAttack(Attack):
    """Minimise |eps_u(x_t, prompt) - target|^2 over the embeddings of some tokens, the slots, of each prompt.

    eps_u is the unlearned model, x_t the noised latents of the original's image for the prompt, t uniform. A subclass defines
    where the slots are (`token_layout`), the target (`prediction_target`), and the parameters of a slot: an embedding, or
    something that selects a word. One step computes the gradient at `slot_embeddings`, turns it into that of the parameters
    (`parameter_gradient`), applies `make_optimizer`, and projects the parameters (`project`).

    Words are tokens that remain the same token when decoded and tokenized again. At `checks` steps the current `slot_words`
    are decoded to a prompt, which is tokenized again and scored at `probes` fixed timesteps and noises. The prompt with the
    lowest score is the result, and its score is the reported objective; where the slots hold free embeddings, the result is the
    last step's, and so is the objective. No detector takes part in the search.

    Attributes:
        steps: optimizer steps.
        lr: the optimizer's learning rate.
        weight_decay: the optimizer's weight decay.
        checks: the number of scored steps, the first before any step and the last after all.
        probes: timesteps and noises of a score.
        batch: the largest number of prompts in a batch; one that does not fit into memory is halved.
    """

    steps: int = 400
    lr: float = 0.01
    weight_decay: float = 0.1
    checks: int = 9
    probes: int = 8
    batch: int = 24

    needs_images: ClassVar[bool] = True
    needs_tokens: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "steps", "weight_decay")
        above_zero(self, "lr")
        at_least(self, 2, "checks")
        at_least(self, 1, "probes", "batch")

    # --- hooks --------------------------------------------------------------------------------------------------------

    @abstractmethod
    def token_layout(self, words: list[int]) -> list[int]:
        """The attacked prompt's tokens from those of the prompt, without start and end; SLOT marks a learned token."""

    @abstractmethod
    def prediction_target(self, target: AttackTarget, noised: NoisedLatents, latents: Tensor, prompts: Sequence[str]) -> Tensor:
        """What the unlearned model should predict, (n, c, h, w)."""

    @abstractmethod
    def initial_parameters(self, vocabulary: Tensor, counts: list[int], generators: list[torch.Generator]) -> Tensor:
        """The initial parameters (n, slots, ...), with `counts` slots in each row, followed by unused ones.

        Args:
            vocabulary: the embeddings of all words, (words, width).
            counts: the number of slots of each prompt.
            generators: one for each prompt.
        """

    @abstractmethod
    def make_optimizer(self, parameters: Tensor) -> torch.optim.Optimizer:
        """The optimizer of the parameters."""

    @abstractmethod
    def slot_embeddings(self, parameters: Tensor, vocabulary: Tensor, generators: list[torch.Generator]) -> Tensor:
        """The embeddings (n, slots, width) at which a step computes the gradient."""

    def parameter_gradient(self, gradient: Tensor, vocabulary: Tensor) -> Tensor:
        """The gradient of the parameters, given that of the slot embeddings; by default the same."""
        return gradient

    def project(self, parameters: Tensor) -> Tensor:
        """The parameters after a step, projected onto their domain; by default unchanged."""
        return parameters

    def slot_words(self, parameters: Tensor, vocabulary: Tensor) -> Tensor | None:
        """The words that the parameters represent, as rows of the vocabulary (n, slots); None if they represent no words."""
        return None

    def finish(self, target: AttackTarget, attempts: list[Attempt], parameters: Tensor) -> list[Attempt]:
        """The attempts after all steps."""
        return attempts

    # --- the loop -----------------------------------------------------------------------------------------------------

    def find(self, target: AttackTarget) -> list[Attempt]:
        """See `Attack.find`."""
        count, fitting = len(target.prompts), FittingBatches("prompts", self.batch)
        with progress_bar(f"attack: {self.name}", self.steps * count) as bar:

            def attempts(part: slice) -> list[Attempt]:
                return self._attack_batch(target, target.prompts[part], target.latents[part], bar)

            batches = map(attempts, fitting.parts(count)) if self.shares_batch else fitting.run(count, attempts)
            return [*chain.from_iterable(batches)]

    def loss(
        self, target: AttackTarget, noised: NoisedLatents, latents: Tensor, prompts: Sequence[str], cond: Conditioning
    ) -> Tensor:
        """The mean squared difference of prediction and target for each prompt, (n,)."""
        expected = self.prediction_target(target, noised, latents, prompts)
        prediction = target.model.predict(noised.noisy_latents, noised.timesteps, cond)
        return (prediction - expected).square().flatten(1).mean(1)

    def _attack_batch(self, target: AttackTarget, prompts: list[str], latents: Tensor, bar: ProgressBar) -> list[Attempt]:
        model: Any = target.model
        generators = self.generators(prompts)
        tokens = pad_token_ids(model, [self.token_layout(words) for words in bare_token_ids(model, prompts)])
        words = whole_words(model)
        vocabulary = token_embedding(model).weight.detach().float()[words]
        probes = [noise_latents(model, latents, generators, (i + 0.5) / self.probes) for i in range(self.probes)]
        parameters = self.initial_parameters(vocabulary, (tokens == SLOT).sum(1).tolist(), generators)
        optimizer = self.make_optimizer(parameters)
        has_words = self.slot_words(parameters, vocabulary) is not None
        checks = {round(i * self.steps / (self.checks - 1)) for i in range(self.checks)}

        @torch.no_grad()
        def scored_prompts() -> list[tuple[str, float]]:
            """The current prompts and their scores."""
            rows = self.slot_words(parameters, vocabulary)
            attacked = prompts if rows is None else decode_tokens(model, fill_slots(tokens, words[rows]))
            if rows is None:
                cond = encode_slots(model, tokens, self.slot_embeddings(parameters, vocabulary, generators))
            else:
                cond = model.encode_prompts(attacked)
            scores = torch.stack([self.loss(target, probe, latents, prompts, cond) for probe in probes]).mean(0).tolist()
            return list(zip(attacked, scores, strict=True))

        first = zip(prompts, scored_prompts(), strict=True)
        attempts = [Attempt(prompt, attacked, "", score, score, (attacked,)) for prompt, (attacked, score) in first]
        for step in range(1, self.steps + 1):
            noised = noise_latents(model, latents, generators)
            embeddings = self.slot_embeddings(parameters, vocabulary, generators).detach().requires_grad_()
            loss = self.loss(target, noised, latents, prompts, encode_slots(model, tokens, embeddings))
            (gradient,) = gradients(loss.sum(), [embeddings], model)
            assert gradient is not None
            parameters.grad = self.parameter_gradient(gradient, vocabulary)
            optimizer.step()
            parameters.data = self.project(parameters.data)
            if step in checks:
                pairs = zip(attempts, scored_prompts(), strict=True)
                attempts = [a.improved(*scored) if has_words else replace(a, last=scored[1]) for a, scored in pairs]
            bar.advance(len(prompts), remark=f"objective {sum(a.last or 0 for a in attempts) / len(attempts):.4f}")
        return self.finish(target, attempts, parameters)


def noise_latents(model: Any, latents: Tensor, generators: list[torch.Generator], progress: float | None = None) -> NoisedLatents:
    """Latents, each with noise of its own generator.

    Args:
        model: a loaded model.
        latents: clean latents, (n, c, h, w).
        generators: one for each latent.
        progress: the timestep as a share of all training timesteps; None for random timesteps.
    """
    count = model.noise_scheduler.config.num_train_timesteps
    rows = [
        torch.randint(count, (), generator=generator) if progress is None else torch.tensor(int(progress * count))
        for generator in generators
    ]
    noise = torch.stack([torch.randn(latents.shape[1:], generator=generator) for generator in generators]).to(latents)
    timesteps = torch.stack(rows).to(latents.device)
    return NoisedLatents(model.add_noise(latents, noise, timesteps), timesteps, noise)


# --- tokens -------------------------------------------------------------------------------------------------------------


def random_word_embeddings(vocabulary: Tensor, counts: list[int], generators: list[torch.Generator]) -> Tensor:
    """Random rows of the vocabulary as trainable embeddings (n, max(counts), width); unused slots hold its first row."""
    words = torch.zeros(len(counts), max(counts), dtype=torch.long)
    for row, count, generator in zip(words, counts, generators, strict=True):
        row[:count] = torch.randint(len(vocabulary), (count,), generator=generator)
    return vocabulary[words.to(vocabulary.device)].clone().requires_grad_()


def pad_token_ids(model: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of token ids between start and end token, padded or cut to the encoder's length: (n, length)."""
    blank: list[int] = model.token_tensor([""])[0].tolist()
    start, end, *padding = blank
    cut = [list(row)[: len(padding)] for row in rows]
    padded = [[start, *row, end, *padding[len(row) :]] for row in cut]
    return torch.tensor(padded, device=model.device)


def fill_slots(tokens: Tensor, words: Tensor) -> Tensor:
    """The tokens with the words (n, slots) in their slots, in order; a row with fewer slots uses its first words."""
    return tokens.masked_scatter(tokens == SLOT, words[_used_slots(tokens, words)])


def encode_slots(model: Any, tokens: Tensor, embeddings: Tensor) -> Conditioning:
    """The conditioning of tokens whose slots have these embeddings (n, slots, width) instead of a word's."""
    slots = tokens == SLOT

    def fill(layer: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.masked_scatter(slots[..., None], embeddings[_used_slots(tokens, embeddings)].to(output))

    handle = token_embedding(model).register_forward_hook(fill)
    try:
        return {"prompt_embeds": model.encode_tokens(tokens.clamp(min=0))}
    finally:
        handle.remove()


def _used_slots(tokens: Tensor, slots: Tensor) -> Tensor:
    """The mask (n, slots) of the slots that occur in the tokens: the first ones of each row."""
    count = (tokens == SLOT).sum(1, keepdim=True)
    return torch.arange(slots.shape[1], device=tokens.device) < count
