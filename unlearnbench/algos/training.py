"""The arguments of a method's hooks: one training with its model, examples and state, and the context of its run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unlearnbench.algos.continual import Constraint
from unlearnbench.algos.examples import Batch, Examples
from unlearnbench.data.concept import Concept
from unlearnbench.models.base import SamplingGuidance, TextToImage
from unlearnbench.models.frozen import Frozen


class Step(NamedTuple):
    """The examples of one optimizer step, and its source of randomness, on the CPU."""

    forget: Batch
    retain: Batch
    generator: torch.Generator


class Unlearned(NamedTuple):
    """The result of a method.

    Attributes:
        names: the parameters that the method may have changed.
        guidance: the sampling guidance of the unlearned model; None for plain sampling.
    """

    names: list[str]
    guidance: SamplingGuidance | None = None


class TrainingContext:
    """The services of a run for a training; by default nothing is logged, saved or shared between processes."""

    def log(self, step: int, loss: float) -> None:
        """Record the loss of a step, counted from 1."""

    def resume(self, training: Training, optimizer: torch.optim.Optimizer) -> int:
        """Restore the last saved state in place; returns its number of finished steps."""
        return 0

    def save(self, training: Training, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Save the state after `step` steps, if a checkpoint is due."""

    def keep_lora(self, lora: dict[str, Tensor]) -> None:
        """Receive the trained low-rank adapters by name, before they are merged into the weights."""

    def interruptible(self) -> AbstractContextManager[None]:
        """Around the steps: Ctrl-C takes effect after a step, when its state is saved; by default at once."""
        return nullcontext()

    def share(self, step: Step) -> Step:
        """This process's part of a step."""
        return step

    def average(self, loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """The mean loss over processes; each gradient becomes the mean over processes."""
        return loss


@dataclass
class Training:
    """The unlearning of one concept.

    Attributes:
        model: the model in training.
        forget: examples of the concept.
        retain: examples of what is to be retained.
        concept: the concept to unlearn.
        generator: the only source of randomness, on the CPU.
        context: the services of the run: log, checkpoints, other processes.
        guidance: the sampling guidance that earlier unlearning of other concepts returned.
        parameters: the parameters that train, by name.
        original: the original values of the parameters that train, and the original's predictions.
        optimizer: of the parameters that train.
        state: the State that the method's `begin` returned.
        constraint: what binds the steps of continual unlearning to the start; None if nothing.
    """

    model: TextToImage
    forget: Examples
    retain: Examples
    concept: Concept
    generator: torch.Generator
    context: TrainingContext = field(default_factory=TrainingContext)
    guidance: SamplingGuidance | None = None
    constraint: Constraint | None = None
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    original: Frozen = None  # type: ignore[assignment]
    optimizer: torch.optim.Optimizer = None  # type: ignore[assignment]
    state: Any = None
