"""Batches that do not fit into memory are halved, and the following ones stay so small."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

from unlearnbench.storage.fitting_batches import FittingBatches, out_of_memory

FULL = torch.OutOfMemoryError("CUDA out of memory")


def work_up_to(largest, calls):
    """Work that is out of memory with more than `largest` things, and returns their numbers."""

    def work(part):
        calls.append(part.stop - part.start)
        if part.stop - part.start > largest:
            raise FULL
        return list(range(part.start, part.stop))

    return work


def test_a_batch_is_halved_until_it_fits_and_nothing_is_left_out(caplog):
    calls, batches = [], FittingBatches("prompts", 8)
    assert [*chain.from_iterable(batches.run(11, work_up_to(3, calls)))] == list(range(11))
    assert calls == [8, 4, 2, 2, 2, 2, 2, 1]
    assert "out of memory with 8 prompts in a batch; trying 4" in caplog.text
    calls.clear()
    assert [*chain.from_iterable(batches.run(3, work_up_to(3, calls)))] == [0, 1, 2]
    assert calls == [2, 1]
    assert [part.stop - part.start for part in batches.parts(5)] == [2, 2, 1]


def test_without_a_size_all_are_one_batch():
    calls = []
    assert list(FittingBatches("prompts").run(5, work_up_to(5, calls))) == [[0, 1, 2, 3, 4]]
    assert calls == [5]
    assert list(FittingBatches("prompts").run(0, work_up_to(5, calls))) == []


def test_work_begins_anew_with_smaller_batches():
    calls, batches = [], FittingBatches("prompts", 4)
    assert batches.run_anew(6, lambda parts: [work_up_to(2, calls)(part) for part in parts]) == [[0, 1], [2, 3], [4, 5]]
    assert calls == [4, 2, 2, 2]


@pytest.mark.parametrize(("largest", "error"), [(0, FULL), (9, RuntimeError("shapes differ"))])
def test_one_thing_that_does_not_fit_and_other_errors_are_raised(largest, error):
    def work(part):
        if part.stop - part.start > largest:
            raise FULL
        raise error

    for run in (lambda batches: list(batches.run(4, work)), lambda batches: batches.run_anew(4, lambda parts: work(parts[0]))):
        with pytest.raises(type(error), match=str(error)):
            run(FittingBatches("things"))


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (FULL, True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling x"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (MemoryError("CUDA out of memory"), False),
    ],
)
def test_errors_that_mean_too_little_memory(error, is_full):
    assert out_of_memory(error) is is_full
