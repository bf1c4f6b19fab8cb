"""The shared loop of fine-tuning methods, and the hooks where they differ."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unlearnbench.algos.examples import Batch, Examples
from unlearnbench.algos.losses import denoising_loss as denoising_loss
from unlearnbench.algos.training import Step, Training, TrainingContext, Unlearned
from unlearnbench.config.errors import RunError
from unlearnbench.config.ranges import above_zero, at_least
from unlearnbench.console import progress_bar
from unlearnbench.data.concept import Concept
from unlearnbench.models.adapters.lora import LoRA, install_adapters, merge_adapters
from unlearnbench.models.base import CAPABILITIES, SamplingGuidance, TextToImage
from unlearnbench.models.frozen import Frozen
from unlearnbench.models.parameters import make_optimizer, make_trainable, select_parameters

denoising = denoising_loss  # its name in algorithm files of earlier versions


@dataclass
class Unlearner:
    """A method: its settings, and the loss (or the edit) by which it differs from the others.

    Attributes:
        name: as in the config group `algo`.
        train: what trains: none, xattn (cross-attention), xattn_kv (its keys and values), not_xattn, self_attn, blocks
            (all layers around attention), full (all of the denoiser), text_encoder, lora (adapters of rank 4 on the
            attention, merged at the end; lora16 has rank 16), or a regular expression over parameter names.
        steps: optimizer steps; as many for each concept, where several are forgotten at once.
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

    needs_examples: ClassVar[bool] = True  # prompts at least, both to forget and to retain
    needs_images: ClassVar[bool] = True
    needs_anchor_images: ClassVar[bool] = False
    trains_own: ClassVar[bool] = False  # parameters that it adds, among which `train` selects
    seeded: ClassVar[bool] = True  # it draws: another seed gives another result
    lasting: ClassVar[bool] = True  # what it did stays when it forgets another concept after that

    def __post_init__(self) -> None:
        at_least(self, 0, "steps")
        at_least(self, 1, "batch")
        above_zero(self, "lr")

    @property
    def needs_anchors(self) -> bool:
        """Whether a forget prompt that has no anchor teaches nothing (a ClassVar where no setting decides it)."""
        return False

    @property
    def plain(self) -> bool:
        """Whether a plain pipeline of diffusers holds all that it did, as weights of its own layers (a ClassVar likewise)."""
        return True

    def requires(self) -> frozenset[str]:
        """What of `OFFERS` the model must have."""
        return frozenset()

    def unavailable_reason(self, model: TextToImage) -> str | None:
        """What it lacks to run on this model, with the repair; None if nothing. Loads nothing."""
        lacks = sorted(self.requires() - model.capabilities)
        if not lacks:
            return None
        wanted = " and ".join(CAPABILITIES[need] for need in lacks)
        repair = "`unlearnbench list --support` says what runs where"
        return f"algo={self.name}: needs {wanted}, and {type(model).__name__} has none; {repair}"

    @property
    def lora(self) -> int | None:
        """The rank of the adapters that `train` asks for (lora, lora16); None where it asks for none."""
        adapted = re.fullmatch(r"lora(\d*)", self.train)
        return int(adapted.group(1) or 4) if adapted else None

    @property
    def selection(self) -> str:
        """What `train` selects parameters by: a name of the model's `patterns`, or a regular expression."""
        return self.train if self.lora is None else "lora"

    def incompatible_reason(self, concept: Concept, prompts: Sequence[str]) -> str | None:
        """Why it can learn nothing from these forget prompts of the concept, with the repair; None if it can."""
        if not self.needs_anchors or any(concept.substitute(prompt) != prompt for prompt in prompts):
            return None
        repair = 'give what to paint instead, such as concept.anchor={"church": "house"}, or try algo=esd_x'
        return f"algo={self.name}: concept.anchor exchanges nothing in the forget prompts of {concept.name}; {repair}"

    def loss(self, model: TextToImage, frozen: Frozen, forget: Batch, retain: Batch, generator: torch.Generator) -> Tensor:
        """The scalar to minimise at one step.

        Args:
            model: the model that trains.
            frozen: the original.
            forget: examples of the concept.
            retain: examples of what is to be retained.
            generator: the only source of randomness, on the CPU.
        """
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def trainable(self, model: TextToImage, generator: torch.Generator) -> dict[str, nn.Parameter]:
        """The parameters that train: the model's own or adapters, as `train` says, unless the method adds some."""
        if self.lora is not None:
            make = partial(LoRA, rank=self.lora, generator=generator)
            return install_adapters(model, select_parameters(model, self.selection), make)
        return make_trainable(model, self.train)

    def begin(self, training: Training) -> Any:
        """Compute what the method needs before the first step; returns its State, a dataclass, or None.

        The State is `training.state` in every hook. It is saved with each checkpoint, and restored after `begin` was repeated
        from the seed (see `unlearnbench.algos.state`), so that a method needs no code of its own to resume.
        """
        return None

    def step_loss(self, training: Training, step: Step) -> Tensor:
        """The loss of one step, for methods that need more than `loss` is given (their State, say)."""
        return self.loss(training.model, training.original, *step)

    def backward(self, training: Training, step: Step) -> Tensor:
        """Fill the gradients of one step and return the loss; for methods that need more than one backward pass."""
        loss = self.step_loss(training, step)
        loss.backward()
        return loss

    def shape_gradients(self, training: Training) -> None:
        """Change the gradients before the optimizer sees them."""

    def rate(self, progress: float) -> float:
        """The factor on `lr` at a step; `progress` is the fraction of steps done, from 0 to below 1."""
        return 1.0

    def after_step(self, training: Training) -> None:
        """What follows each step of the optimizer (a projection, say)."""

    def finish(self, training: Training) -> None:
        """What follows the loop (an interpolation toward the original, say)."""

    def unlearn(
        self,
        model: TextToImage,
        forget: Examples,
        retain: Examples,
        concept: Concept,
        seed: int,
        context: TrainingContext | None = None,
        guidance: SamplingGuidance | None = None,
    ) -> Unlearned:
        """Change the model in place.

        Args:
            model: a loaded model.
            forget: examples of the concept.
            retain: examples of what is to be retained.
            concept: what is to be forgotten.
            seed: of all randomness.
            context: log, checkpoints and other processes; by default none of them.
            guidance: how the model is sampled, as methods that forgot earlier concepts left it.

        Raises:
            RunError: the loss is no longer a finite number.
        """
        generator = torch.Generator().manual_seed(seed)
        return self.update(Training(model, forget, retain, concept, generator, context or TrainingContext(), guidance))

    def update(self, training: Training) -> Unlearned:
        """Fine-tune the model; a method that is no fine-tuning does its work here."""
        training.parameters = self.trainable(training.model, training.generator)
        training.original = Frozen(training.model, training.parameters)
        training.state = self.begin(training)
        optimizer = make_optimizer(training.model, list(training.parameters.values()), self.lr)
        steps = self.steps * len(training.concept.concepts_by_split("forget"))
        first = training.context.resume(training, optimizer)
        with progress_bar("unlearn", steps, first) as bar:
            for number in range(first, steps):
                loss = self._step(training, optimizer, number, steps)
                training.context.log(number + 1, loss)
                training.context.save(training, optimizer, number + 1)
                bar.advance(remark=f"loss {loss:.4f}")
        self.finish(training)
        for parameter in training.parameters.values():
            parameter.requires_grad_(False)
        return Unlearned(merge_adapters(training.model) or list(training.parameters), training.guidance)

    def _step(self, training: Training, optimizer: torch.optim.Optimizer, number: int, steps: int) -> float:
        """One optimizer step; returns its loss."""
        generator, parameters = training.generator, list(training.parameters.values())
        drawn = Step(training.forget.draw(self.batch, generator), training.retain.draw(self.batch, generator), generator)
        loss = training.context.average(self.backward(training, training.context.share(drawn)), parameters)
        if not torch.isfinite(loss):
            raise RunError(f"the loss became {loss.item()} at step {number + 1} of {steps}; try a smaller algo.lr")
        self.shape_gradients(training)
        for group in optimizer.param_groups:
            group["lr"] = self.lr * self.rate(number / steps)
        if self.clip > 0:
            nn.utils.clip_grad_norm_(parameters, self.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.after_step(training)
        if number == 0 and (own := vars(self).keys() - {field.name for field in fields(self)}):
            raise RunError(f"{type(self).__name__} sets self.{min(own)} while it trains; return it in the State of begin")
        return loss.item()
