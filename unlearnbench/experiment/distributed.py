"""Several processes for one run, one a GPU: each paints its share of the batches and, if so set, trains on its part of each."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.examples import Examples
from unlearnbench.algos.training import Step, TrainingContext
from unlearnbench.config.errors import RunError, UserError
from unlearnbench.console import console
from unlearnbench.data.concept import Concept
from unlearnbench.models.base import SamplingGuidance, TextToImage
from unlearnbench.models.weights import load_weights
from unlearnbench.sampling import ImageGenerator, SamplingBatch, generate


class Changed(NamedTuple):
    """How the model differs from its checkpoint by now: a file of weights, and what steers its sampling."""

    weights: Path
    guidance: SamplingGuidance | None


class Lesson(NamedTuple):
    """What a training needs beside model and algorithm."""

    forget: Examples
    retain: Examples
    concept: Concept
    seed: int


def size() -> int:
    """How many processes were started together, this one among them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def asked() -> bool:
    """Was this process started together with others?"""
    return size() > 1


def distributed_problem(processes: int, batch: int) -> str | None:
    """Why a training batch cannot be shared by so many processes, with the repair; None if it can."""
    if processes not in (1, size()):
        repair = f"start it by torchrun --nproc_per_node {processes} -m unlearnbench run ..."
        return f"training.processes={processes}, and {size()} was started; {repair}"
    if batch % processes:
        return f"algo.batch={batch} has no equal parts for training.processes={processes}"
    return None


def own_gpu(device: torch.device) -> torch.device:
    """The device, or this process's own GPU where it has company and a GPU is meant."""
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if device.type == "cuda" and asked() else device


class Team:
    """The processes that `torchrun` or `accelerate launch` started together.

    The first leads: it does the run. The others follow: they load the same model and paint the batches that they are handed.
    Each batch is one that a single process would paint, so that images do not depend on the number of processes. A
    shared training is another than that of one process: all draw the same examples, each takes its part of them with noise
    of its own, and the optimizers of all see the mean gradient. What goes between them goes by gloo, on the CPU.
    """

    def __init__(self, model: TextToImage, algo: Unlearner) -> None:
        """Meet the others."""
        dist.init_process_group("gloo", timeout=timedelta(days=365))
        self.rank, self.size, self.model, self.algo = dist.get_rank(), dist.get_world_size(), model, algo
        self.guidance: SamplingGuidance | None = None
        console.quiet = self.rank > 0

    def __enter__(self) -> Team:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Let the followers go; where the leader alone broke down they may wait for something else, and fail with it."""
        if error is None or (isinstance(error, UserError | RunError) and error.__cause__ is None):
            self._tell(None)
        dist.destroy_process_group()

    def paint(self, batches: Sequence[SamplingBatch]) -> Iterator[Tensor]:
        """The images of every batch, in order, as many batches at a time as there are processes."""
        for start in range(0, len(batches), self.size):
            now = list(batches[start : start + self.size])
            self._tell(now)
            yield from self._paint(now)

    def change(self, weights: Path, guidance: SamplingGuidance | None) -> None:
        """Tell the followers what has become of the model."""
        self.guidance = guidance
        self._tell(Changed(weights.resolve(), guidance))

    def teach(self, lesson: Lesson) -> None:
        """Tell the followers to train with the leader, who begins right after this."""
        cpu = torch.device("cpu")
        self._tell(lesson._replace(forget=lesson.forget.to(cpu), retain=lesson.retain.to(cpu)))

    def context(self, journal: TrainingContext) -> TrainingContext:
        """The training context of a shared training; it logs by the journal of the leader."""
        return SharedTraining(self, journal)

    def share(self, step: Step) -> Step:
        """This process's part of what all have drawn alike, and a generator of its own for noise and timesteps."""
        seed = int(torch.randint(2**31, (), generator=step.generator)) + self.rank
        mine = slice(self.rank, None, self.size)
        return Step(step.forget.part(mine), step.retain.part(mine), torch.Generator().manual_seed(seed))

    def average(self, loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """The mean loss of all processes; each parameter's gradient becomes the mean of theirs, equal in all of them."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([part.detach().flatten().float().cpu() for part in (loss, *gradients)])
        dist.all_reduce(flat)
        value, *means = (flat / self.size).split([1, *(gradient.numel() for gradient in gradients)])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))
        return value

    def follow(self, device: torch.device) -> None:
        """Load the model once it is needed, and paint what the leader hands out, until it lets go."""
        while (word := self._tell(None)) is not None:
            if self.model.scheduler is None:
                self.model = self.model.load(device)
            if isinstance(word, Changed):
                load_weights(self.model, word.weights)
                self.guidance = word.guidance
            elif isinstance(word, Lesson):
                forget, retain = word.forget.to(device), word.retain.to(device)
                with suppress(RunError):  # which the leader tells
                    self.algo.unlearn(
                        self.model, forget, retain, word.concept, word.seed, self.context(TrainingContext()), self.guidance
                    )
            else:
                self._paint(word)
        dist.destroy_process_group()

    def _paint(self, batches: Sequence[SamplingBatch]) -> list[Tensor]:
        mine = generate(self.model, *batches[self.rank], self.guidance) if self.rank < len(batches) else None
        found: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(mine, found)
        return (found or [])[: len(batches)]

    def _tell(self, word: Any) -> Any:
        """The leader's word, which all hear."""
        box = [word]
        dist.broadcast_object_list(box)
        return box[0]


class SharedTraining(TrainingContext):
    """A training that several processes share: each takes its part of every step. It keeps no checkpoint."""

    def __init__(self, team: Team, journal: TrainingContext) -> None:
        self.team, self.journal = team, journal

    def log(self, step: int, loss: float) -> None:
        """See `TrainingContext.log`."""
        self.journal.log(step, loss)

    def share(self, step: Step) -> Step:
        """See `TrainingContext.share`."""
        return self.team.share(step)

    def average(self, loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """See `TrainingContext.average`."""
        return self.team.average(loss, parameters)


class SharedImageGenerator(ImageGenerator):
    """Generates as many batches at a time as there are processes."""

    def __init__(self, model: TextToImage, guidance: SamplingGuidance | None, team: Team) -> None:
        super().__init__(model, guidance)
        self.parallel, self.team = team.size, team

    def batches(self, batches: Sequence[SamplingBatch]) -> Iterator[Tensor]:
        """See `ImageGenerator.batches`."""
        self.team.model = self.model
        return self.team.paint(batches)


def image_generator(model: TextToImage, guidance: SamplingGuidance | None, team: Team | None) -> ImageGenerator:
    """Generates images in this process, or with the help of others where there are some."""
    return ImageGenerator(model, guidance) if team is None else SharedImageGenerator(model, guidance, team)
