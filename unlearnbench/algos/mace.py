"""MACE: Mass Concept Erasure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.closed_form import linear_map, paired_token_ids, text_hidden_states
from unlearnbench.algos.examples import Examples
from unlearnbench.algos.training import Training, Unlearned
from unlearnbench.config.errors import RunError, UserError
from unlearnbench.config.ranges import above_zero, at_least, share
from unlearnbench.console import progress_bar
from unlearnbench.data.concept import Concept, mentions
from unlearnbench.models.attention_maps import attention_maps, key_value_weights
from unlearnbench.models.base import TextToImage
from unlearnbench.models.tokens import align_tokens, phrase_mask

Weights = dict[str, nn.Parameter]
Changes = dict[str, Tensor]


class WordExamples(NamedTuple):
    """The examples of one word: prompts, latents (n, c, h, w), its tokens (n, tokens), its region (n, h, w)."""

    prompts: list[str]
    latents: Tensor
    tokens: Tensor
    regions: Tensor


@dataclass
class MACE(Unlearner):
    """Take the concept out of the words beside it, then its own words' attention out of its region, then fuse the two.

    Three stages on the keys and values of cross-attention (Lu et al. 2024, arXiv 2403.06135, and the authors' code):
    1. A closed form, as in `UCE`, under which the tokens that a forget prompt has in common with its anchor read as there.
    2. For each of the concept's words that forget prompts say, a low-rank change W + B A that minimises sum_l |A_l|, the
       norm of layer l's attention map of the word, the end token and padding, inside the concept's region.
    3. W* = (sum_w (W + B_w A_w) C_w + prior + ridge W) (sum_w C_w + prior + ridge I)^-1 with C_w = sum c c^T over the
       tokens of the prompts that say word w: all changes in one weight, each where its prompts are.

    What theirs takes from outside, ours takes from the run. The region is where the original's predictions for prompt
    and anchor differ most (as in DiffEdit, Couairon et al. 2022, arXiv 2210.11427), theirs a mask of Grounded-SAM. The
    prompts and pictures are the forget prompts and theirs, not 30 templates around each word. What is preserved are the
    retain prompts, not the 616,767 captions of COCO; theirs weigh 7e-7 each, .43 as a mean, which `preserve` is, and
    with so few the matrix needs `ridge`, 0 there for nudity; in their first stage the code scales twice, and
    preserves next to nothing. Left out: the optional loss on images to preserve, the
    further captions of the concept's domain, and AdamW's weight decay (.01). Defaults are those for nudity.

    Attributes:
        rank: of each word's change.
        preserve: the weight of the retain prompts' tokens: summed in a prompt, the mean over prompts.
        ridge: lambda, the weight of staying where the weights are, in both closed forms.
        focal: draw the times mostly between 200 and 400 of 1000 (there for objects, artists and people), not evenly.
        region: the pixels count where the predictions differ by this share of the largest difference; 0 for all (there
            for artists).
    """

    train: str = "xattn_kv"
    steps: int = 120
    lr: float = 1e-5
    batch: int = 1
    rank: int = 1
    preserve: float = 0.43
    ridge: float = 0.1
    focal: bool = False
    region: float = 0.5
    needs_anchors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "rank")
        above_zero(self, "ridge")
        share(self, "region")

    def requires(self) -> frozenset[str]:
        """See `Unlearner.requires`."""
        return frozenset({"xattn"})

    def incompatible_reason(self, concept: Concept, prompts: Sequence[str]) -> str | None:
        """See `Unlearner.incompatible_reason`."""
        lacks = super().incompatible_reason(concept, prompts)
        if lacks or any(concept.is_named_in(prompt) for prompt in prompts):
            return lacks
        words = ", ".join(concept.words)
        return f"algo={self.name}: no forget prompt of {concept.name} says one of {words}; set concept.words to what they say"

    def update(self, training: Training) -> Unlearned:
        """The three stages.

        Raises:
            UserError: no forget prompt says one of the concept's words.
            RunError: the loss is no longer a finite number.
        """
        model, forget, retain, generator = training.model, training.forget, training.retain, training.generator
        weights = key_value_weights(model, self.train)
        original = {name: weight.detach().clone() for name, weight in weights.items()}
        words = self.words(model, forget, training.concept, generator)
        kept = text_hidden_states(model, list(dict.fromkeys(retain.prompts)))
        prior = self.preserve / len(kept) * _gram(kept)
        self.refine(model, weights, forget, prior)
        with progress_bar("unlearn", self.steps * len(words)) as shown:

            def report(step: int, loss: float) -> None:
                training.context.log(step, loss)
                shown.advance(remark=f"loss {loss:.4f}")

            changes = [self.adapt(model, weights, word, generator, report, i * self.steps) for i, word in enumerate(words)]
        grams = [_gram(text_hidden_states(model, list(dict.fromkeys(word.prompts)))) for word in words]
        self.fuse(weights, original, changes, grams, prior)
        for weight in weights.values():
            weight.requires_grad_(False)
        return Unlearned(list(weights), training.guidance)

    def words(self, model: TextToImage, forget: Examples, concept: Concept, generator: torch.Generator) -> list[WordExamples]:
        """The examples of each word that some forget prompt says."""
        regions = self.regions(model, forget, generator)
        found = []
        for word in concept.words:
            rows = [i for i, prompt in enumerate(forget.prompts) if mentions(prompt, [word])]
            if rows:
                prompts = [forget.prompts[i] for i in rows]
                found.append(
                    WordExamples(prompts, forget.latents[rows], phrase_mask(model, prompts, [word], True), regions[rows])
                )
        if not found:
            raise UserError(f"no forget prompt says one of {', '.join(concept.words)}")
        return found

    @torch.no_grad()
    def regions(self, model: TextToImage, forget: Examples, generator: torch.Generator) -> Tensor:
        """Where prompt and anchor differ, at half the noise and over ten draws of it: 0 or 1, (n, h, w)."""
        if not len(forget.latents):
            raise UserError("this method trains on images, and none were given")
        if self.region == 0:
            return torch.ones_like(forget.latents[:, 0])
        times = torch.full((10,), model.scheduler.config.num_train_timesteps // 2, device=model.device)
        found = []
        for prompt, anchor, latent in zip(forget.prompts, forget.anchors, forget.latents, strict=True):
            noise = torch.randn((10, *latent.shape), generator=generator).to(model.device)
            noisy = model.add_noise(latent.expand_as(noise), noise, times)
            told, other = (model.predict(noisy, times, model.encode_prompts([text] * 10)) for text in (prompt, anchor))
            differs = (told - other).abs().mean((0, 1))
            found.append((differs >= self.region * differs.max()).float())
        return torch.stack(found)

    def refine(self, model: TextToImage, weights: Weights, forget: Examples, prior: Tensor) -> None:
        """The first stage, of the prompts that have an anchor."""
        pairs = {prompt: anchor for prompt, anchor in zip(forget.prompts, forget.anchors, strict=True) if anchor != prompt}
        old, new = (text_hidden_states(model, texts) for texts in (list(pairs), list(pairs.values())))
        rows = [(i, a, b) for i, ids in enumerate(paired_token_ids(model, pairs)) for a, b, same in align_tokens(*ids) if same]
        i, a, b = (list(column) for column in zip(*rows, strict=True))
        change = linear_map(old[i, a], new[i, b], prior + self.ridge * torch.eye(len(prior), dtype=torch.float64))
        for weight in weights.values():
            weight.data = (weight.data.double().cpu() @ change).to(weight)

    def adapt(
        self,
        model: TextToImage,
        weights: Weights,
        said: WordExamples,
        generator: torch.Generator,
        log: Callable[[int, float], None],
        before: int,
    ) -> Changes:
        """The second stage for one word: the change B A of each weight, which is put back."""
        base = {name: weight.detach().clone() for name, weight in weights.items()}
        down = {n: (torch.randn(self.rank, w.shape[1], generator=generator) / self.rank).to(w) for n, w in base.items()}
        up = {n: w.new_zeros(w.shape[0], self.rank) for n, w in base.items()}
        factors = [*down.values(), *up.values()]
        optimizer = torch.optim.Adam(factors, self.lr)
        for step in range(self.steps):
            loss = self.attention(model, said, torch.randint(len(said.prompts), (self.batch,), generator=generator), generator)
            if not torch.isfinite(loss):
                raise RunError(f"the loss became {loss.item()} at step {step + 1} of {self.steps}; try a smaller algo.lr")
            loss.backward()
            for name, weight in weights.items():
                if weight.grad is not None:
                    down[name].grad, up[name].grad = up[name].T @ weight.grad, weight.grad @ down[name].T
                    weight.grad = None
            if self.clip > 0:
                nn.utils.clip_grad_norm_(factors, self.clip)
            optimizer.step()
            for name, weight in weights.items():
                weight.data = base[name] + up[name] @ down[name]
            log(before + step + 1, loss.item())
        for name, weight in weights.items():
            weight.data = base[name]
        return {name: up[name] @ down[name] for name in base}

    def attention(self, model: TextToImage, said: WordExamples, rows: Tensor, generator: torch.Generator) -> Tensor:
        """The sum over layers of the norm of the word's map inside its region, mean over the examples in `rows`."""
        odds = torch.ones(model.scheduler.config.num_train_timesteps)
        if self.focal:
            time = torch.arange(len(odds))
            odds = torch.sigmoid(0.05 * (time - 200)) - torch.sigmoid(0.05 * (time - 400))
        times = torch.multinomial(odds, len(rows), replacement=True, generator=generator).to(model.device)
        latents, tokens, regions = said.latents[rows], said.tokens[rows], said.regions[rows]
        noise = torch.randn(latents.shape, generator=generator).to(model.device)
        with attention_maps(model) as maps:
            model.predict(model.add_noise(latents, noise, times), times, model.encode_prompts([said.prompts[i] for i in rows]))
        norms = []
        for kept in maps:
            inside = F.adaptive_max_pool2d(regions, math.isqrt(kept.shape[2])).flatten(1)
            norms.append((kept * inside[:, None, :, None] * tokens[:, None, None]).flatten(1).norm(dim=1).mean())
        return torch.stack(norms).sum()

    def fuse(self, weights: Weights, original: Changes, changes: list[Changes], grams: list[Tensor], prior: Tensor) -> None:
        """The third stage."""
        still = torch.stack(grams).sum(0) + self.ridge * torch.eye(len(prior), dtype=torch.float64)
        for name, weight in weights.items():
            target = weight.data.double().cpu() @ still + original[name].double().cpu() @ prior
            for change, gram in zip(changes, grams, strict=True):
                target = target + change[name].double().cpu() @ gram
            weight.data = torch.linalg.solve(still + prior, target, left=False).to(weight).contiguous()


def _gram(states: Tensor) -> Tensor:
    """The sum of c c^T over all tokens, (width, width)."""
    return states.flatten(0, -2).T @ states.flatten(0, -2)
