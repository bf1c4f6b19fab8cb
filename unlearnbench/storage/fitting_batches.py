"""Work in batches that fit into a device's memory: one that does not is halved."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


class FittingBatches:
    """The size of batches that fit into memory: once one is out of memory, it and the following ones have half its size.

    Attributes:
        what: the things in a batch, for the warning.
        size: the largest batch; None for all at once.
        halved: whether a batch was out of memory.
    """

    def __init__(self, what: str, size: int | None = None) -> None:
        self.what, self.size, self.halved = what, size, False

    def parts(self, count: int) -> list[slice]:
        """The batches of `count` things, at the size that is known to fit."""
        size = self.size or max(1, count)
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]

    def run(self, count: int, work: Callable[[slice], Result]) -> Iterator[Result]:
        """The results of `work` on one batch after another of `count` things.

        `work` may be called again with a part of a batch, so what it leaves behind must not depend on a call that failed.

        Raises:
            RuntimeError: a single thing is out of memory, or `work` failed for another reason.
        """
        start = 0
        while start < count:
            part = slice(start, min(start + (self.size or count), count))
            try:
                result = work(part)
            except RuntimeError as error:
                self._halve(part.stop - start, error)
            else:
                start = part.stop
                yield result
                del result
            self._free()

    def run_anew(self, count: int, work: Callable[[list[slice]], Result]) -> Result:
        """The result of `work` on all batches of `count` things; it begins anew with smaller ones if one is out of memory.

        Raises:
            RuntimeError: as `run`.
        """
        while True:
            parts = self.parts(count)
            try:
                return work(parts)
            except RuntimeError as error:
                self._halve(max((part.stop - part.start for part in parts), default=1), error)
            self._free()

    def _halve(self, tried: int, error: RuntimeError) -> None:
        """Halve the size after a batch of `tried` things failed.

        Raises:
            RuntimeError: the error, if it has another reason or the batch cannot be halved.
        """
        if tried == 1 or not out_of_memory(error):
            raise error
        self.size, self.halved = tried // 2, True
        logger.warning("out of memory with %d %s in a batch; trying %d", tried, self.what, self.size)

    def _free(self) -> None:
        if self.halved and torch.cuda.is_available():
            torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Whether the error means that memory is too small; near the limit CUDA's libraries raise errors of their own."""
    from accelerate.utils.memory import should_reduce_batch_size

    if not isinstance(error, RuntimeError):
        return False
    if isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error):
        return True
    return "CUDA error: out of memory" in str(error) or "ALLOC_FAILED" in str(error)
