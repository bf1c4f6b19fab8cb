"""Several processes for one run, one for each GPU: they share the sampling and, if set, each training batch."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from unlearnbench.algos.training import Step, TrainingContext
from unlearnbench.config.errors import RunError
from unlearnbench.console import console
from unlearnbench.models.base import SamplingGuidance, TextToImage
from unlearnbench.sampling import ImageGenerator, NonFiniteSample, SamplingBatch

TIMEOUT = timedelta(days=365)  # a process may wait while the main one measures, or reads images from a cache


def process_count() -> int:
    """The number of processes that torchrun or `accelerate launch` started together; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def distributed_problem(processes: int, batch: int) -> str | None:
    """Why a training batch cannot be shared by this number of processes, with the repair; None if it can."""
    if processes not in (1, process_count()):
        repair = f"start it by torchrun --nproc_per_node {processes} -m unlearnbench run ..."
        return f"training.processes={processes}, but the number of processes is {process_count()}; {repair}"
    if batch % processes:
        return f"algo.batch={batch} is not divisible by training.processes={processes}"
    return None


def process_device(device: torch.device) -> torch.device:
    """The device of this process: its own GPU where several processes run on GPUs."""
    is_shared = device.type == "cuda" and process_count() > 1
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if is_shared else device


class Processes:
    """The processes of one run; this class is a single process, which needs no communication.

    All run the same program: `execute` in the main process, which alone writes and measures, and `assist` in the others.

    Attributes:
        count: the number of processes.
        rank: the number of this one, from 0.
    """

    count: int = 1
    rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def from_main(self, value: Any = None) -> Any:
        """The value that the main process gave; what the others give is ignored."""
        return value

    @contextmanager
    def generator(self, model: TextToImage, guidance: SamplingGuidance | None = None) -> Iterator[ImageGenerator]:
        """Generates images in the main process; until the block ends, the others take part by `assist`."""
        yield ImageGenerator(model, guidance)

    def assist(self, model: TextToImage, guidance: SamplingGuidance | None) -> None:
        """Take part in one block of `generator` of the main process."""

    def context(self, journal: TrainingContext) -> TrainingContext:
        """The context of a training that all processes share; losses are logged to the journal."""
        return journal

    def main_has_failed(self) -> bool:
        """Wait for the main process: True if it has ended, False if it goes on."""
        return False

    def close(self) -> None:
        """Disconnect from the other processes after a complete run."""


class ConnectedProcesses(Processes):
    """Several processes, connected by accelerate: by NCCL on GPUs, by gloo on the CPU.

    Raises in every method:
        RunError: another process has ended.
    """

    def __init__(self, cpu: bool) -> None:
        """Connect to the others, and keep the console of all but the main process quiet."""
        from accelerate import PartialState

        self.state = PartialState(cpu=cpu, timeout=TIMEOUT)
        self.count, self.rank = self.state.num_processes, self.state.process_index
        console.quiet = not self.is_main

    def from_main(self, value: Any = None) -> Any:
        """See `Processes.from_main`; tensors on the GPU of the main process arrive on the GPU of each."""
        from accelerate.utils import broadcast_object_list

        message: list[Any] = [_serialize(value) if self.is_main else None]
        with _connected():
            broadcast_object_list(message)
        return value if self.is_main else _deserialize(message[0], self.state.device)

    @contextmanager
    def generator(self, model: TextToImage, guidance: SamplingGuidance | None = None) -> Iterator[ImageGenerator]:
        """See `Processes.generator`."""
        yield SharedImageGenerator(model, guidance, self)
        self.from_main(None)

    def assist(self, model: TextToImage, guidance: SamplingGuidance | None) -> None:
        """See `Processes.assist`."""
        generator = SharedImageGenerator(model, guidance, self)
        with generator.job():
            while (batches := self.from_main()) is not None:
                generator.generate_part(batches)

    def context(self, journal: TrainingContext) -> TrainingContext:
        """See `Processes.context`."""
        return SharedTraining(self, journal)

    def gather(self, values: list[Any]) -> list[Any]:
        """The values of all processes in one list, in the order of their ranks."""
        from accelerate.utils import gather_object

        with _connected():
            return gather_object(values)

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over processes."""
        from accelerate.utils import reduce

        with _connected():
            return reduce(tensor, "mean")

    def main_has_failed(self) -> bool:
        """See `Processes.main_has_failed`."""
        try:
            self.from_main()
        except RunError:
            return True
        return False

    def close(self) -> None:
        """See `Processes.close`."""
        self.state.destroy_process_group()


def connect_processes(device: str) -> Processes:
    """Connect the processes that were started together; a process that was started alone has no others.

    Args:
        device: the run's setting `device`.
    """
    if process_count() == 1:
        return Processes()
    return ConnectedProcesses(cpu=device == "cpu" or not torch.cuda.is_available())


@contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RunError(f"another process has ended ({str(error).partition(chr(10))[0]})") from error


def _serialize(value: Any) -> bytes:
    data = io.BytesIO()
    torch.save(value, data)
    return data.getvalue()


def _deserialize(data: bytes, device: torch.device) -> Any:
    return torch.load(io.BytesIO(data), map_location={"cuda:0": str(device)}, weights_only=False)


class SharedImageGenerator(ImageGenerator):
    """Generates one batch in each process at a time; each is one that a single process would generate."""

    def __init__(self, model: TextToImage, guidance: SamplingGuidance | None, processes: ConnectedProcesses) -> None:
        super().__init__(model, guidance)
        self.parallel, self.processes = processes.count, processes

    def batches(self, batches: Sequence[SamplingBatch], later: Iterable[SamplingBatch] = ()) -> Iterator[Tensor]:
        """See `ImageGenerator.batches`; the prompts of later batches are not encoded now."""
        for start in range(0, len(batches), self.parallel):
            yield from self.generate_part(self.processes.from_main(list(batches[start : start + self.parallel])))

    def generate_part(self, batches: Sequence[SamplingBatch]) -> list[Tensor]:
        """Generate this process's part of the batches, and gather the images of all.

        Raises:
            NonFiniteSample: an image of any process is not finite; all processes raise it.
        """
        with self.processes.state.split_between_processes(list(batches)) as part:
            images = [self._images_or_failure(batch) for batch in part]
        gathered = self.processes.gather(images)[: len(batches)]
        for failure in gathered:
            if isinstance(failure, NonFiniteSample):
                raise failure
        return gathered

    def _images_or_failure(self, batch: SamplingBatch) -> Tensor | NonFiniteSample:
        try:
            return self.batch(batch)
        except NonFiniteSample as failure:
            return failure


class SharedTraining(TrainingContext):
    """A training that several processes share; it writes no checkpoint.

    All processes draw the same examples; each takes its part of them with its own noise and timesteps, and the optimizers of
    all see the mean gradient. The result depends on the number of processes.
    """

    def __init__(self, processes: ConnectedProcesses, journal: TrainingContext) -> None:
        self.processes, self.journal = processes, journal

    def log(self, step: int, loss: float) -> None:
        """See `TrainingContext.log`."""
        self.journal.log(step, loss)

    def keep_lora(self, lora: dict[str, Tensor]) -> None:
        """See `TrainingContext.keep_lora`."""
        self.journal.keep_lora(lora)

    def share(self, step: Step) -> Step:
        """Every n-th example of what all processes have drawn, and a generator seeded from the common one plus the rank."""
        seed = int(torch.randint(2**31, (), generator=step.generator)) + self.processes.rank
        part = slice(self.processes.rank, None, self.processes.count)
        return Step(step.forget.part(part), step.retain.part(part), torch.Generator().manual_seed(seed))

    def average(self, loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """See `TrainingContext.average`; loss and gradients are reduced as one fp32 vector."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([part.detach().flatten().float() for part in (loss, *gradients)])
        value, *means = self.processes.mean(flat).split([1, *(gradient.numel() for gradient in gradients)])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))
        return value
