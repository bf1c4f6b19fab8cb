"""The shared loop of fine-tuning methods, and the hooks where they differ."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from unlearnbench.algos.examples import Batch, Examples
from unlearnbench.config.errors import RunError
from unlearnbench.config.ranges import above_zero, at_least
from unlearnbench.console import progress_bar
from unlearnbench.data.concept import Concept
from unlearnbench.models.adapters.lora import LoRA, install_adapters, merge_adapters
from unlearnbench.models.base import CAPABILITIES, TextToImage
from unlearnbench.models.frozen import Frozen

if TYPE_CHECKING:
    from unlearnbench.experiment.checkpointing import Journal
    from unlearnbench.experiment.distributed import Team


Log = Callable[[int, float], None]


@dataclass
class Unlearner(ABC):
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
        self.journal: Journal | None = None
        self.team: Team | None = None  # the processes that share each batch

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
        """The parameters that train: the model's own or adapters, as `train` says, unless the method adds some."""
        if self.lora is not None:
            return install_adapters(model, model.selected(self.selection), partial(LoRA, rank=self.lora, generator=generator))
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

    def rate(self, progress: float) -> float:
        """The share of `lr` that the step takes at which so much of the training is done, from 0 to below 1."""
        return 1.0

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

    def state(self) -> dict[str, Tensor] | None:
        """What the method itself keeps from step to step, for `restore`; None where it does not say.

        A run that was killed goes on from this and from parameters, optimizer and generator, after `begin` was repeated
        from the seed. A method that sets no attribute of its own keeps nothing; one that does overrides this and
        `restore` (with {} if what it sets stays as it is), or else its training begins again at its first step.
        """
        own = vars(self).keys() - {field.name for field in fields(self) if field.init} - {"journal", "team"}
        return None if own else {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""

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
        optimizer = model.optimizer(list(parameters.values()), self.lr)
        training = parameters, optimizer, generator
        first = self.journal.resume(self, *training) if self.journal else 0
        steps = self.steps * len(concept.concepts_by_split("forget"))
        with progress_bar("unlearn", steps, first) as shown:
            for step in range(first, steps):
                some, others, source = forget.draw(self.batch, generator), retain.draw(self.batch, generator), generator
                if self.team:
                    some, others, source = self.team.share(some, others, generator)
                value = self.backward(model, frozen, some, others, source, parameters)
                if self.team:
                    value = self.team.average(value, list(parameters.values()))
                if not torch.isfinite(value):
                    raise RunError(f"the loss became {value.item()} at step {step + 1} of {steps}; try a smaller algo.lr")
                self.shape_gradients(parameters)
                for group in optimizer.param_groups:
                    group["lr"] = self.lr * self.rate(step / steps)
                if self.clip > 0:
                    nn.utils.clip_grad_norm_(parameters.values(), self.clip)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                self.after_step(parameters, frozen)
                log(step + 1, value.item())
                if self.journal:
                    self.journal.keep(self, step + 1, *training)
                shown.advance(remark=f"loss {value.item():.4f}")
        self.finish(model, frozen, forget, retain, generator, parameters)
        for parameter in parameters.values():
            parameter.requires_grad_(False)
        return merge_adapters(model) or list(parameters)
