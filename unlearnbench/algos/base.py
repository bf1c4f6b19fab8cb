"""The shared loop of fine-tuning methods, the examples they see, and the hooks where they differ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearnbench.config import RunError, UserError
from unlearnbench.data import Concept
from unlearnbench.models.base import Frozen, TextToImage
from unlearnbench.progress import bar

Log = Callable[[int, float], None]


@dataclass
class Batch:
    """Some examples: prompts, the same with the concept exchanged (anchors), and clean latents of both, (n, c, h, w)."""

    prompts: list[str]
    anchors: list[str]
    latents: Tensor
    anchor_latents: Tensor = field(default_factory=lambda: torch.empty(0))


class Noised(NamedTuple):
    """Latents of a random time, with what made them."""

    noisy: Tensor
    times: Tensor
    noise: Tensor


@dataclass
class Examples:
    """All training examples of one side, forget or retain; latents are empty where the method needs no images.

    Attributes:
        prompts: one an example.
        anchors: the same with the concept exchanged.
        latents: clean latents, (n, c, h, w).
        weights: how likely each is drawn, up to a factor; None for all alike.
        anchor_latents: clean latents of images that the original paints for the anchors, where the method asks for them.
    """

    prompts: list[str]
    anchors: list[str]
    latents: Tensor
    weights: Tensor | None = None
    anchor_latents: Tensor = field(default_factory=lambda: torch.empty(0))

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """A random batch, with repetition."""
        if self.weights is None:
            chosen = torch.randint(len(self.prompts), (count,), generator=generator).tolist()
        else:
            chosen = torch.multinomial(self.weights, count, replacement=True, generator=generator).tolist()
        latents, others = (x[chosen] if len(x) else x for x in (self.latents, self.anchor_latents))
        return Batch([self.prompts[i] for i in chosen], [self.anchors[i] for i in chosen], latents, others)


@dataclass
class Unlearner(ABC):
    """A method: its settings, and the loss (or the edit) by which it differs from the others.

    Attributes:
        name: as in the config group `algo`.
        train: what trains: none, xattn (cross-attention), xattn_kv (its keys and values), not_xattn, full (all of the
            UNet), text_encoder, or a regular expression over parameter names.
        steps: optimizer steps.
        lr: Adam's learning rate.
        batch: forget examples a step, and as many retain examples.
        clip: the largest gradient norm; 0 for no limit.
    """

    name: str = ""
    train: str = "xattn"
    steps: int = 100
    lr: float = 1e-5
    batch: int = 4
    clip: float = 1.0

    needs_images: ClassVar[bool] = True
    needs_anchor_images: ClassVar[bool] = False
    lasting: ClassVar[bool] = True  # what it did stays when it forgets another concept after that

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("batch", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} is less than {least}")
        if not self.lr > 0:
            raise ValueError(f"lr: {self.lr} is not above 0")

    def missing(self, model: TextToImage) -> str | None:
        """What it lacks to run on this model, with the repair; None if nothing. Loads nothing."""
        return None

    @abstractmethod
    def loss(self, model: TextToImage, frozen: Frozen, forget: Batch, retain: Batch, generator: torch.Generator) -> Tensor:
        """The scalar to minimise at one step.

        Args:
            model: the model that trains.
            frozen: the original.
            forget: examples of the concept.
            retain: examples of what is to be kept.
            generator: the only source of randomness, on the CPU.
        """

    def trainable(self, model: TextToImage, generator: torch.Generator) -> dict[str, nn.Parameter]:
        """The parameters that train, the model's own unless the method adds some."""
        return model.trainable(self.train)

    def begin(
        self, model: TextToImage, frozen: Frozen, forget: Examples, retain: Examples, concept: Concept, generator: torch.Generator
    ) -> None:
        """What is computed once before the loop (a mask, say)."""

    def backward(
        self,
        model: TextToImage,
        frozen: Frozen,
        forget: Batch,
        retain: Batch,
        generator: torch.Generator,
        parameters: dict[str, nn.Parameter],
    ) -> Tensor:
        """Fill the gradients of one step and return the loss; for methods that need more than one backward pass."""
        value = self.loss(model, frozen, forget, retain, generator)
        value.backward()
        return value

    def shape_gradients(self, parameters: dict[str, nn.Parameter]) -> None:
        """Change the gradients before the optimizer sees them."""

    def after_step(self, parameters: dict[str, nn.Parameter], frozen: Frozen) -> None:
        """What follows each step of the optimizer (a projection, say)."""

    def finish(
        self,
        model: TextToImage,
        frozen: Frozen,
        forget: Examples,
        retain: Examples,
        generator: torch.Generator,
        parameters: dict[str, nn.Parameter],
    ) -> None:
        """What follows the loop (a step back toward the original, say)."""

    def unlearn(
        self, model: TextToImage, forget: Examples, retain: Examples, concept: Concept, seed: int, log: Log
    ) -> Sequence[str]:
        """Change the model in place; returns the names of the parameters that it may have changed.

        Raises:
            RunError: the loss is no longer a finite number.
        """
        generator = torch.Generator().manual_seed(seed)
        parameters = self.trainable(model, generator)
        frozen = Frozen(model, parameters)
        self.begin(model, frozen, forget, retain, concept, generator)
        optimizer = torch.optim.Adam(parameters.values(), self.lr)
        with bar("unlearn", self.steps) as shown:
            for step in range(self.steps):
                drawn = forget.draw(self.batch, generator), retain.draw(self.batch, generator)
                value = self.backward(model, frozen, *drawn, generator, parameters)
                if not torch.isfinite(value):
                    raise RunError(f"the loss became {value.item()} at step {step + 1} of {self.steps}; try a smaller algo.lr")
                self.shape_gradients(parameters)
                if self.clip > 0:
                    nn.utils.clip_grad_norm_(parameters.values(), self.clip)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                self.after_step(parameters, frozen)
                log(step + 1, value.item())
                shown.advance(remark=f"loss {value.item():.4f}")
        self.finish(model, frozen, forget, retain, generator, parameters)
        for parameter in parameters.values():
            parameter.requires_grad_(False)
        return list(parameters)


def noised(model: TextToImage, latents: Tensor, generator: torch.Generator) -> Noised:
    """Latents with noise of uniformly drawn training times."""
    if not len(latents):
        raise UserError("this method trains on images, and none were given")
    times = torch.randint(model.scheduler.config.num_train_timesteps, (len(latents),), generator=generator).to(model.device)
    noise = torch.randn(latents.shape, generator=generator).to(model.device)
    return Noised(model.add_noise(latents, noise, times), times, noise)


def denoising(model: TextToImage, batch: Batch, generator: torch.Generator) -> Tensor:
    """The usual training loss, the mean of (prediction - target)^2, on a batch's own prompts and latents."""
    x = noised(model, batch.latents, generator)
    predicted = model.predict(x.noisy, x.times, model.encode(batch.prompts))
    return F.mse_loss(predicted, model.target(batch.latents, x.noise, x.times))


def gradient(loss: Tensor, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The loss' gradient by parameter name, zero where it does not reach; no `grad` is touched."""
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, found, strict=True))
