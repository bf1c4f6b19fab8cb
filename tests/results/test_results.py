"""Values of metrics.json, of this version and of 0.1.0, and the differences between settings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from scipy.stats import binomtest

from unlearnbench.experiment.provenance import _command
from unlearnbench.results.intervals import (
    NO_INTERVAL,
    interval_text,
    prompt_interval,
    score_interval,
    share_interval,
    wilson_interval,
)
from unlearnbench.results.run import Run, Value, load_run
from unlearnbench.results.settings import differing_settings, flatten, setting_changes, without_classes
from unlearnbench.storage.lock import LOCK

LOG = {"status": "done", "algo": "ga", "config": {}}
ROW = {"table": "Retention", "metric": "ira", "split": "far", "original": 1.0, "unlearned": 0.5, "better": "higher", "n": 4}


def test_a_value_is_read_as_it_was_written(tmp_path):
    value = Value(**{**ROW, "low": 0.4, "high": 0.6, "backbone": "judge", "note": "style", "extras": {"D_reseed": 0.25}})
    Run(tmp_path, LOG, [value]).write()
    assert load_run(tmp_path).values == [value]
    assert hash(value) == hash(load_run(tmp_path).values[0])


def test_a_value_is_stated_by_keyword():
    with pytest.raises(TypeError):
        Value("Retention", "integrity", "retain", None, 0.8, "higher", 4)


@pytest.mark.parametrize(
    ("note", "read"),
    [
        ("D_reseed: 0.253", ("", {"D_reseed": 0.253})),
        ("ira: style", ("style", {})),
        ("nearest by clip: star, tree", ("nearest by clip: star, tree", {})),
        ("x 1000, sigma 10", ("x 1000, sigma 10", {})),
        ("", ("", {})),
    ],
)
def test_the_notes_of_version_0_1_0_become_numbers_and_words(tmp_path, note, read):
    Run(tmp_path, LOG).write()
    (tmp_path / "metrics.json").write_text(json.dumps([{**ROW, "note": note}]))
    [value] = load_run(tmp_path).values
    assert (value.note, value.extras) == read


def test_changes_of_settings_leave_out_classes_and_what_changes_no_result():
    earlier = {"algo": {"_target_": "old.GA", "lr": 1e-5, "steps": 3}, "cache": "a", "seed": 0}
    now = {"algo": {"_target_": "new.GA", "lr": 1e-4, "steps": 3}, "cache": "b", "seed": 0, "tracker": "wandb"}
    assert setting_changes(earlier, now) == ["algo.lr 1e-05, now 0.0001"]
    assert differing_settings([flatten(earlier), flatten(now)]) == ["algo.lr"]
    assert setting_changes({"algo": {"lr": 1}}, {"algo": {"lr": 1, "decay": 0.9}}) == ["algo.decay None, now 0.9"]


@pytest.mark.parametrize(
    ("log", "status", "text"),
    [
        ({"status": "done"}, "done", "done"),
        ({"status": "error", "error": "RunError: no"}, "failed", "failed: RunError: no"),
        ({"status": "error", "error": "KeyboardInterrupt: "}, "interrupted", "interrupted; `unlearnbench resume r` continues"),
        ({"status": "interrupted"}, "interrupted", "interrupted; `unlearnbench resume r` continues"),
        ({"status": "started"}, "stopped", "stopped; `unlearnbench resume r` continues"),
    ],
)
def test_how_far_a_run_is(log, status, text):
    run = Run(Path("r"), {**LOG, **log})
    assert (run.status, run.status_text) == (status, text)


def test_a_run_whose_process_holds_the_lock_is_running_and_reading_that_takes_the_lock_from_nobody(tmp_path):
    run = Run(tmp_path, {**LOG, "status": "started"})
    with FileLock(tmp_path / LOCK):
        assert (run.status, run.status) == ("running", "running")
    (tmp_path / LOCK).touch()  # as a killed process leaves it
    assert run.status == "stopped"


@pytest.mark.parametrize(("count", "n"), [(0, 1), (0, 48), (3, 7), (8, 10), (48, 48)])
def test_the_interval_of_a_share_is_wilsons(count, n):
    z, p = 1.959963984540054, count / n
    middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    expected = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
    assert wilson_interval(count, n) == pytest.approx(expected, abs=1e-12)
    assert wilson_interval(count, n) == tuple(binomtest(count, n).proportion_ci(method="wilson"))


@pytest.mark.parametrize(
    ("groups", "column", "expected", "method"),
    [
        ("a" * 10, [1] * 9 + [0], (0.167, 0.998), "Wilson's, 1 prompt"),
        ("aabb", [1, 0, 0, 1], (0.095, 0.905), "Wilson's, 2 prompts"),
        ("aabb", [0, 0, 0, 1], (0.0, 0.5), "bootstrap over 2 prompts"),
        ("aaaabbbb", [1, 1, 1, 1, 0, 0, 0, 0], (0.0, 1.0), "bootstrap over 2 prompts"),
        ("aabb", [0.2, 0.4, 0.6, 0.8], (0.3, 0.7), "bootstrap over 2 prompts"),
    ],
)
def test_the_interval_of_a_share_always_has_a_width(groups, column, expected, method):
    interval = share_interval(list(groups), np.array(column, dtype=float))
    assert interval[:2] == pytest.approx(expected, abs=1e-3)
    assert interval.method == method


def test_a_mean_over_one_prompt_has_no_interval():
    assert prompt_interval(["a", "a"], np.array([0.2, 0.9])) == NO_INTERVAL
    assert NO_INTERVAL.complement() == NO_INTERVAL
    assert prompt_interval(["a", "b"], np.array([0.2, 0.9])).complement() == (pytest.approx(0.1), 0.8, "bootstrap over 2 prompts")


@pytest.mark.filterwarnings("error")
def test_draws_whose_ratio_is_no_number_leave_the_interval_finite():
    def norm(distance, reseed):
        return 1 - distance / reseed

    # a quarter of the draws are of prompt a alone: 0 / 0, then 0.1 / 0
    unchanged = prompt_interval(["a", "b"], np.array([0.0, 0.1]), np.array([0.0, 0.4]), of=norm)
    assert unchanged[:2] == pytest.approx((0.75, 0.75))
    changed = prompt_interval(["a", "b"], np.array([0.1, 0.1]), np.array([0.0, 0.4]), of=norm)
    assert changed[:2] == pytest.approx((0.5, 0.75))


def test_an_interval_of_what_is_never_a_number_has_none_for_its_ends():
    assert np.isnan(prompt_interval(["a", "b"], np.full(2, np.nan))[:2]).all()


def test_equal_ends_are_no_interval_in_a_table(tmp_path):
    assert (interval_text(0.1 + 0.2, 0.3), interval_text(None, None), interval_text(0.25, 0.5)) == ("", "", "0.250..0.500")
    assert interval_text(0.25, 0.5, 200.0, between=" to ") == "0.2 to 0.5"
    value = Value(**{**ROW, "metric": "integrity", "unlearned": 1.0, "low": 1.0, "high": 1.0})
    html = Run(tmp_path, LOG, [value])._repr_html_()
    assert "<td>1.000</td><td></td><td>4</td>" in html


@pytest.mark.parametrize(("share", "n"), [(0.0, 5), (1.0, 5), (0.125, 24)])
def test_the_score_interval_is_wilsons(share, n):
    assert score_interval(share, n) == pytest.approx(wilson_interval(round(share * n), n), abs=1e-12)


def test_values_know_their_range_those_of_older_runs_by_name():
    def bounds(metric, table="Retention", **own):
        return Value(table=table, metric=metric, split="retain", unlearned=0.5, better="", n=1, **own).bounds

    assert [bounds(name) for name in ("binding_color_style", "integrity", "fid")] == [(0, 1), (None, 1), (0, None)]
    assert (bounds("seconds", "Cost"), bounds("mine"), bounds("mine", lowest=0.0)) == ((0, None), (None, None), (0, None))


def test_intervals_load_scipys_statistics_only_when_they_need_them():
    code = "import sys, unlearnbench.results.intervals; assert not {'scipy.stats', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["unlearnbench run", "algo=ga"], "unlearnbench run algo=ga"),
        (["unlearnbench run", "concept.prompts='a b.csv'"], """unlearnbench run 'concept.prompts='"'"'a b.csv'"'"''"""),
        (["/x/bin/unlearnbench", "resume", "r"], "/x/bin/unlearnbench resume r"),
        (["api.py"], "unlearnbench run algo=ga 'concept=[church,nudity]'"),
        (["/x/ipykernel_launcher.py", "-f", "kernel.json"], "unlearnbench run algo=ga 'concept=[church,nudity]'"),
    ],
)
def test_the_command_of_a_run_from_python_is_one_that_does_the_same(argv, command, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    assert _command(["algo=ga", "concept=[church,nudity]"]) == command


def test_a_setting_that_came_later_counts_only_where_it_does_something():
    before, idle, used = ({"model": {"path": "x"} | more} for more in ({}, {"variant": None}, {"variant": "fp16"}))
    assert without_classes(before) == without_classes(idle) != without_classes(used)
