"""The command `cache`: what is listed, and that nothing else than what was asked goes."""

from __future__ import annotations

import io
import os
import sys
import time

import pytest
import torch
from safetensors.torch import save_file

from unlearnbench.config.compose import compose
from unlearnbench.config.errors import UserError
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.storage.answers import Answers
from unlearnbench.storage.cache import Cache
from unlearnbench.storage.cache_entries import list_entries
from unlearnbench.storage.image_store import ImageStore

DAY = 86400


@pytest.fixture
def folder(tmp_path):
    """A cache of three entries, used 40, 2 and 0 days ago."""
    cache = Cache(tmp_path / "store", "ga on church")
    for kind, days in (("renders", 40), ("training", 2), ("training", 0)):
        before = set(cache.folder.rglob("*.safetensors"))
        cache.get(kind, [days], lambda: {"images": torch.zeros(2, 100, dtype=torch.uint8)})
        [result] = set(cache.folder.rglob("*.safetensors")) - before
        os.utime(result, (time.time() - days * DAY,) * 2)
    return cache.folder


def test_entries_say_what_they_hold_and_what_made_them(folder):
    actual = list_entries(folder)
    assert [(e.kind, e.holds, e.by) for e in actual] == [
        ("renders", "images 2x100", "ga on church"),
        ("training", "images 2x100", "ga on church"),
        ("training", "images 2x100", "ga on church"),
    ]
    assert [round((time.time() - e.used) / DAY) for e in actual] == [40, 2, 0]
    assert all(time.time() - e.made < 3600 for e in actual)
    assert all(e.size == e.path.stat().st_size for e in actual)


def test_the_folder_is_the_settings_or_that_of_the_environment(folder, command, monkeypatch, tmp_path):
    assert command("cache", f"cache={tmp_path / 'none'}").out == f"0 entries, 0 B in {tmp_path / 'none'}\n"
    monkeypatch.setenv("UNLEARNBENCH_CACHE", str(folder))
    assert "3 entries" in command("cache").out


def test_prune_drops_what_is_damaged_and_with_older_what_is_old(folder, command):
    old, middle, new = (e.path for e in list_entries(folder))
    assert command("cache", f"cache={folder}", "--prune").out.startswith("removed 0 entries, 0 B; 3 entries")
    data = bytearray(new.read_bytes())
    data[-1] ^= 1
    new.write_bytes(bytes(data))
    assert command("cache", f"cache={folder}", "--prune").out.startswith("removed 1 entry")
    assert (old.exists(), middle.exists(), new.exists()) == (True, True, False)
    command("cache", f"cache={folder}", "--prune", "--older", "30d")
    assert (old.exists(), middle.exists()) == (False, True)


def test_a_cut_entry_is_listed_as_damaged(folder, command):
    path = list_entries(folder)[0].path
    path.write_bytes(path.read_bytes()[:20])
    assert "damaged" in command("cache", f"cache={folder}").out


def test_a_limit_removes_the_least_recently_used_and_no_more(folder, command):
    _, second, third = list_entries(folder)
    outcome = command("cache", f"cache={folder}", "--limit", f"{second.size + third.size}B")
    assert outcome.out.startswith("removed 1 entry")
    assert [e.path for e in list_entries(folder)] == [second.path, third.path]
    command("cache", f"cache={folder}", "--limit", f"{second.size + third.size - 1}B")
    assert [e.path for e in list_entries(folder)] == [third.path]
    assert command("cache", f"cache={folder}", "--limit", "20GB").out.startswith("removed 0 entries")


def test_clear_asks_and_takes_no_for_an_answer(folder, command, monkeypatch):
    outcome = command("cache", f"cache={folder}", "--clear")
    assert (outcome.code, outcome.err) == (2, "error: --clear asks before it removes; without a terminal say --yes\n")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    assert command("cache", f"cache={folder}", "--clear").code == 0
    assert len(list_entries(folder)) == 3
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    assert command("cache", f"cache={folder}", "--clear").out.endswith(f"0 entries, 0 B left in {folder}\n")
    assert list_entries(folder) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--limit", "20"), "error: size '20': give a number and a unit, such as 20GB or 500MiB"),
        (("--limit", "20 XB"), "error: size '20 XB': give a number and a unit"),
        (("--prune", "--older", "30"), "error: span '30': give a whole number and m, h, d or w"),
        (("--older", "30d"), "error: --older does nothing without --prune; say both"),
        (("--limit", "20GB", "--yes"), "error: --yes does nothing without --clear; say both"),
    ],
)
def test_a_size_or_span_that_is_none_is_refused(words, message, folder, command):
    outcome = command("cache", f"cache={folder}", *words)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert outcome.err.startswith(message)
    assert len(list_entries(folder)) == 3


def test_a_run_keeps_its_cache_below_the_limit(run, tmp_path):
    run(f"cache={tmp_path / 'store'}", folder="free")
    found = list_entries(tmp_path / "store")
    assert found
    assert {entry.by for entry in found} == {"substitute on church"}
    run(f"cache={tmp_path / 'store'}", f"cache_limit={found[-1].size}B", folder="bound")
    assert len(list_entries(tmp_path / "store")) == 1
    with pytest.raises(UserError, match="size 'much'"):
        run("cache_limit=much", folder="wrong")


def test_a_cache_that_cannot_be_reduced_is_a_warning_of_a_run_that_is_done(run, monkeypatch, caplog, tmp_path):
    def refuse(entries):
        raise UserError("x.safetensors: cannot be removed (Permission denied)")

    monkeypatch.setattr("unlearnbench.experiment.run.remove_entries", refuse)
    assert run(f"cache={tmp_path / 'store'}", "cache_limit=1B").log["status"] == "done"
    assert caplog.messages[-1] == (
        "cache_limit=1B: the cache is not reduced: x.safetensors: cannot be removed (Permission denied)"
    )


def test_an_entry_that_another_process_removes_meanwhile_is_not_listed(folder):
    (folder / f"training/{'a' * 64}.safetensors").symlink_to("gone")
    assert len(list_entries(folder)) == 3


def test_files_of_others_are_no_entries_and_stay(folder, command, tmp_path):
    files = ("sd14/unet", "training/lora", f"lora/{'a' * 64}")
    others = ("images/cat.png", "images/cat.json", *(f"{file}.safetensors" for file in files))
    for name in others:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not of the cache")
    save_file({"a": torch.zeros(1)}, folder / f"lora/{'b' * 64}.safetensors")
    for words in (("--prune", "--older", "0m"), ("--limit", "0B"), ("--clear", "--yes")):
        assert command("cache", f"cache={folder}", *words).out.endswith(f"0 entries, 0 B left in {folder}\n")
    assert sum(path.is_file() and path.suffix != ".lock" for path in folder.rglob("*")) == len(others) + 1


def test_answers_of_every_kind_are_listed(tmp_path):
    for kind in ("objects", "of-a-plugin"):
        Answers(Cache(tmp_path), kind, ["detector"]).put(["a"], torch.zeros(1, 7))
    assert sorted(entry.kind for entry in list_entries(tmp_path)) == ["objects", "of-a-plugin"]


@pytest.mark.parametrize("words", [("cache=",), ("cache=' '",), ("cache=null",)])
def test_an_empty_cache_is_refused_instead_of_the_working_folder(words, command, monkeypatch):
    message = "error: cache: is empty; name a folder by cache=FOLDER or UNLEARNBENCH_CACHE, or unset that variable\n"
    assert command("cache", *words).err == message
    monkeypatch.setenv("UNLEARNBENCH_CACHE", "")
    assert command("cache", "--prune").err == message
    with pytest.raises(UserError, match="cache: is empty"):
        RunSpec.of(compose("experiment=smoke"))


@pytest.fixture
def images(tmp_path):
    """A cache of three images, one damaged and one without its note, a block of features, and a batch of an earlier layout."""
    cache = Cache(tmp_path / "images-store", "ga on church")
    store = ImageStore(cache)
    for number in range(3):
        store.put([number], b"image" * 100)
    sorted(store.folder.glob("*.png"))[0].write_bytes(b"other")
    sorted(store.folder.glob("*.json"))[2].unlink()
    cache.get("images", ["batch"], lambda: {"images": torch.zeros(2, 100, dtype=torch.uint8)})
    Answers(cache, "features", ["classifier"]).put(["a", "b"], torch.zeros(2, 7))
    return cache.folder


def test_images_of_one_run_share_a_row_and_those_of_an_earlier_layout_are_named(images, command):
    lines = command("cache", f"cache={images}").out.splitlines()
    assert sum("2 images" in line and "ga on church" in line for line in lines) == 1
    assert sum("damaged" in line for line in lines) == 1
    assert sum("earlier layout: images 2x100" in line for line in lines) == 1
    assert sum("features" in line and "rows 2x7" in line and "earlier" not in line for line in lines) == 1
    assert lines[-1].startswith("1 entry, ")
    assert lines[-1].endswith("of an earlier layout, which runs no longer read; `unlearnbench cache --clear` removes them")


def test_prune_removes_damaged_images_and_leaves_the_earlier_layout(images, command):
    assert command("cache", f"cache={images}", "--prune").out.startswith("removed 2 entries")
    assert len([path for path in images.rglob("*") if path.suffix in (".png", ".json")]) == 2
    assert [entry.earlier_layout for entry in list_entries(images) if entry.earlier_layout] == [True]


def test_a_run_leaves_the_earlier_layout_alone_and_clear_removes_all(images, run, command):
    [earlier] = images.glob("images/*.safetensors")
    before = earlier.stat()
    run(f"cache={images}")
    assert (earlier.stat().st_mtime_ns, earlier.stat().st_size) == (before.st_mtime_ns, before.st_size)
    assert command("cache", f"cache={images}", "--clear", "--yes").out.endswith(f"0 entries, 0 B left in {images}\n")
    assert not [path for path in images.rglob("*") if path.is_file() and path.suffix != ".lock"]
