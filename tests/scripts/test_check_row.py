"""A contributed row of the leaderboard is checked against its runs, and what is wrong is named in a line each."""

from __future__ import annotations

import functools
import json
import re
import shutil

import check_row
import pytest
import torch
from stored_runs import read_csv, run_overrides

from unlearnbench.config.compose import compose
from unlearnbench.experiment.provenance import collect_provenance
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.reports.export import export_comparison
from unlearnbench.reports.tables import run_csv
from unlearnbench.results.run import Run, Value, load_run


@functools.cache
def log_of(algo, seed):
    """The log of a run with the leaderboard's settings, as text."""
    words = run_overrides(algo, "church", seed, False)
    log = collect_provenance(RunSpec.of(compose(*words)), torch.device("cpu"), words)
    log |= {"status": "done", "fingerprint": check_row.fingerprint("church", "cpu"), "git": "a" * 40}
    return json.dumps(log | {"unlearned": [{"weights": seed * 8}]})


def contribution(tmp_path, algo="redirect", seeds="012"):
    """The csv and the folders of runs that somebody sends."""
    runs = []
    for seed in seeds:
        folder = tmp_path / f"{algo}-{seed}"
        folder.mkdir()
        values = [
            Value(table="Forgetting", metric="forget_accuracy", split="forget", unlearned=0.1 * int(seed), better="lower", n=48),
            Value(
                table="Retention",
                metric="integrity_norm",
                split="retain",
                unlearned=0.9,
                low=0.8,
                high=1.0,
                better="higher",
                n=154,
            ),
        ]
        run = Run(folder, json.loads(log_of(algo, seed)), values)
        run.write()
        runs.append(load_run(folder))
    row = tmp_path / "row.csv"
    row.write_text(export_comparison("csv", runs) if len(runs) > 1 else run_csv(runs[0]))
    return row, runs


@pytest.fixture
def three(tmp_path):
    return contribution(tmp_path)


@pytest.mark.parametrize(("algo", "seeds"), [("redirect", "012"), ("uce", "0")])
def test_nothing_is_wrong_with_a_right_row(algo, seeds, tmp_path):
    assert check_row.problems(*contribution(tmp_path, algo, seeds)) == []


WRONG = {
    "status": (("status", "error"), r"redirect-1: status error: the run did not end"),
    "algo": (("config", "algo", "lr", 0.5), r"redirect-1: algo\.lr=0\.5, the leaderboard has 0\.\d+"),
    "prompts of a run": (("config", "sample", "prompts", 4), r"redirect-1: sample\.prompts=4, the leaderboard has"),
    "cache, which changes nothing": (("config", "cache", "elsewhere"), None),
    "model": (("fingerprint", "b" * 64), r"redirect-1: model's hash bbbbbbbbbbbb, that of the package's Pictoworld is \w{12}"),
    "prompts": (("prompts", "c" * 64), r"redirect-1: prompts' hash cccccccccccc, that of the package's prompts is \w{12}"),
    "commit": (("git", "a" * 40 + "+"), r"redirect-1: commit aaaaaaaaaaaa\+: the sources had changes that are not committed"),
    "no commit": (("git", None), r"redirect-1: run.json names no commit; run from a clone of the repository"),
    "seed": (("config", "seed", 2), r"redirect: seeds 0, 2, 2, the leaderboard has 0, 1, 2"),
    "weights": (("unlearned", [{"weights": "0" * 8}]), r"redirect: seeds 0, 1 have the same unlearned weights, 00000000"),
    "unknown algorithm": (("algo", "mine"), r"redirect-1: algo=mine is not in conf/algo; its \.py and \.yaml belong"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_run_is_named_in_one_line(name, three):
    row, runs = three
    (*keys, last, value), expected = WRONG[name]
    inner = runs[1].log
    for key in keys:
        inner = inner[key]
    inner[last] = value
    lines = check_row.problems(row, runs)
    assert all("\n" not in line for line in lines)
    assert lines == [] if expected is None else any(re.search(expected, line) for line in lines), lines


def test_numbers_that_are_not_the_runs_are_named(three):
    row, runs = three
    row.write_text(row.read_text().replace("0.9", "0.95", 1))
    assert check_row.problems(row, runs) == [f"{row}: seed 0: integrity_norm (retain) is 0.95, the run has 0.9"]
    shutil.copy(row, row.with_name("short.csv"))
    row.write_text("".join(row.read_text().splitlines(keepends=True)[:-1]))
    assert f"{row}: no line of seed 2" in check_row.problems(row, runs)
    assert check_row.problems(row.with_name("none.csv"), runs) == [f"{row.with_name('none.csv')}: no such file, or no row in it"]


def test_seeds_and_images_that_are_missing_are_named(three):
    row, runs = three
    assert check_row.problems(row, runs[:2]) == ["redirect: seeds 0, 1, the leaderboard has 0, 1, 2"]
    object.__setattr__(runs[0].values[0], "n", 12)
    lines = check_row.problems(row, runs)
    assert f"{runs[0].folder}: forget_accuracy on forget: n = 12, the leaderboard has 48" in lines
    runs[0].values = []
    assert f"{runs[0].folder}: integrity_norm on retain was not measured" in check_row.problems(row, runs)


def test_a_right_row_is_added_and_a_wrong_one_is_not(three, tmp_path, monkeypatch, capsys):
    row, runs = three
    shutil.copy(check_row.LEADERBOARD, tmp_path / "board.csv")
    monkeypatch.setattr(check_row, "LEADERBOARD", tmp_path / "board.csv")
    monkeypatch.setattr("sys.argv", ["check_row.py", str(row), *(str(run.folder / "run.json") for run in runs), "--add"])
    assert check_row.main() == 0
    assert "redirect on church, seeds 0, 1, 2: nothing is wrong" in capsys.readouterr().out
    rows = {(line["algo"], line["concept"], line["seed"]): line for line in read_csv(tmp_path / "board.csv")}
    assert [rows["redirect", "church", seed]["integrity"] for seed in "012"] == ["0.9"] * 3
    row.write_text(row.read_text().replace("0.9", "0.95", 1))
    assert check_row.main() == 1
    assert "added to" not in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["check_row.py", str(row), str(tmp_path)])
    assert check_row.main() == 1
    assert "not a run (no run.json there)" in capsys.readouterr().out
