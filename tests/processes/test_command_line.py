"""The command as it is typed: a true interpreter, and no torch where none is needed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from filelock import FileLock

from unlearnbench.storage.cache import Cache
from unlearnbench.storage.cache_entries import list_entries

SMALL = ("experiment=smoke", "metrics=integrity", "sample.prompts=1", "retain.splits=[far]")


@pytest.fixture
def folder(tmp_path):
    """A cache of three entries."""
    cache = Cache(tmp_path / "store", "ga on church")
    for kind, number in (("oracle", 0), ("training", 1), ("training", 2)):
        cache.get(kind, [number], lambda: {"images": torch.zeros(2, 100, dtype=torch.uint8)})
    return cache.folder


def test_a_run_typed_at_the_prompt_prints_its_values_and_leaves_its_folder(typed, true_python, tmp_path):
    outcome = typed("run", *SMALL, "algo=ga", "hydra.run.dir=mine", interpreter=true_python)
    assert (outcome.returncode, "Traceback" in outcome.stderr) == (0, False)
    assert "integrity ↑       retain " in outcome.stdout
    assert "images: mine/grid.png; next: `unlearnbench show mine`" in outcome.stdout
    assert "integrity" in outcome.stdout
    assert (tmp_path / "mine/metrics.json").is_file()
    log = json.loads((tmp_path / "mine/run.json").read_text())
    assert log["overrides"] == [*SMALL, "algo=ga"]
    assert log["command"].startswith("unlearnbench run experiment=smoke")


def test_a_mistake_typed_at_the_prompt_ends_in_2(typed, true_python):
    outcome = typed("run", "algo=gaa", interpreter=true_python)
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith("error: algo=gaa: no such choice; did you mean 'ga'? known: ")
    assert outcome.stderr.count("\n") == 1


def test_list_help_and_show_import_no_torch(smoke, tmp_path):
    code = f"""
import sys
import unlearnbench
from unlearnbench.cli.main import main
for words in (["list"], ["list", "algo"], ["--help"], ["run", "--help"], ["show", {str(smoke.folder)!r}],
              ["show", {str(smoke.folder)!r}, "--csv"], ["show", {str(smoke.folder)!r}, "--group", "seed"],
              ["show", {str(smoke.folder)!r}, {str(smoke.folder)!r}, "--paired"]):
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    assert code == 0, words
    assert "torch" not in sys.modules, words
"""
    outcome = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr


def test_the_list_is_printed_without_torch(folder):
    code = "import sys; from unlearnbench.cli.main import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    words = [sys.executable, "-c", code, "cache", f"cache={folder}"]
    outcome = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    assert outcome.returncode == 0, outcome.stderr
    head, *body, total = outcome.stdout.splitlines()
    assert head.split() == ["kind", "holds", "size", "made", "used", "made", "by"]
    assert [line.split()[0] for line in body] == ["training", "training", "oracle"]
    assert total.startswith("3 entries, ")


def test_an_entry_in_use_is_kept_and_told(folder, command):
    busy = list_entries(folder)[0].path
    hold = (
        "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", hold, f"{busy}.lock"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        outcome = command("cache", f"cache={folder}", "--clear", "--yes")
        process.stdin.close()
    assert "removed 2 entries" in outcome.out
    assert "1 in use and kept" in outcome.out
    assert busy.exists()
    with FileLock(f"{busy}.lock", timeout=5):
        pass


def test_the_command_writes_the_report_without_torch_and_says_how_large(smoke, tmp_path):
    code = "import sys; from unlearnbench.cli.main import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    words = [sys.executable, "-c", code, "report", str(smoke.folder), "-o", "r.html"]
    outcome = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    assert re.fullmatch(r"wrote r\.html, \d+\.\d kB\n", outcome.stdout)
    assert (tmp_path / "r.html").stat().st_size < 300_000
