"""MACE: Mass Concept Erasure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearnbench.algos.base import Unlearner, check_finite
from unlearnbench.algos.closed_form import apply_map, gram, linear_map, paired_token_ids, text_hidden_states
from unlearnbench.algos.examples import Examples
from unlearnbench.algos.training import Training, Unlearned
from unlearnbench.config.errors import UserError
from unlearnbench.config.ranges import above_zero, at_least, share
from unlearnbench.console import progress_bar
from unlearnbench.data.concept import Concept, mentions
from unlearnbench.models.attention_maps import attention_maps, key_value_weights
from unlearnbench.models.base import TextToImage
from unlearnbench.models.parameters import backpropagate
from unlearnbench.models.tokens import align_tokens, phrase_mask
from unlearnbench.storage.fitting_batches import FittingBatches

REGION_DRAWS = 10

Weights = dict[str, nn.Parameter]
Changes = dict[str, Tensor]


class WordExamples(NamedTuple):
    """The examples of one word: prompts, latents (n, c, h, w), masks of its tokens (n, tokens) and its region (n, h, w)."""

    prompts: list[str]
    latents: Tensor
    tokens: Tensor
    regions: Tensor


class Factors(NamedTuple):
    """The low-rank change B A of each weight W: A (rank, width) as `down`, B (rows, rank) as `up`, and the frozen W."""

    base: Changes
    down: Changes
    up: Changes

    def changes(self) -> Changes:
        """B A by the weight's name."""
        return {name: self.up[name] @ self.down[name] for name in self.base}

    def backpropagate(self, weights: Weights) -> None:
        """Move the gradient of each weight W + B A to its factors."""
        for name, weight in weights.items():
            if weight.grad is not None:
                self.down[name].grad, self.up[name].grad = self.up[name].T @ weight.grad, weight.grad @ self.down[name].T
                weight.grad = None


@dataclass
class MACE(Unlearner):
    """Remove the concept from the words around it, then its own words' attention from its region, then fuse the changes.

    Three stages on the keys and values of cross-attention (Lu et al. 2024, arXiv 2403.06135, and the authors' code):
    1. `refine`: a closed form, as in `UCE`. Tokens that a forget prompt shares with its anchor map to the anchor's keys
       and values.
    2. `adapt`: for each of the concept's words in the forget prompts, a low-rank change W + B A that minimises
       sum_l |A_l|, the norm of layer l's attention map of the word, the end token and padding, inside the concept's region.
    3. `fuse`: W* = (sum_w (W + B_w A_w) C_w + W_0 P + ridge W) (sum_w C_w + P + ridge I)^-1, with W the weight after the first
       stage, W_0 the original one, C_w = sum c c^T over the tokens of the prompts with word w, and P = `preserve` times the mean
       over retain prompts of sum c c^T. One weight then holds all changes, each for its own prompts.

    Ours differs where theirs uses external data. The region is where the original's predictions for prompt and anchor
    differ most (as in DiffEdit, Couairon et al. 2022, arXiv 2210.11427); theirs is a mask of Grounded-SAM. The prompts and
    images are the forget examples, not 30 templates around each word. The preserved prompts are the retain prompts, not
    the 616,767 captions of COCO. Theirs weigh 7e-7 each, .43 as a mean, which is `preserve`. With few prompts the matrix
    needs `ridge`, which is 0 there for nudity. Their code scales twice in the first stage and preserves almost nothing.
    Left out are the optional loss on images to preserve, the further captions of the concept's domain, and AdamW's weight
    decay (.01). The defaults are those for nudity.

    Attributes:
        rank: rank of each word's change.
        preserve: weight of the retain prompts' tokens: summed over a prompt, averaged over prompts.
        ridge: lambda, the weight of the current weights in both closed forms.
        focal: draw timesteps mostly between 200 and 400 of 1000 (theirs for objects, artists and people), not uniformly.
        region: a pixel belongs to the region if the predictions differ by at least this share of the largest difference;
            0 selects all pixels (theirs for artists).
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
        reason = super().incompatible_reason(concept, prompts)
        if reason or any(mentions(prompt, concept.words) for prompt in prompts):
            return reason
        words, repair = ", ".join(concept.words), "set concept.words to words that they contain"
        return f"algo={self.name}: no forget prompt of {concept.name} contains any of {words}; {repair}"

    def update(self, training: Training) -> Unlearned:
        """Run the three stages.

        Raises:
            UserError: no forget prompt contains one of the concept's words.
            RunError: the loss is no longer a finite number.
        """
        model, forget, retain, generator = training.model, training.forget, training.retain, training.generator
        weights = key_value_weights(model, self.train)
        original = {name: weight.detach().clone() for name, weight in weights.items()}
        words = self.word_examples(model, forget, training.concept, generator)
        retained = text_hidden_states(model, list(dict.fromkeys(retain.prompts)))
        prior = self.preserve / len(retained) * gram(retained)
        self.refine(model, weights, forget, prior)
        with progress_bar("unlearn", self.steps * len(words)) as bar:

            def log(step: int, loss: float) -> None:
                training.context.log(step, loss)
                bar.advance(remark=f"loss {loss:.4f}")

            changes = [self.adapt(model, weights, word, generator, log, i * self.steps) for i, word in enumerate(words)]
        grams = [gram(text_hidden_states(model, list(dict.fromkeys(word.prompts)))) for word in words]
        self.fuse(weights, original, changes, grams, prior)
        for weight in weights.values():
            weight.requires_grad_(False)
        return Unlearned(list(weights), training.guidance)

    def word_examples(
        self, model: TextToImage, forget: Examples, concept: Concept, generator: torch.Generator
    ) -> list[WordExamples]:
        """The examples of each of the concept's words that occurs in a forget prompt."""
        regions = self.regions(model, forget, generator)
        examples = []
        for word in concept.words:
            rows = [i for i, prompt in enumerate(forget.prompts) if mentions(prompt, [word])]
            if rows:
                prompts = [forget.prompts[i] for i in rows]
                tokens = phrase_mask(model, prompts, [word], True)
                examples.append(WordExamples(prompts, forget.latents[rows], tokens, regions[rows]))
        if not examples:
            raise UserError(f"no forget prompt contains any of {', '.join(concept.words)}")
        return examples

    @torch.no_grad()
    def regions(self, model: TextToImage, forget: Examples, generator: torch.Generator) -> Tensor:
        """The concept's region in each image, from predictions at the middle timestep over ten noises: 0 or 1, (n, h, w)."""
        if not len(forget.latents):
            raise UserError("this method trains on images, and none were given")
        if self.region == 0:
            return torch.ones_like(forget.latents[:, 0])
        timesteps = torch.full((REGION_DRAWS,), model.noise_scheduler.config.num_train_timesteps // 2, device=model.device)
        fitting, regions = FittingBatches("noises"), []
        for prompt, anchor, latent in zip(forget.prompts, forget.anchors, forget.latents, strict=True):
            noise = torch.randn((REGION_DRAWS, *latent.shape), generator=generator).to(model.device)
            noisy_latents = model.add_noise(latent.expand_as(noise), noise, timesteps)
            predict = partial(predict_part, model, noisy_latents, timesteps)
            pred_prompt, pred_anchor = (
                torch.cat([*fitting.run(REGION_DRAWS, partial(predict, text))]) for text in (prompt, anchor)
            )
            difference = (pred_prompt - pred_anchor).abs().mean((0, 1))
            regions.append((difference >= self.region * difference.max()).float())
        return torch.stack(regions)

    def refine(self, model: TextToImage, weights: Weights, forget: Examples, prior: Tensor) -> None:
        """The first stage, on the prompts that have an anchor."""
        pairs = {prompt: anchor for prompt, anchor in zip(forget.prompts, forget.anchors, strict=True) if anchor != prompt}
        old, new = (text_hidden_states(model, texts) for texts in (list(pairs), list(pairs.values())))
        rows = [(i, a, b) for i, ids in enumerate(paired_token_ids(model, pairs)) for a, b, same in align_tokens(*ids) if same]
        i, a, b = (list(column) for column in zip(*rows, strict=True))
        apply_map(weights, linear_map(old[i, a], new[i, b], prior + self.ridge * torch.eye(len(prior), dtype=torch.float64)))

    def adapt(
        self,
        model: TextToImage,
        weights: Weights,
        word: WordExamples,
        generator: torch.Generator,
        log: Callable[[int, float], None],
        first: int,
    ) -> Changes:
        """The second stage for one word: returns the change B A of each weight, and leaves the weights unchanged.

        Args:
            model: the model after the first stage.
            weights: the keys and values of cross-attention.
            word: the word's examples.
            generator: the only source of randomness, on the CPU.
            log: receives the number and the loss of each step.
            first: the number of steps of earlier words, which `log` counts too.
        """
        factors = self.new_factors(weights, generator)
        parameters = [*factors.down.values(), *factors.up.values()]
        optimizer = torch.optim.Adam(parameters, self.lr)
        for step in range(self.steps):
            rows = torch.randint(len(word.prompts), (self.batch,), generator=generator)
            loss = self.attention_loss(model, word, rows, generator)
            check_finite(loss, step + 1, self.steps, model.dtype)
            backpropagate(loss, list(weights.values()), model)
            factors.backpropagate(weights)
            if self.clip > 0:
                nn.utils.clip_grad_norm_(parameters, self.clip)
            optimizer.step()
            for name, weight in weights.items():
                weight.data = factors.base[name] + factors.up[name] @ factors.down[name]
            log(first + step + 1, loss.item())
        for name, weight in weights.items():
            weight.data = factors.base[name]
        return factors.changes()

    def new_factors(self, weights: Weights, generator: torch.Generator) -> Factors:
        """Random A and zero B for each weight."""
        base = {name: weight.detach().clone() for name, weight in weights.items()}
        down = {n: (torch.randn(self.rank, w.shape[1], generator=generator) / self.rank).to(w) for n, w in base.items()}
        return Factors(base, down, {n: w.new_zeros(w.shape[0], self.rank) for n, w in base.items()})

    def attention_loss(self, model: TextToImage, word: WordExamples, rows: Tensor, generator: torch.Generator) -> Tensor:
        """The sum over layers of the norm of the word's map inside its region, mean over the examples in `rows`."""
        timesteps = self.draw_timesteps(model, len(rows), generator).to(model.device)
        latents, tokens, regions = word.latents[rows], word.tokens[rows], word.regions[rows]
        noise = torch.randn(latents.shape, generator=generator).to(model.device)
        noisy_latents = model.add_noise(latents, noise, timesteps)
        with attention_maps(model) as maps:
            model.predict(noisy_latents, timesteps, model.encode_prompts([word.prompts[i] for i in rows]))
        norms = []
        for attention in maps:
            inside = F.adaptive_max_pool2d(regions, math.isqrt(attention.shape[2])).flatten(1)
            norms.append((attention * inside[:, None, :, None] * tokens[:, None, None]).flatten(1).norm(dim=1).mean())
        return torch.stack(norms).sum()

    def draw_timesteps(self, model: TextToImage, count: int, generator: torch.Generator) -> Tensor:
        """Random training timesteps (count,), uniform or by the focal weights."""
        weights = torch.ones(model.noise_scheduler.config.num_train_timesteps)
        if self.focal:
            timesteps = torch.arange(len(weights))
            weights = torch.sigmoid(0.05 * (timesteps - 200)) - torch.sigmoid(0.05 * (timesteps - 400))
        return torch.multinomial(weights, count, replacement=True, generator=generator)

    def fuse(self, weights: Weights, original: Changes, changes: list[Changes], grams: list[Tensor], prior: Tensor) -> None:
        """The third stage: one weight for the changes of all words, given C_w of each word as `grams`."""
        left = torch.stack(grams).sum(0) + self.ridge * torch.eye(len(prior), dtype=torch.float64)
        for name, weight in weights.items():
            target = weight.data.cpu().double() @ left + original[name].cpu().double() @ prior
            for change, word_gram in zip(changes, grams, strict=True):
                target = target + change[name].cpu().double() @ word_gram
            weight.data = torch.linalg.solve(left + prior, target, left=False).to(weight).contiguous()


def predict_part(model: TextToImage, noisy_latents: Tensor, timesteps: Tensor, prompt: str, part: slice) -> Tensor:
    """The prediction for a part of the noisy latents (n, c, h, w) with one prompt for all."""
    latents = noisy_latents[part]
    return model.predict(latents, timesteps[part], model.encode_prompts([prompt] * len(latents)))
