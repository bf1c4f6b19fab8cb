"""Sweeps: launchers in processes of their own, the table of how the runs stand, Optuna for two objectives."""

from __future__ import annotations

import io
import json
import os
import random
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from rich.console import Console

from hydra_plugins import unlearnbench_pareto
from hydra_plugins.unlearnbench_pareto import ParetoSweeper, domain, is_within
from unlearnbench.cli import hydra_job
from unlearnbench.cli.errors import print_error
from unlearnbench.cli.run import _print_summary
from unlearnbench.config.compose import PLUGINS, compose
from unlearnbench.config.errors import RunError
from unlearnbench.config.paths import CONF, choices
from unlearnbench.console import progress_bar, progress_file
from unlearnbench.reports.plots import pareto_front, run_points
from unlearnbench.results.run import Run, Value, load_run
from unlearnbench.storage.lock import LOCK
from unlearnbench.sweeps.hydra_settings import planned_runs
from unlearnbench.sweeps.monitor import PROGRESS, RunStatus, SweepMonitor, monitored, read_status, status_table
from unlearnbench.sweeps.retries import KilledRunRetries, is_left_out
from unlearnbench.sweeps.search_space import search_space

LOCKS: dict[Path, FileLock] = {}  # of the runs that `written` lets run
KINDS = ("launcher", "sweeper")
SMALL = ("experiment=smoke", "metrics=integrity", "sample.prompts=1", "retain.splits=[far]")


def logs(folder):
    """The run.json of each run of a sweep, by its folder's name."""
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/run.json")}


# --- launchers ----------------------------------------------------------------------------------------------------------


def test_runs_that_were_under_way_when_one_was_killed_are_tried_alone_at_the_end(tmp_path):
    names, retries = ["0-a", "1-b", "2-c", "3-d"], KilledRunRetries(tmp_path)

    def stand(**states):
        for name in names:
            if name[2:] in states:
                (tmp_path / name).mkdir(exist_ok=True)
                Run(tmp_path / name, {"algo": "none", "config": {}, "status": states[name[2:]]}).write()

    def left_out():
        return [name for name in names if is_left_out(tmp_path / name)]

    stand(a="started", b="started", c="done")
    assert retries.try_again(killed=True)
    assert left_out() == ["0-a", "1-b"]
    stand(d="started")
    assert retries.try_again(killed=True)
    assert left_out() == ["0-a", "1-b", "3-d"]
    assert retries.try_again(killed=False)
    assert left_out() == ["1-b", "3-d"]
    assert retries.try_again(killed=True)
    assert left_out() == ["0-a", "3-d"]
    stand(b="done")
    assert retries.try_again(killed=False)
    assert left_out() == ["0-a"]
    stand(d="error")
    assert not retries.try_again(killed=False)
    retries.end()
    assert left_out() == []
    actual = logs(tmp_path)
    assert {name: log["status"] for name, log in actual.items()} == dict(
        zip(names, ["error", "done", "done", "error"], strict=True)
    )
    assert actual["0-a"]["error"] == "its process was killed (out of memory?)"


def test_a_sweep_in_which_nothing_was_killed_or_began_is_tried_once(tmp_path):
    assert not KilledRunRetries(tmp_path).try_again(killed=False)
    assert not KilledRunRetries(tmp_path).try_again(killed=True)


@pytest.mark.parametrize(
    ("name", "plugin"), [("processes", "joblib"), ("slurm", "submitit_slurm"), ("ray_tasks", "ray"), ("joblib", "joblib")]
)
def test_a_launcher_that_is_not_installed_is_reported_before_any_work(name, plugin, command, monkeypatch, tmp_path):
    Plugins.instance()
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], f"{plugin}.yaml", raising=False)
    outcome = command("run", "-m", *SMALL, "algo=none,ga", f"hydra/launcher={name}")
    assert outcome.code == 2
    extra = PLUGINS[plugin]
    assert outcome.err == f"error: hydra/launcher={plugin}: its plugin is not installed; pip install 'unlearnbench[{extra}]'\n"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_unknown_launcher_is_reported(command):
    outcome = command("run", "-m", *SMALL, "algo=none,ga", "hydra/launcher=slrum")
    assert outcome.code == 2
    assert outcome.err.startswith("error: hydra/launcher=slrum: no such choice; did you mean 'slurm'? known: ")


def test_a_sweep_without_any_value_says_so(command):
    outcome = command("run", "-m", *SMALL, "algo=none", "seed=range(0,0)")
    assert outcome.code == 2
    assert outcome.err.endswith("error: no run to do: a range() or an empty choice among the overrides holds no value\n")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "hydra.launcher.n_jobs=two",
            "hydra.launcher.n_jobs=two: Value 'two' of type 'str' could not be converted to Integer",
        ),
        (
            "hydra.launcher.njobs=2",
            "hydra.launcher.njobs: no such setting; `unlearnbench run --cfg hydra` shows Hydra's, "
            "with hydra/launcher=NAME those of a launcher",
        ),
    ],
)
def test_a_wrong_setting_of_a_launcher_is_refused_with_the_reason(word, message, command):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    outcome = command("run", "-m", *SMALL, "algo=none,ga", "hydra/launcher=joblib", word)
    assert outcome.code == 2
    assert outcome.err == f"error: {message}\n"


@pytest.mark.parametrize("folder", [(), ("hydra.sweep.dir=my/sweep",)], ids=["outputs", "own"])
@pytest.mark.parametrize(
    "words",
    [
        ["hydra/launcher=slrum"],
        ["algo=gaa,uce"],
        ["hydra/sweeper=pareto", "metrics=fid"],
        ["resume=maybe,", "seed=0"],
        ["seed=range(0,0)"],
    ],
)
def test_a_refused_sweep_leaves_no_folder(words, folder, command, tmp_path):
    assert command("run", "-m", *SMALL, *words, *folder).code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_that_is_interrupted_names_its_folder(command, monkeypatch, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("unlearnbench.algos.ga.denoising_loss", interrupt)
    outcome = command("run", "-m", *SMALL, "algo=ga", "seed=0,1", "hydra.sweep.dir=sweep")
    assert outcome.code == 130
    assert outcome.err.endswith("interrupted; `unlearnbench resume sweep` continues\n")
    assert {name: log["status"] for name, log in logs(tmp_path / "sweep").items()} == {"0-ga-church": "interrupted"}


def test_no_launcher_or_sweeper_of_ours_hides_a_plugins():
    Plugins.instance()
    theirs = {kind: {name.removesuffix(".yaml") for name in ConfigStore.instance().repo["hydra"][kind]} for kind in KINDS}
    assert theirs["launcher"] >= set(PLUGINS) - {"ray"}
    for kind in KINDS:
        assert not (theirs[kind] | set(PLUGINS)) & set(choices(f"hydra/{kind}"))


def test_a_launcher_that_gives_up_leaves_a_summary_that_names_every_run(command, monkeypatch, tmp_path):
    def started(name, log):
        (tmp_path / "sweep" / name).mkdir(parents=True)
        Run(tmp_path / "sweep" / name, {"algo": "none", "config": {"concept": {"name": "church"}}, **log}).write()

    def run_job():
        started("0-none-church", {"status": "done"})
        started("1-none-church", {"status": "started"})
        planned_words(tmp_path / "sweep", "seed=0,1,2,3", "algo=none")
        raise RuntimeError("a worker was killed\nby whom is not known")

    monkeypatch.setattr(hydra_job, "run_job", run_job)
    outcome = command("run", "-m", *SMALL, "hydra.sweep.dir=sweep")
    assert outcome.code == 1
    assert outcome.err.splitlines() == [
        "the launcher gave up: RuntimeError: a worker was killed",
        "failed: sweep/1-none-church: its process was killed",
        "failed: 2 of 4 runs never started",
    ]
    assert "1 of 4 runs done" in outcome.out


def test_an_unforeseen_error_of_one_job_is_logged_and_the_others_go_on(command, monkeypatch, tmp_path):
    from unlearnbench.experiment.run_spec import RunSpec

    real = RunSpec.of

    def of(config):
        if config.seed == 1:
            raise KeyError("surprise")
        return real(config)

    monkeypatch.setattr(RunSpec, "of", of)
    outcome = command("run", "-m", *SMALL, "algo=none", "seed=1,2", "hydra.sweep.dir=sweep")
    assert outcome.code == 1
    assert outcome.err == "failed: sweep/0-none-church: KeyError: 'surprise'\n"
    assert "Traceback" in (tmp_path / "sweep/0-none-church/log.txt").read_text()
    assert logs(tmp_path / "sweep")["1-none-church"]["status"] == "done"


# --- how the runs stand -------------------------------------------------------------------------------------------------


def written(folder, status, forget=None, kept=None, **log):
    """A run's folder as it looks from outside."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.txt").touch()
    lock = LOCKS.setdefault(folder, FileLock(folder / LOCK, timeout=5))
    if status == "started":
        lock.acquire()
    actual = []
    if forget:
        actual.append(
            Value(
                table="Forgetting", metric="forget_accuracy", split="forget", unlearned=forget, better="lower", n=4,
                low=forget - 0.1, high=forget + 0.1,
            )
        )  # fmt: skip
    if kept:
        actual += [
            Value(table="Retention", metric=name, split="retain", unlearned=kept, better="higher", n=4)
            for name in ("integrity", "integrity_norm")
        ]
    config = {"concept": {"name": "church"}, "seed": folder.name}
    run = Run(folder, {"status": status, "algo": "ga", "config": config, **log}, actual)
    run.write()
    if status != "started":
        lock.release()
    return run


def test_bars_say_in_a_file_how_far_they_are_and_the_file_goes(tmp_path):
    path = tmp_path / "progress.json"
    with progress_file(path), progress_bar("unlearn", 200, 12) as shown:
        expected = json.loads(path.read_text())
        assert expected == {"stage": "unlearn", "done": 12, "total": 200, "left": None}
        shown.advance()
        assert json.loads(path.read_text()) == expected, "written once a second at most"
        time.sleep(1.05)
        shown.advance(7)
        assert json.loads(path.read_text())["done"] == 20
        assert json.loads(path.read_text())["left"] > 0
    assert not path.exists()
    with progress_bar("measure", 1):
        assert not path.exists()


def test_a_run_is_seen_by_its_files(tmp_path):
    (tmp_path / "0-ga-church").mkdir()
    assert read_status(tmp_path / "0-ga-church") == RunStatus("0-ga-church", "running")
    written(tmp_path / "1-ga-church", "started", forget=0.25)
    assert read_status(tmp_path / "1-ga-church") == RunStatus("1-ga-church", "running", (0.25, None))
    (tmp_path / "1-ga-church" / PROGRESS).write_text('{"stage": "unlearn", "done": 12, "total": 200.0, "left": 75.2}')
    assert read_status(tmp_path / "1-ga-church") == RunStatus(
        "1-ga-church", "running", (0.25, None), stage="unlearn", progress="12/200", left=75.2
    )
    written(tmp_path / "2-ga-church", "done", 0.5, 0.75, seconds=80.0)
    assert read_status(tmp_path / "2-ga-church") == RunStatus("2-ga-church", "done", (0.5, 0.75), 80.0)
    written(tmp_path / "3-ga-church", "error", error="RunError: no\nmore")
    assert read_status(tmp_path / "3-ga-church") == RunStatus("3-ga-church", "failed", error="RunError: no")
    written(tmp_path / "4-ga-church", "interrupted", seconds=3.0)
    assert read_status(tmp_path / "4-ga-church") == RunStatus("4-ga-church", "interrupted", seconds=3.0)
    written(tmp_path / "5-ga-church", "started")
    LOCKS[tmp_path / "5-ga-church"].release()  # as the system does when the process ends
    assert read_status(tmp_path / "5-ga-church") == RunStatus("5-ga-church", "stopped")


def test_an_interrupted_run_of_a_sweep_is_no_failure(capsys, tmp_path):
    planned_words(tmp_path, "seed=0,1")
    written(tmp_path / "0-ga-church", "done", 0.5, 0.5)
    written(tmp_path / "1-ga-church", "interrupted")
    assert _print_summary(tmp_path) == 130
    outcome = capsys.readouterr()
    assert f"1 of 2 runs done; `unlearnbench show {tmp_path}` prints this again\n" in outcome.out
    assert outcome.err == f"interrupted: {tmp_path}/1-ga-church\n`unlearnbench resume {tmp_path}` continues\n"
    monitor = SweepMonitor(tmp_path)
    assert monitor.summary(monitor.read()) == "of 2 runs: 1 done, 1 interrupted"


def test_runs_are_in_the_order_of_their_numbers_and_read_again_when_they_change(tmp_path):
    for number in (10, 9, 1):
        written(tmp_path / f"{number}-ga-church", "error", error="no")
    monitor = SweepMonitor(tmp_path)
    assert [run.name for run in monitor.read()] == ["1-ga-church", "9-ga-church", "10-ga-church"]
    written(tmp_path / "9-ga-church", "done", 0.5, 0.5)
    os.utime(tmp_path / "9-ga-church/run.json", (0, 0))
    assert [run.state for run in monitor.read()] == ["failed", "done", "failed"]


def planned_words(folder, *words, **sweeper):
    """The file that Hydra writes when a sweep starts, as far as the table of its runs reads it."""
    sweeper = {"params": None, "_target_": "x.BasicSweeper", **sweeper}
    hydra = {"runtime": {"choices": {}}, "sweeper": sweeper, "overrides": {"task": list(words)}}
    OmegaConf.save(OmegaConf.create({"hydra": hydra}), folder / "multirun.yaml")


def test_how_many_runs_are_planned(tmp_path):
    assert planned_runs(tmp_path) is None
    planned_words(tmp_path, "algo=ga,none", "seed=range(3)", "concept=church")
    assert planned_runs(tmp_path) == 6
    planned_words(tmp_path, "algo=ga,none", params={"seed": "1,2,3,4"})
    assert planned_runs(tmp_path) == 8
    planned_words(tmp_path, "algo=ga", trials=24)
    assert planned_runs(tmp_path) == 24


def test_the_line_on_all_runs_estimates_what_is_left(tmp_path):
    planned_words(tmp_path, "seed=range(8)")
    monitor = SweepMonitor(tmp_path)
    assert monitor.summary(monitor.read()) == "of 8 runs: 8 waiting"
    written(tmp_path / "0-ga-church", "done", seconds=50.0)
    written(tmp_path / "1-ga-church", "done", seconds=70.0)
    written(tmp_path / "2-ga-church", "error", error="no")
    written(tmp_path / "3-ga-church", "started")
    written(tmp_path / "4-ga-church", "started")
    # 3 wait and 2 are half done: 4 times a minute, two at a time
    assert monitor.summary(monitor.read()) == "of 8 runs: 2 done, 1 failed, 2 running, 3 waiting, about 2:00 left"


def test_the_time_left_of_a_sweep_counts_down_and_is_never_less_than_that_of_a_row(tmp_path):
    monitor = SweepMonitor(tmp_path)
    monitor.total = 4
    runs = [RunStatus("0", "running", left=90.0, elapsed=30.0), RunStatus("1", "running", left=30.0, elapsed=90.0)]
    assert monitor.summary(runs) == "of 4 runs: 2 running, 2 waiting, about 3:00 left", "before any run is done"
    runs = [replace(run, left=run.left - 20, elapsed=run.elapsed + 20) for run in runs]
    assert monitor.summary(runs) == "of 4 runs: 2 running, 2 waiting, about 2:40 left"
    runs = [RunStatus("0", "done", seconds=20.0), *(RunStatus(f"{i}", "running", left=left) for i, left in enumerate((60, 1)))]
    monitor.total = 3
    assert monitor.summary(runs) == "of 3 runs: 1 done, 2 running, about 1:00 left"


def test_the_time_left_of_a_row_counts_down_between_two_writings(tmp_path):
    written(tmp_path / "0-ga-church", "started")
    state = {"stage": "unlearn", "done": 12, "total": 200, "left": 75.0, "step": 3, "steps": 6, "elapsed": 20.0}
    (tmp_path / "0-ga-church" / PROGRESS).write_text(json.dumps(state | {"time": time.time() - 15}))
    run = read_status(tmp_path / "0-ga-church")
    assert (run.stage, run.progress, run.elapsed) == ("3/6 unlearn", "12/200", 20.0)
    assert run.left == pytest.approx(60.0, abs=1.0)


@pytest.mark.parametrize("width", [80, 120])
def test_the_live_table_names_the_seed_and_cuts_no_number(width, tmp_path):
    planned_words(tmp_path, "algo=ga,none", "seed=0,1", "sample.prompts=1")
    for number in range(2):
        folder = tmp_path / f"{number}-substitute_text-church+nudity"
        written(folder, "started", 0.25, -0.875, overrides=["algo=ga", f"seed={number}", "sample.prompts=1"])
        (folder / "log.txt").touch()
        state = {"stage": "sample after van_gogh", "done": 12345, "total": 30000, "left": 7322.0, "step": 10, "steps": 12}
        (folder / PROGRESS).write_text(json.dumps(state | {"time": time.time() + 5, "elapsed": 1.0}))
    monitor = SweepMonitor(tmp_path)
    runs = monitor.read()
    screen = io.StringIO()
    Console(file=screen, width=width).print(status_table(runs, monitor.summary(runs), 20, width))
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    for number, line in enumerate(lines[1:3]):
        assert f"seed={number}" in line
        assert "prompts" not in line
        assert all(f" {cell}" in line for cell in ("12345/30000", "2:02:02", "0.250", "-0.875"))
    assert "left" in lines[0]


def test_the_table_fits_the_terminal_and_keeps_what_runs_and_what_failed():
    runs = [RunStatus(f"{i}", "failed" if i == 1 else "running" if i == 2 else "done") for i in range(20)]
    shown = status_table(runs, "told", 8)
    assert [str(cell) for cell in shown.columns[0].cells] == ["1", "2", "17", "18", "19"]


class Terminal(io.StringIO):
    """What a terminal is to rich."""

    def isatty(self):
        return True


def happen(folder, between=lambda: time.sleep(0.3)):
    """A run begins, goes on and ends, another fails."""
    written(folder / "0-ga-church", "started")
    (folder / "0-ga-church" / PROGRESS).write_text('{"stage": "unlearn", "done": 12, "total": 200.0, "left": 75.2}')
    between()
    written(folder / "0-ga-church", "done", 0.25, 0.875, seconds=80.0)
    written(folder / "1-ga-church", "error", error="RunError: [no] more")


def test_a_terminal_shows_a_live_table(monkeypatch, tmp_path):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    planned_words(tmp_path, "seed=0,1")
    with monitored(tmp_path, 0.05):
        time.sleep(0.2)  # no run has begun
        happen(tmp_path)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert "of 2 runs: 2 waiting" in plain
    assert re.search(r"0-ga-church +running +unlearn +12/200 +1:15", plain)
    assert re.search(r"of 2 runs: 1 running, 1 waiting", plain)
    last = plain[plain.rindex("run  ") :]
    assert re.search(r"0-ga-church +done +1:20 +0\.250 +0\.875", last)
    assert re.search(r"1-ga-church +failed +RunError: \[no\] more", last)
    assert "of 2 runs: 1 done, 1 failed" in last
    assert "\x1b[2K" in screen.getvalue()


def test_without_a_terminal_each_change_is_a_line(capsys, tmp_path):
    planned_words(tmp_path, "seed=0,1,9")
    written(tmp_path / "9-ga-church", "done", 0.5, 0.5)
    expected = []

    def seen():
        while not any(expected):
            time.sleep(0.01)
            expected.append(capsys.readouterr().out)

    with monitored(tmp_path, 2.0):  # it looks once between the first run's start and the ends, which fall into one look
        happen(tmp_path, seen)
    assert "".join([*expected, capsys.readouterr().out]).splitlines() == [
        "0-ga-church: started",
        "0-ga-church: done in 1:20, detection rate 0.250, integrity_norm 0.875",
        "1-ga-church: failed: RunError: [no] more",
        "of 3 runs: 2 done, 1 failed",
    ]


def test_a_sweeps_runs_print_to_their_own_logs(command, tmp_path):
    outcome = command("run", "-m", *SMALL, "algo=none", "seed=0,1", "hydra.sweep.dir=sweep")
    assert (outcome.code, outcome.err) == (0, "")
    assert [line for line in outcome.out.splitlines() if "to do" in line or "writes to" in line] == []
    for folder in (tmp_path / "sweep").glob("*/"):
        assert "sample unlearned: 6 to do\n" in (folder / "log.txt").read_text()
        assert not (folder / PROGRESS).exists()


# --- two objectives -----------------------------------------------------------------------------------------------------


def study(answer, words, **settings):
    """What a sweeper launches, batch by batch, when the runs return what `answer` says of their words."""
    batches = []

    def launch(jobs, initial_job_idx):
        assert initial_job_idx == sum(map(len, batches))
        batches.append(jobs)
        return [SimpleNamespace(return_value=answer(dict(word.split("=") for word in job))) for job in jobs]

    sweeper = ParetoSweeper(**{"trials": 6, "parallel": 1, "seed": 0, **settings})
    sweeper.launcher = SimpleNamespace(launch=launch)
    sweeper.config = OmegaConf.create({"algo": compose("algo=uce").algo, "hydra": {"sweep": {"dir": "sweep"}}})
    sweeper.sweep(list(words))
    return batches


def test_the_search_of_an_algorithm_begins_with_its_present_setting_and_stays_within_bounds():
    batches = study(lambda word: (0.5, 0.5), ["algo=uce", "seed=3"], trials=5)
    assert [len(batch) for batch in batches] == [1] * 5
    present, bounds = compose("algo=uce").algo, search_space("uce")
    assert set(batches[0][0]) == {"algo=uce", "seed=3", *(f"algo.{name}={present[name]}" for name in bounds)}
    drawn = [dict(word.split("=") for word in job) for [job] in batches]
    for name, bound in bounds.items():
        actual = {float(word[f"algo.{name}"]) for word in drawn}
        assert all(bound["low"] <= value <= bound["high"] for value in actual)
        assert len(actual) == 5
    assert all(word["seed"] == "3" for word in drawn)


def test_a_setting_that_is_given_is_not_searched():
    batches = study(lambda word: (0.5, 0.5), ["algo=uce", "algo.ridge=0.25"], trials=3)
    assert all(job.count("algo.ridge=0.25") == 1 and len([w for w in job if "ridge" in w]) == 1 for [job] in batches)


def test_words_with_several_values_are_what_varies():
    words = ["algo=uce,ga", "seed=range(2,4)", "algo.lr=tag(log,interval(1e-5,1e-2))", "algo.steps=int(interval(3,9))"]
    words.append("device=cpu")
    [first, second, third] = study(lambda word: (0.5, 0.5), words, trials=40, parallel=15)
    assert (len(first), len(second), len(third)) == (15, 15, 10)
    drawn = [dict(word.split("=") for word in job) for job in [*first, *second, *third]]
    assert {word["algo"] for word in drawn} == {"uce", "ga"}
    assert {word["seed"] for word in drawn} == {"2", "3"}
    assert {int(word["algo.steps"]) for word in drawn} <= set(range(3, 10))
    rates = [float(word["algo.lr"]) for word in drawn]
    assert all(1e-5 <= rate <= 1e-2 for rate in rates)
    assert sum(rate < 1e-3 for rate in rates) > 10, "on a scale of logarithms"
    assert {word["device"] for word in drawn} == {"cpu"}


def test_the_search_moves_to_where_both_numbers_are_better_and_is_the_same_again():
    def answer(word):
        x = float(word["algo.lr"])
        return (x, 1 - x) if x > 0.9 else (1.0, 0.0)

    words = ["algo.lr=interval(0,1)"]
    batches = study(answer, words, trials=60)
    rates = [float(job[0].split("=")[1]) for [job] in batches]
    assert sum(rate > 0.9 for rate in rates[30:]) > 2 * 0.1 * 30
    assert study(answer, words, trials=60) == batches
    assert study(answer, words, trials=60, seed=1) != batches


def test_a_trial_that_failed_does_not_end_the_search():
    batches = study(lambda word: None if float(word["algo.lr"]) < 0.5 else (0.5, 0.5), ["algo.lr=interval(0,1)"], trials=20)
    assert len(batches) == 20


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("algo.lr=interval(0.5,2)", {"low": 0.5, "high": 2, "log": False}),
        ("algo.steps=int(interval(3,9))", {"low": 3, "high": 9, "log": False}),
        ("algo.lr=tag(log,interval(1e-5,1e-2))", {"low": 1e-5, "high": 1e-2, "log": True}),
        ("algo=ga,none", ["ga", "none"]),
        ("seed=range(1,7,2)", ["1", "3", "5"]),
    ],
)
def test_what_a_word_lets_vary(word, expected):
    assert domain(OverridesParser.create().parse_overrides([word])[0]) == expected


def test_what_lies_within():
    assert is_within([1, 2], 2)
    assert not is_within([1, 2], 3)
    assert is_within({"low": 1.0, "high": 2.0}, 2.0)
    assert not is_within({"low": 1.0, "high": 2.0}, 2.5)


def test_the_front_is_what_no_other_run_beats(tmp_path):
    draw = random.Random(0)
    runs = [written(tmp_path / f"{i}-ga-church", "done", draw.randint(1, 9) / 10, draw.randint(1, 9) / 10) for i in range(40)]
    _, placed = run_points(runs)
    beaten = {(p.x, p.y) for p in placed for q in placed if (q.x >= p.x and q.y >= p.y) and (q.x, q.y) != (p.x, p.y)}
    expected = sorted({(p.x, p.y) for p in placed} - beaten)
    assert [(p.x, p.y) for p in pareto_front(placed)] == expected
    assert 1 < len(expected) < 10


def test_the_pareto_experiment_prints_the_front_and_draws_it(command, tmp_path):
    pytest.importorskip("optuna", reason="the extra `sweep` is not installed")
    words = ["model=tiny", "concept=church", "sample.prompts=1", "retain.splits=[far]", "algo=uce", "hydra.sweeper.trials=2"]
    outcome = command("run", "-m", "experiment=pareto", *words, "hydra.sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    assert "2 of 2 runs done" in outcome.out
    assert "the front: no other run forgets more without keeping less" in outcome.out
    assert "wrote sweep/pareto.svg" in outcome.out
    assert (tmp_path / "sweep/pareto.svg").read_text().count("<svg") == 1
    runs = [load_run(tmp_path / f"sweep/{i}-uce-church") for i in range(2)]
    present = compose("algo=uce", *words[:1]).algo
    assert runs[0].log["config"]["algo"]["ridge"] == present.ridge != runs[1].log["config"]["algo"]["ridge"]
    front = [runs[point.index].folder.name for point in pareto_front(run_points(runs)[1])]
    lines = outcome.out[outcome.out.index("run ") :].splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(front)]] == [name[0] for name in front]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("hydra.sweeper.trials=0", "error: hydra.sweeper.trials: 0 is less than 1\n"),
        ("hydra.sweeper.parallel=0", "error: hydra.sweeper.parallel: 0 is less than 1\n"),
        ("~metrics.integrity", "error: hydra/sweeper=pareto needs the metric integrity: metrics=quick has both objectives\n"),
    ],
)
def test_a_mistake_in_a_search_is_reported_before_any_work(word, message, command, tmp_path):
    outcome = command("run", "-m", "experiment=pareto", "model=tiny", "concept=church", word)
    assert (outcome.code, outcome.err) == (2, message)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("package", ["optuna", "matplotlib"])
def test_an_absent_package_of_the_search_is_reported_before_any_work(package, command, monkeypatch, tmp_path):
    monkeypatch.setattr(unlearnbench_pareto, "find_spec", lambda name: None if name == package else object())
    outcome = command("run", "-m", "experiment=pareto", "model=tiny", "concept=church")
    assert outcome.code == 2
    assert outcome.err == f"error: hydra/sweeper=pareto needs {package}: pip install 'unlearnbench[sweep]'\n"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_our_launchers_and_sweepers_say_what_they_are():
    for path in (CONF / "hydra").rglob("*.yaml"):
        assert path.read_text().startswith("# "), path


def test_run_error_is_reported_with_its_kind(capsys):
    assert print_error(RunError("no")) == 1
    assert print_error(KeyError("no")) == 1
    assert capsys.readouterr().err == "run failed: no\nrun failed: KeyError: 'no'\n"
