"""The training loop that fine-tuning methods share, and the hooks by which they differ."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unlearnbench.algos.continual import Constraint
from unlearnbench.algos.examples import Batch, Examples
from unlearnbench.algos.losses import denoising_loss as denoising_loss
from unlearnbench.algos.state import state_tensors
from unlearnbench.algos.training import Step, Training, TrainingContext, Unlearned
from unlearnbench.config.errors import RunError
from unlearnbench.config.ranges import above_zero, at_least
from unlearnbench.console import progress_bar
from unlearnbench.data.concept import Concept
from unlearnbench.models.adapters.lora import install_lora, lora_tensors
from unlearnbench.models.adapters.merging import merge_adapters
from unlearnbench.models.base import CAPABILITIES, SamplingGuidance, TextToImage
from unlearnbench.models.frozen import Frozen
from unlearnbench.models.parameters import backpropagate, make_optimizer, make_trainable, select_parameters
from unlearnbench.storage.downloads import Download

OPTIMIZER = frozenset({"steps", "lr", "batch", "clip"})  # the settings of the training loop
SELECTION_BATCHES = 8  # whose gradients choose the weights that train, if only a share of them does
denoising = denoising_loss  # its name in algorithm files of earlier versions


@dataclass
class Unlearner:
    """An unlearning method: its settings, and the loss (or the edit) by which it differs from other methods.

    Attributes:
        name: the name in the config group `algo`.
        train: which parameters train: none, xattn (cross-attention), xattn_kv (its keys and values), not_xattn, self_attn,
            blocks (all layers around attention), full (the whole denoiser), text_encoder, lora (adapters of rank 4 on the
            attention, merged at the end; lora16 has rank 16), or a regular expression over parameter names.
        steps: optimizer steps for each concept; several concepts at once multiply them.
        lr: Adam's learning rate.
        batch: forget examples in a step; the number of retain examples is the same.
        clip: the largest gradient norm; 0 disables clipping.
    """

    name: str = ""
    train: str = "xattn"
    steps: int = 100
    lr: float = 1e-5
    batch: int = 4
    clip: float = 1.0

    needs_examples: ClassVar[bool] = True
    """The method reads forget and retain examples, at least their prompts."""
    needs_images: ClassVar[bool] = True
    """The examples have latents of images."""
    needs_anchor_images: ClassVar[bool] = False
    """The forget examples have latents of the original's images for the anchors."""
    pairs_anchor_images: ClassVar[bool] = False
    """Each anchor's image begins from the same noise as the image of its forget prompt."""
    adds_parameters: ClassVar[bool] = False
    """The method adds parameters to the model, and `train` selects among them."""
    uses_seed: ClassVar[bool] = True
    """The method draws random numbers: another seed gives another result."""
    unread_settings: ClassVar[frozenset[str]] = frozenset()
    """The settings above that the method does not read (`OPTIMIZER` without a training loop); overriding one is refused."""
    cost_note: ClassVar[str] = ""
    """A remark on the cost of unlearning, such as that the training was elsewhere."""
    supports_sequential: ClassVar[bool] = True
    """The effect persists when the method then unlearns another concept."""

    def __post_init__(self) -> None:
        at_least(self, 0, "steps")
        at_least(self, 1, "batch")
        above_zero(self, "lr")
        if self.lora is not None and self.no_lora_reason:
            raise ValueError(f"train: {self.train}: {self.no_lora_reason}")

    @property
    def needs_anchors(self) -> bool:
        """Whether forget prompts without an anchor are useless to the method (a ClassVar where no setting decides it)."""
        return False

    @property
    def passes_with_gradient(self) -> int:
        """Passes of the denoiser, of `batch` images each, whose activations a step holds at once (a ClassVar, likewise)."""
        return 1

    @property
    def no_lora_reason(self) -> str:
        """Why `train` cannot be lora, with the repair; empty if it can (a ClassVar where no setting decides it)."""
        return ""

    @property
    def preconditioned(self) -> str:
        """The selector of the weights that get a preconditioned adapter; empty for none."""
        return ""

    @property
    def saves_as_pipeline(self) -> bool:
        """Whether a plain diffusers pipeline holds the whole result as weights of its own layers (a ClassVar, likewise)."""
        return True

    def requires(self) -> frozenset[str]:
        """The capabilities of `CAPABILITIES` that the model must have."""
        return frozenset()

    def unavailable_reason(self, model: TextToImage) -> str | None:
        """Why the method cannot run on this model, with the repair; None if it can. Loads nothing."""
        missing = sorted(self.requires() - model.capabilities)
        if not missing:
            return None
        capabilities = " and ".join(CAPABILITIES[capability] for capability in missing)
        repair = "`unlearnbench list --support` lists the models of each algorithm"
        return f"algo={self.name}: requires {capabilities}, and {type(model).__name__} has none; {repair}"

    def downloads(self) -> list[Download]:
        """What the method needs from the network and is not on this machine."""
        return []

    @property
    def lora(self) -> int | None:
        """The rank of the adapters if `train` is lora or lora16 (any number); otherwise None."""
        match = re.fullmatch(r"lora(\d*)", self.train)
        return int(match.group(1) or 4) if match else None

    @property
    def trains_adapters(self) -> bool:
        """Whether adapters beside the model's own weights train, which the original does not have."""
        return self.lora is not None

    @property
    def selection(self) -> str:
        """The selector that `train` stands for: a name of the model's `patterns`, or a regular expression."""
        return self.train if self.lora is None else "lora"

    def incompatible_reason(self, concept: Concept, prompts: Sequence[str]) -> str | None:
        """Why the method cannot learn from these forget prompts of the concept, with the repair; None if it can."""
        if not self.needs_anchors or any(concept.substitute(prompt) != prompt for prompt in prompts):
            return None
        repair = 'set the replacement, such as concept.anchor={"church": "house"}, or try algo=esd_x'
        return f"algo={self.name}: concept.anchor replaces nothing in the forget prompts of {concept.name}; {repair}"

    def loss(self, model: TextToImage, frozen: Frozen, forget: Batch, retain: Batch, generator: torch.Generator) -> Tensor:
        """The scalar loss of one step.

        Args:
            model: the model in training.
            frozen: the original.
            forget: examples of the concept.
            retain: examples of what is to be retained.
            generator: the only source of randomness, on the CPU.
        """
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def trainable(self, model: TextToImage, generator: torch.Generator) -> dict[str, nn.Parameter]:
        """The parameters that train, by name: the model's own or adapters, as `train` selects."""
        if self.lora is not None:
            return install_lora(model, select_parameters(model, self.selection), self.lora, generator)
        return make_trainable(model, self.train)

    def begin(self, training: Training) -> Any:
        """Compute what the method needs before the first step; returns its State, a dataclass, or None.

        Every hook reads the State as `training.state`. Each checkpoint saves it. To resume, `begin` runs again from the seed,
        and the saved State is restored over it (see `unlearnbench.algos.state`). A method needs no code of its own to resume.
        """
        return None

    def step_loss(self, training: Training, step: Step) -> Tensor:
        """The loss of one step, for methods that need more than the arguments of `loss` (such as their State)."""
        return self.loss(training.model, training.original, *step)

    def backward(self, training: Training, step: Step) -> Tensor:
        """Compute the gradients of one step and return the loss; for methods with several backward passes."""
        loss = self.step_loss(training, step)
        backpropagate(loss, list(training.parameters.values()), training.model)
        return loss

    def shape_gradients(self, training: Training) -> None:
        """Change the gradients before the optimizer reads them."""

    def rate(self, progress: float) -> float:
        """The factor on `lr` at a step; `progress` is the fraction of finished steps, from 0 to below 1."""
        return 1.0

    def after_step(self, training: Training) -> None:
        """Run after each optimizer step (a projection, for example)."""

    def finish(self, training: Training) -> None:
        """Run after the loop (an interpolation toward the original, for example)."""

    def unlearn(
        self,
        model: TextToImage,
        forget: Examples,
        retain: Examples,
        concept: Concept,
        seed: int,
        context: TrainingContext | None = None,
        guidance: SamplingGuidance | None = None,
        constraint: Constraint | None = None,
    ) -> Unlearned:
        """Change the model in place.

        Args:
            model: a loaded model.
            forget: examples of the concept.
            retain: examples of what is to be retained.
            concept: the concept to unlearn.
            seed: the seed of all randomness.
            context: log, checkpoints and other processes; by default none of them.
            guidance: the sampling guidance that earlier unlearning of other concepts returned.
            constraint: what binds the steps of continual unlearning to the start; by default nothing.

        Raises:
            RunError: the loss is no longer a finite number.
        """
        generator = torch.Generator().manual_seed(seed)
        context = context or TrainingContext()
        return self.update(Training(model, forget, retain, concept, generator, context, guidance, constraint))

    def update(self, training: Training) -> Unlearned:
        """Fine-tune the model; methods without fine-tuning override this."""
        training.parameters = self.trainable(training.model, training.generator)
        training.original = Frozen(training.model, training.parameters)
        training.state = self.begin(training)
        state_tensors(training.state)  # what cannot be saved is refused before the first step
        self._select_weights(training)
        optimizer = training.optimizer = make_optimizer(training.model, list(training.parameters.values()), self.lr)
        steps = self.steps * len(training.concept.concepts_by_split("forget"))
        first = training.context.resume(training, optimizer)
        with progress_bar("unlearn", steps, first) as bar, training.context.interruptible():
            for number in range(first, steps):
                loss = self._step(training, optimizer, number, steps)
                training.context.log(number + 1, loss)
                training.context.save(training, optimizer, number + 1)
                bar.advance(remark=f"loss {loss:.4f}")
        self.finish(training)
        for parameter in training.parameters.values():
            parameter.requires_grad_(False)
        if lora := lora_tensors(training.model):
            training.context.keep_lora(lora)
        merged = merge_adapters(training.model)
        own = training.parameters.keys() & {name for name, _ in training.model.named_parameters()}
        names = merged + [name for name in training.parameters if name in own and name not in merged]
        return Unlearned(names, training.guidance)

    def _draw(self, training: Training) -> Step:
        generator = training.generator
        return Step(training.forget.draw(self.batch, generator), training.retain.draw(self.batch, generator), generator)

    def _select_weights(self, training: Training) -> None:
        """Choose the weights that train, by the loss's gradients at the start; the method then begins anew, from there."""
        if training.constraint is None or training.constraint.selective == 1:
            return
        sums: dict[str, Tensor] = {}
        for _ in range(SELECTION_BATCHES):
            self.backward(training, self._draw(training))
            for name, parameter in training.parameters.items():
                if parameter.grad is not None:
                    sums[name] = sums[name] + parameter.grad if name in sums else parameter.grad
                parameter.grad = None
        for name, total in sums.items():
            training.parameters[name].grad = total
        training.constraint.select(training.parameters)
        for name, parameter in training.parameters.items():
            original = training.original.parameters[name]
            if not torch.equal(parameter.to(original), original):  # changed by `begin`
                parameter.data.copy_(original)
        training.state = self.begin(training)

    def _step(self, training: Training, optimizer: torch.optim.Optimizer, number: int, steps: int) -> float:
        """One optimizer step; returns its loss."""
        parameters, step = list(training.parameters.values()), self._draw(training)
        loss = training.context.average(self.backward(training, training.context.share(step)), parameters)
        check_finite(loss, number + 1, steps, training.model.dtype)
        self.shape_gradients(training)
        if training.constraint is not None:
            training.constraint.shape_gradients(training.parameters)
        for group in optimizer.param_groups:
            group["lr"] = self.lr * self.rate(number / steps)
        if self.clip > 0:
            nn.utils.clip_grad_norm_(parameters, self.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.after_step(training)
        if number == 0 and (attributes := vars(self).keys() - {field.name for field in fields(self)}):
            raise RunError(f"{type(self).__name__} sets self.{min(attributes)} while it trains; return it in the State of begin")
        return loss.item()


def check_finite(loss: Tensor, step: int, steps: int, dtype: str = "fp32") -> None:
    """Raise a RunError if the loss of a step, computed in this precision, is not a finite number."""
    if not torch.isfinite(loss):
        repair = "a smaller algo.lr" + " or model.dtype=bf16" * (dtype == "fp16")
        raise RunError(f"the loss became {loss.item()} at step {step} of {steps}; try {repair}")
