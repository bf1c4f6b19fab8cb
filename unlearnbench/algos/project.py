"""Remove the concept from the denoiser by projection, and redirect its words in the text encoder: our method."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from unlearnbench.algos.examples import Batch
from unlearnbench.algos.redirect import Redirect
from unlearnbench.algos.training import Step, Training
from unlearnbench.config.ranges import at_least, between
from unlearnbench.models.adapters.preconditioned import install_deltas
from unlearnbench.models.attention_maps import text_only_weights
from unlearnbench.models.base import Conditioning, TextToImage, stack_conditioning
from unlearnbench.models.noising import NoisedLatents, add_random_noise, denoising_prediction
from unlearnbench.models.parameters import select_parameters

TEXT_ENCODERS = "text_encoder"


@dataclass
class Project(Redirect):
    """`redirect` in the text encoder, and in the denoiser the removal of what it knows of the concept without a prompt.

    The denoiser trains on the original's text states E_0, so that another text encoder does not bring the concept back:
    L = removal r |eps(x_t, "") - T|^2 + substitution (r |eps(x_t, E_0(c_f)) - T_c|^2 + |eps(x_t^a, E_0(c_f)) -
    eps_0(x_t^a, E_0(c_a))|^2) + preservation (|e_c|^2 + |e|^2 + |e_c - (1 - 1/g) e|^2), beside the loss of `Redirect`.
    x_t are noised images of the concept, x_t^a those of the anchor, of which each example takes one at random for the prompt;
    x_t^r are of what is retained. e_c = eps(x_t^r, E_0(c_r)) - eps_0(x_t^r, E_0(c_r)), and e is the same for the empty prompt.
    The last term is the error after guidance of scale g, which adds up in sampling.

    The original generates the images of the concept and of the anchor in pairs, from the same noise, so that most of what
    differs is the concept. v = p(x_0^a) - p(x_0) leads from one to the other, p(y) being the prediction that denoises x_t to y:
    T_c = eps_0(x_t, E_0(c_f)) + v, and T = eps_0(x_t, "") + w v with w = <d, eps_0(x_t, "") - m> / |d|^2 in 0..1,
    d = eps_0(x_t, E_0(c_f)) - m, m the mean prediction for `contrast` random retain prompts. w is the part of the concept in
    what the unconditional model says of x_t, found by projection; it estimates the posterior weight of the concept in dynamic
    negative guidance (Koulischer et al. 2024, arXiv 2410.14398), which changes sampling and no weight.
    r = min(1, |d|^2 / |v|^2), for at little noise v is longer than any difference of two prompts. Ours.

    The first steps of sampling decide the layout and the background of every image, and a change of the unconditional
    prediction there is a change of all. So in the share `spared` of the sampling steps, the noisiest, T is eps_0(x_t, "") with
    the weight `preservation`, and a random half of the x_t^r is drawn there.

    Images of `training.forget_folder` have no pairs: v then leads to another image of the anchor.

    Attributes:
        removal: weight of the loss for the empty prompt on images of the concept.
        substitution: weight of the loss for the concept's text states.
        preservation: weight of the retain terms of the denoiser.
        contrast: the number of random retain prompts whose mean prediction is m.
        spared: the share of the sampling steps, the first ones, at which the unconditional prediction stays as it is.
    """

    train: str = "full"
    removal: float = 35.0
    substitution: float = 8.0
    preservation: float = 60.0
    contrast: int = 2
    spared: float = 0.2
    needs_images: ClassVar[bool] = True
    needs_anchor_images: ClassVar[bool] = True
    pairs_anchor_images: ClassVar[bool] = True
    passes_with_gradient: ClassVar[int] = 4
    no_lora_reason: ClassVar[str] = "the denoiser's own weights train, such as algo.train=full or algo.train=blocks"
    preconditioned: ClassVar[str] = TEXT_ENCODERS

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "removal", "substitution", "preservation")
        at_least(self, 1, "contrast")
        between(self, 0, 0.9, "spared")

    def trains_text_encoders(self) -> bool:
        """See `Preconditioned.trains_text_encoders`: the text encoders train beside what `train` selects."""
        return True

    def requires(self) -> frozenset[str]:
        """See `Unlearner.requires`."""
        return super().requires() | {"cfg"}

    @property
    def trains_adapters(self) -> bool:
        """See `Unlearner.trains_adapters`."""
        return True

    def trainable(self, model: TextToImage, generator: torch.Generator) -> dict[str, nn.Parameter]:
        """The preconditioned adapters of the text encoders, and what `train` selects."""
        deltas = install_deltas(model, text_only_weights(model, TEXT_ENCODERS))
        selected = select_parameters(model, self.train)
        for parameter in selected.values():
            parameter.requires_grad_(True)
            parameter.data = parameter.data.float()
        return deltas | selected

    def rate(self, progress: float) -> float:
        """The cosine from 1 to 0."""
        return 0.5 * (1 + math.cos(math.pi * progress))

    def step_loss(self, training: Training, step: Step) -> Tensor:
        """The loss of `Redirect` and that of the denoiser."""
        return super().step_loss(training, step) + self.denoiser_loss(training, step)

    def denoiser_loss(self, training: Training, step: Step) -> Tensor:
        """The losses of removal, substitution and preservation, each a mean over pixels."""
        model, (forget, retain, generator) = training.model, step
        count, empty_prompts = len(forget.prompts), [""] * len(forget.prompts)
        concept = add_random_noise(model, forget.latents, generator)
        retained = self.partly_noisiest(model, retain.latents, generator)
        spared = (concept.timesteps > self.spared_above(model))[:, None, None, None]
        of_anchor_image = (torch.rand(count, generator=generator) < 0.5).to(model.device)[:, None, None, None]
        anchor_images = model.add_noise(forget.anchor_latents, concept.noise, concept.timesteps)
        with training.original() as original:
            texts = [forget.prompts, self.partly_others(training, retain.prompts, generator), empty_prompts]
            of_concept, of_retained, of_empty = (original.encode_prompts(prompts) for prompts in texts)
            known = self.known(training, forget, concept, of_concept, of_empty, generator)
            x = torch.cat([anchor_images, retained.noisy_latents, retained.noisy_latents])
            t = torch.cat([concept.timesteps, retained.timesteps, retained.timesteps])
            conditioning = stack_conditioning(original.encode_prompts(forget.anchors), of_retained, of_empty)
            of_anchor, *retained_targets = original.predict(x, t, conditioning).split(count)
        targets = [
            known.without_prompt + torch.where(spared, 0.0, known.share) * known.shift,
            torch.where(of_anchor_image, of_anchor, known.with_prompt + known.shift),
            *retained_targets,
        ]
        shown = torch.where(of_anchor_image, anchor_images, concept.noisy_latents)
        x = torch.cat([concept.noisy_latents, shown, retained.noisy_latents, retained.noisy_latents])
        t = torch.cat([concept.timesteps, t])
        predictions = model.predict(x, t, stack_conditioning(of_empty, of_concept, of_retained, of_empty)).split(count)
        errors = [prediction - target for prediction, target in zip(predictions, targets, strict=True)]
        removal, substitution, retained_error, empty_error = errors
        guided_error = retained_error - (1 - 1 / max(model.guidance, 1)) * empty_error
        preservation = mean_square(retained_error) + mean_square(empty_error) + mean_square(guided_error)
        removal_weight = torch.where(spared, self.preservation, self.removal * known.weight)
        substitution_weight = self.substitution * torch.where(of_anchor_image, 1.0, known.weight)
        forgetting = (removal_weight * removal.square()).mean() + (substitution_weight * substitution.square()).mean()
        return forgetting + self.preservation * preservation

    def spared_above(self, model: TextToImage) -> float:
        """The timestep of sampling after the spared steps, above which all are spared."""
        if self.spared == 0:
            return math.inf
        return float(model.timestep_after(min(round(self.spared * model.steps), model.steps - 1), model.steps))

    def partly_noisiest(self, model: TextToImage, latents: Tensor, generator: torch.Generator) -> NoisedLatents:
        """Latents (n, c, h, w) with noise of random timesteps, of which a random half is spread over the spared ones."""
        noised = add_random_noise(model, latents, generator)
        if self.spared == 0:
            return noised
        bound, end = self.spared_above(model), model.noise_scheduler.config.num_train_timesteps
        spread = (bound + (end - bound) * (noised.timesteps / end)).to(noised.timesteps)
        chosen = (torch.rand(len(latents), generator=generator) < 0.5).to(model.device)
        timesteps = torch.where(chosen, spread, noised.timesteps)
        return NoisedLatents(model.add_noise(latents, noised.noise, timesteps), timesteps, noised.noise)

    def partly_others(self, training: Training, prompts: list[str], generator: torch.Generator) -> list[str]:
        """The prompts, a random third of them replaced by random ones of `others`."""
        others = training.state.others
        draws = torch.rand(len(prompts), 2, generator=generator).tolist()
        return [
            others[int(b * len(others))] if others and a < 1 / 3 else text for text, (a, b) in zip(prompts, draws, strict=True)
        ]

    def known(
        self,
        training: Training,
        forget: Batch,
        concept: NoisedLatents,
        of_concept: Conditioning,
        of_empty: Conditioning,
        generator: torch.Generator,
    ) -> Known:
        """What the model as it is knows of the noised images of the concept."""
        model, count = training.model, len(forget.prompts)
        prompts = training.retain.prompts
        drawn = torch.randint(len(prompts), (self.contrast * count,), generator=generator).tolist()
        parts = [of_concept, of_empty, model.encode_prompts([prompts[i] for i in drawn])]
        states = {key: torch.cat([part[key] for part in parts]) for key in of_empty}
        x, t = concept.noisy_latents.repeat(2 + self.contrast, 1, 1, 1), concept.timesteps.repeat(2 + self.contrast)
        with_prompt, without_prompt, *contrast = model.predict(x, t, states).split(count)
        mean = torch.stack(contrast).mean(0)
        direction = with_prompt - mean
        squared = inner_product(direction, direction)
        share = (inner_product(direction, without_prompt - mean) / squared.clamp(min=1e-12)).clamp(0, 1)
        of_anchor_image = denoising_prediction(model, concept.noisy_latents, forget.anchor_latents, concept.timesteps)
        shift = of_anchor_image - model.target(forget.latents, concept.noise, concept.timesteps)
        weight = (squared / inner_product(shift, shift).clamp(min=1e-12)).clamp(max=1)
        return Known(with_prompt, without_prompt, shift, share, weight)


class Known(NamedTuple):
    """What the original predicts of noised images of the concept.

    Attributes:
        with_prompt: eps_0(x_t, E_0(c_f)), (n, c, h, w).
        without_prompt: eps_0(x_t, ""), (n, c, h, w).
        shift: v, from the prediction that leads to the concept's image to that which leads to the anchor's, (n, c, h, w).
        share: w, (n, 1, 1, 1).
        weight: r, (n, 1, 1, 1).
    """

    with_prompt: Tensor
    without_prompt: Tensor
    shift: Tensor
    share: Tensor
    weight: Tensor


def mean_square(error: Tensor) -> Tensor:
    """The mean of the squares."""
    return error.square().mean()


def inner_product(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each row, (n, 1, 1, 1)."""
    return (a * b).sum((1, 2, 3), keepdim=True)
