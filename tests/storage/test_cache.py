"""The cache computes an entry once, and again when it is damaged."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch

from unlearnbench.console import progress_bar, progress_file
from unlearnbench.storage import atomic
from unlearnbench.storage.atomic import write_text
from unlearnbench.storage.cache import Cache, digest
from unlearnbench.storage.tensors import read_tensors, tensor_digest, write_tensors
from unlearnbench.storage.training_state import load_training_state, save_training_state

KEY = ["fingerprint", ["a star"], 3]


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def make():
    return {"images": torch.arange(6, dtype=torch.uint8).reshape(2, 3), "latents": torch.randn(2)}


def entry(cache):
    [path] = cache.folder.rglob("*.safetensors")
    return path


def test_an_entry_is_computed_once_and_read_back_bit_for_bit(cache):
    result = cache.get("images", KEY, make)
    read = Cache(cache.folder).get("images", KEY, pytest.fail)
    assert {name: value.dtype for name, value in read.items()} == {name: value.dtype for name, value in result.items()}
    assert tensor_digest(read) == tensor_digest(result)
    assert cache.get("images", KEY, pytest.fail).keys() == result.keys()
    assert (cache.misses, cache.hits) == (1, 1)


@pytest.mark.parametrize("other", [["fingerprint", ["a star"], 4], ["fingerprint", ["a", "star"], 3], []])
def test_another_key_or_kind_is_another_entry(other, cache):
    cache.get("images", KEY, make)
    cache.get("images", other, make)
    cache.get("latents", KEY, make)
    assert (cache.misses, cache.hits) == (3, 0)


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def empty(path):
    path.write_bytes(b"")


def forge(path):
    write_tensors(path, make(), {"of": KEY})


@pytest.mark.parametrize("damage", [cut, flip, empty, forge])
def test_a_damaged_entry_is_computed_again_with_a_warning(damage, cache, capsys):
    result = cache.get("images", KEY, make)
    damage(entry(cache))
    again = cache.get("images", KEY, lambda: result)
    assert torch.equal(again["latents"], result["latents"])
    assert "is damaged; recomputing it" in " ".join(capsys.readouterr().err.split())
    assert tensor_digest(cache.get("images", KEY, pytest.fail)) == tensor_digest(result)
    assert (cache.misses, cache.hits) == (2, 1)


def test_a_failed_computation_leaves_nothing_behind(cache):
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache.get("images", KEY, fail)
    assert not list(cache.folder.rglob("*.safetensors"))
    cache.get("images", KEY, make)
    assert not [path for path in cache.folder.rglob(".*") if path.is_file()]


def test_a_read_entry_counts_as_used(cache):
    cache.get("images", KEY, make)
    os.utime(entry(cache), (0, 0))
    cache.get("images", KEY, pytest.fail)
    assert entry(cache).stat().st_mtime > time.time() - 3600


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="Windows cannot fork")
def test_four_processes_compute_each_entry_once_and_damage_none(tmp_path):
    def work(start):
        def make(number):
            with (tmp_path / "made").open("a") as file:
                file.write(f"{number}\n")
            time.sleep(0.01)
            return {"a": torch.full((1000,), number)}

        shared = Cache(tmp_path / "cache")
        for number in range(12):
            number = (number + 3 * start) % 12
            assert shared.get("k", [number], lambda number=number: make(number))["a"][-1].item() == number

    four = [multiprocessing.get_context("fork").Process(target=work, args=(start,)) for start in range(4)]
    for process in four:
        process.start()
    for process in four:
        process.join()
    assert [process.exitcode for process in four] == [0, 0, 0, 0]
    assert sorted((tmp_path / "made").read_text().split(), key=int) == [str(number) for number in range(12)]
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]


def test_leftovers_of_a_killed_process_are_removed_when_the_entry_is_computed(cache):
    cache.get("images", KEY, make)
    path = entry(cache)
    path.rename(path.with_name(f".{path.name}.4242"))
    cache.get("images", KEY, make)
    assert [actual.name for actual in cache.folder.rglob("*.safetensors*") if actual.suffix != ".lock"] == [path.name]


def test_digests_tell_names_types_shapes_and_values_apart():
    base = {"a": torch.zeros(2, 3)}
    others = [{"b": torch.zeros(2, 3)}, {"a": torch.zeros(3, 2)}, {"a": torch.zeros(2, 3).half()}, {"a": torch.ones(2, 3)}]
    assert len({tensor_digest(tensors) for tensors in [base, *others]}) == 5
    assert tensor_digest({"a": torch.zeros(3, 2).t()}) == tensor_digest(base)
    assert tensor_digest({"a": torch.zeros(0)}) != tensor_digest({"a": torch.zeros(1)})
    assert digest(1, "a") == digest(1, "a") != digest("a", 1)


def test_a_training_state_is_restored_bit_for_bit(tmp_path):
    def start():
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        return layer, torch.optim.Adam(layer.parameters(), 0.1), torch.Generator().manual_seed(1)

    def train(layer, optimizer, generator, steps):
        for _ in range(steps):
            layer(torch.randn(4, 3, generator=generator)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    whole = start()
    train(*whole, 6)
    first = start()
    train(*first, 3)
    save_training_state(
        tmp_path / "state", dict(first[0].named_parameters()), *first[1:], {"step": 3}, {"average": torch.tensor(2.0)}
    )
    second = start()
    note, kept = load_training_state(tmp_path / "state", dict(second[0].named_parameters()), *second[1:])
    assert kept["average"].item() == 2
    train(*second, 6 - note["step"])
    for left, right in zip(whole[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(left, right)


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    write_tensors(path, {"a": torch.zeros(1)}, {"note": 1})

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unlearnbench.storage.tensors.save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        write_tensors(path, {"a": torch.ones(1)})
    tensors, note = read_tensors(path)
    assert (tensors["a"].item(), note) == (0, {"note": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]


def test_a_file_never_replaces_a_folder(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").touch()
    with pytest.raises(OSError, match="thesis"):
        write_text(tmp_path / "thesis", "report")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["thesis", "thesis/chapter.tex"]


@pytest.fixture
def read_elsewhere(monkeypatch):
    """Makes every rename over a file fail, as Windows does while another process reads it, until some tries have passed."""
    tries, replace = [], Path.replace

    def refused(self, target):
        tries.append(target)
        if len(tries) < 4:
            raise PermissionError(13, "in use")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refused)
    return tries


def test_a_file_that_another_process_reads_is_replaced_on_windows_once_it_has(read_elsewhere, tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "WINDOWS", True)
    monkeypatch.setattr(atomic, "READER_PAUSE", 0)
    write_text(tmp_path / "run.json", "new")
    assert (tmp_path / "run.json").read_text() == "new"
    assert len(read_elsewhere) == 4


def test_a_file_that_may_not_be_replaced_is_refused_at_once_elsewhere(read_elsewhere, tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "WINDOWS", False)
    with pytest.raises(PermissionError):
        write_text(tmp_path / "run.json", "new")
    assert len(read_elsewhere) == 1
    assert list(tmp_path.iterdir()) == []


def test_progress_goes_on_where_another_process_reads_its_file(read_elsewhere, tmp_path):
    with progress_file(tmp_path / "progress.json"), progress_bar("sample", 2) as bar:
        bar.advance()
    assert read_elsewhere
