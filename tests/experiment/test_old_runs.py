"""Runs that version 0.1.0 made are shown, measured, reported and resumed as runs of today."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from unlearnbench.results.run import load_run

RUNS = Path(__file__).parents[1] / "fixtures/runs"


@pytest.fixture
def finished(tmp_path):
    """A copy of the finished run."""
    return shutil.copytree(RUNS / "finished-0.1.0", tmp_path / "finished")


@pytest.fixture
def killed(tmp_path):
    """A copy of the run that was killed in its training, after step 4 of 6."""
    return shutil.copytree(RUNS / "killed-0.1.0", tmp_path / "killed")


def flat(values):
    """Each field of each value, by where it stands; less the notes, whose numbers now have a field of their own."""
    return {(v["metric"], v["split"], v["table"], field): v[field] for v in values for field in v if field != "note"}


def numbers_of_rows(text):
    """The cells of each row of tables in markdown, less the metric, whose name is new, and the change, whose decimals are."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    return [[*row[1:4], *row[5:]] for row in rows]


def test_a_finished_run_is_shown_in_every_form(finished, command):
    shown = command("show", finished)
    assert (shown.code, shown.err) == (0, "")
    assert "Retention" in shown.out
    assert command("show", finished, "--csv").out == (finished / "tables.csv").read_text()
    text, before = command("show", finished, "--md").out, (finished / "tables.md").read_text()
    assert "| UA ↑ | forget | 0.750 | 0.750 | +0.000 | 0.500..1.000 | 4 |" in text
    assert numbers_of_rows(text[text.index("## Forgetting") :]) == numbers_of_rows(before)
    assert text.splitlines()[-1] == before.splitlines()[-1]
    [log] = json.loads(command("show", finished, "--json").out)
    assert log["versions"]["unlearnbench"] == "0.1.0"


def test_a_finished_run_is_measured_to_the_same_numbers(finished, command):
    path = finished / "metrics.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps([value | ({} if value["table"] == "Cost" else {"unlearned": -1.0}) for value in values]))
    measured = command("measure", finished)
    assert measured.code == 0, measured.err
    again, before = flat(json.loads(path.read_text())), flat(values)
    assert [place for place in again if place in before] == list(before)
    for place, value in before.items():
        assert again[place] == (pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value), place


def test_a_finished_run_is_reported(finished, command, tmp_path):
    written = command("report", finished, "-o", tmp_path / "report.html", "--images", "1")
    assert written.code == 0, written.err
    assert "integrity" in (tmp_path / "report.html").read_text()


def test_a_finished_run_stands_beside_one_of_today(finished, smoke, command):
    rows = command("show", finished, smoke.folder, "--md").out.splitlines()
    assert len(rows) == 4
    assert "_target_" not in rows[0]


def losses(folder):
    """The losses in train.csv, by step."""
    return [float(line.split(",")[1]) for line in (folder / "train.csv").read_text().splitlines()[1:]]


def test_a_killed_run_is_resumed_to_its_end(killed, command):
    """Its training starts over, because the key of its state names classes; the losses are the same."""
    before = losses(killed)
    resumed = command("resume", killed)
    assert resumed.code == 0, resumed.err
    run = load_run(killed)
    assert (run.log["status"], len(run.log["resumed"])) == ("done", 1)
    assert run.log["versions"]["unlearnbench"] == "0.1.0"
    assert len(losses(killed)) == 6
    assert losses(killed)[: len(before)] == pytest.approx(before, rel=1e-3)
    assert run.find("integrity", "retain").n > 0
