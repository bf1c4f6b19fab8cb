"""Learn some tokens of a prompt through the unlearned model: what the white-box attacks share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unlearnbench.attacks.base import Attack, AttackTarget, Attempt
from unlearnbench.config.ranges import at_least
from unlearnbench.console import ProgressBar, progress_bar
from unlearnbench.models.base import Conditioning
from unlearnbench.models.noising import NoisedLatents
from unlearnbench.models.vocabulary import bare_token_ids, decode_tokens, token_embedding, whole_words

SLOT = -1


@dataclass
class TokenAttack(Attack):
    """Descend on |eps(x_t, text) - wanted|^2 over the vectors of some tokens of the text, for every prompt apart.

    eps is the unlearned model, x_t a noised latent of the prompt's target image, t uniform. A subclass says where the
    learned tokens stand, what is wanted, and what is learned: a vector itself, or something from which a word is picked.
    Words are tokens that a text of their own spells. `checks` times those that stand then are written out as a prompt,
    tokenized again and scored at `probes` fixed times and noises; the best prompt is kept, and its score is the objective
    that is reported. No detector is asked.

    Attributes:
        steps: optimizer steps.
        lr: the optimizer's learning rate.
        weight_decay: its weight decay.
        checks: how often prompts are scored, the first time before any step and the last after all.
        probes: times and noises of a score.
        batch: prompts attacked at once.
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
        at_least(self, 0, "steps")
        at_least(self, 2, "checks")
        at_least(self, 1, "probes", "batch")

    # --- where attacks differ -----------------------------------------------------------------------------------------

    @abstractmethod
    def layout(self, words: list[int]) -> list[int]:
        """The tokens of the attacked prompt from those of the prompt, without start and end; SLOT where one is learned."""

    @abstractmethod
    def wanted(self, victim: AttackTarget, x: NoisedLatents, clean: Tensor, prompts: Sequence[str]) -> Tensor:
        """What the unlearned model should predict, (n, c, h, w)."""

    @abstractmethod
    def start(self, vocabulary: Tensor, counts: list[int], generators: list[torch.Generator]) -> Tensor:
        """What is learned, (n, slots, ...), at the start; each row has as many slots as it counts, then idle ones."""

    @abstractmethod
    def optimizer(self, learned: Tensor) -> torch.optim.Optimizer:
        """What moves it."""

    @abstractmethod
    def vectors(self, learned: Tensor, vocabulary: Tensor, generators: list[torch.Generator]) -> Tensor:
        """The embeddings (n, slots, width) at which the gradient is taken."""

    def pull(self, gradient: Tensor, vocabulary: Tensor) -> Tensor:
        """The gradient of what is learned from that of the vectors; by default the same."""
        return gradient

    def project(self, learned: Tensor) -> Tensor:
        """What is learned after a step, put back to where it must lie; by default anywhere."""
        return learned

    def words(self, learned: Tensor, vocabulary: Tensor) -> Tensor | None:
        """The words that stand for what is learned, as rows of the vocabulary (n, slots); None where it is no word."""
        return None

    # --- what they share ----------------------------------------------------------------------------------------------

    def find(self, victim: AttackTarget) -> list[Attempt]:
        """See `Attack.find`."""
        attempts = []
        groups = [slice(i, i + self.batch) for i in range(0, len(victim.prompts), self.batch)]
        with progress_bar(f"attack: {self.name}", self.steps * len(groups)) as shown:
            for group in groups:
                attempts += self._descend(victim, victim.prompts[group], victim.latents[group], shown)
        return attempts

    def loss(self, victim: AttackTarget, x: NoisedLatents, clean: Tensor, prompts: Sequence[str], text: Conditioning) -> Tensor:
        """The mean square of the difference for each prompt, (n,)."""
        wanted = self.wanted(victim, x, clean, prompts)
        return (victim.model.predict(x.noisy_latents, x.timesteps, text) - wanted).square().flatten(1).mean(1)

    def _descend(self, victim: AttackTarget, prompts: list[str], clean: Tensor, shown: ProgressBar) -> list[Attempt]:
        model: Any = victim.model
        generators = self.generators(prompts)
        tokens = fitted(model, [self.layout(words) for words in bare_token_ids(model, prompts)])
        allowed = whole_words(model)
        vocabulary = token_embedding(model).weight.detach().float()[allowed]
        probes = [noised(model, clean, generators, (i + 0.5) / self.probes) for i in range(self.probes)]
        learned = self.start(vocabulary, (tokens == SLOT).sum(1).tolist(), generators)
        optimizer = self.optimizer(learned)
        checks = {round(i * self.steps / (self.checks - 1)) for i in range(self.checks)}

        @torch.no_grad()
        def standing() -> tuple[list[str], list[float]]:
            """The prompts that stand now, and their scores."""
            words = self.words(learned, vocabulary)
            asked = prompts if words is None else decode_tokens(model, filled(tokens, allowed[words]))
            text = spelled(model, tokens, learned) if words is None else model.encode_prompts(asked)
            return asked, torch.stack([self.loss(victim, x, clean, prompts, text) for x in probes]).mean(0).tolist()

        best = [Attempt(p, a, "", score, score) for p, a, score in zip(prompts, *standing(), strict=True)]
        for step in range(1, self.steps + 1):
            x = noised(model, clean, generators)
            vectors = self.vectors(learned, vocabulary, generators).detach().requires_grad_()
            loss = self.loss(victim, x, clean, prompts, spelled(model, tokens, vectors))
            (gradient,) = torch.autograd.grad(loss.sum(), vectors)
            learned.grad = self.pull(gradient, vocabulary)
            optimizer.step()
            learned.data = self.project(learned.data)
            if step in checks:
                best = [old.better(asked, score) for old, asked, score in zip(best, *standing(), strict=True)]
            shown.advance(remark=f"objective {sum(a.last or 0 for a in best) / len(best):.4f}")
        return self.finish(victim, best, learned)

    def finish(self, victim: AttackTarget, best: list[Attempt], learned: Tensor) -> list[Attempt]:
        """The attempts once all steps are done."""
        return best


def noised(model: Any, clean: Tensor, generators: list[torch.Generator], when: float | None = None) -> NoisedLatents:
    """Each latent with noise of its own generator, at a random training time, or at this share of all training times."""
    last = model.scheduler.config.num_train_timesteps
    drawn = [torch.randint(last, (), generator=g) if when is None else torch.tensor(int(when * last)) for g in generators]
    noise = torch.stack([torch.randn(clean.shape[1:], generator=g) for g in generators]).to(clean)
    times = torch.stack(drawn).to(clean.device)
    return NoisedLatents(model.add_noise(clean, noise, times), times, noise)


# --- tokens -------------------------------------------------------------------------------------------------------------


def random_words(vocabulary: Tensor, counts: list[int], generators: list[torch.Generator]) -> Tensor:
    """So many random rows of the vocabulary for each generator, (n, most, width), to be learned; idle ones are the first row."""
    drawn = torch.zeros(len(counts), max(counts), dtype=torch.long)
    for row, count, generator in zip(drawn, counts, generators, strict=True):
        row[:count] = torch.randint(len(vocabulary), (count,), generator=generator)
    return vocabulary[drawn.to(vocabulary.device)].clone().requires_grad_()


def fitted(model: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of token ids between start and end, padded or cut to the encoder's length: (n, length)."""
    blank: list[int] = model.token_tensor([""])[0].tolist()
    start, end, *padding = blank
    cut = [list(row)[: len(padding)] for row in rows]
    whole = [[start, *row, end, *padding[len(row) :]] for row in cut]
    return torch.tensor(whole, device=model.device)


def filled(tokens: Tensor, words: Tensor) -> Tensor:
    """The tokens with the words (n, slots) in their slots, in order; a row with fewer slots takes its first words."""
    return tokens.masked_scatter(tokens == SLOT, words[_used(tokens, words)])


def spelled(model: Any, tokens: Tensor, vectors: Tensor) -> Conditioning:
    """What the denoiser is told of tokens whose slots have these embeddings (n, slots, width) in place of a word's."""
    places = tokens == SLOT

    def exchange(layer: torch.nn.Module, given: tuple[Tensor, ...], found: Tensor) -> Tensor:
        return found.masked_scatter(places[..., None], vectors[_used(tokens, vectors)].to(found))

    handle = token_embedding(model).register_forward_hook(exchange)
    try:
        return {"prompt_embeds": model.encode_tokens(tokens.clamp(min=0))}
    finally:
        handle.remove()


def _used(tokens: Tensor, slots: Tensor) -> Tensor:
    """Which of (n, slots) have a place in the tokens: the first ones of each row."""
    count = (tokens == SLOT).sum(1, keepdim=True)
    return torch.arange(slots.shape[1], device=tokens.device) < count
