"""The command line as it is typed: commands, sweeps, the user's own parts, and no torch where none is needed."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from unlearnbench import console
from unlearnbench.cli.main import COMMANDS
from unlearnbench.cli.run import _given_folder, _with_home
from unlearnbench.config.paths import CONF, GROUPS, choices
from unlearnbench.console import progress_bar

SMALL = ("experiment=smoke", "metrics=integrity", "sample.prompts=1", "retain.splits=[far]")


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_every_command_has_a_help_text_with_examples(name, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    outcome = command(*name.split(), "--help")
    assert outcome.code == 0
    assert "usage: unlearnbench" in outcome.out
    assert max(map(len, outcome.out.partition("\nexamples:\n")[0].splitlines())) <= 80
    if name:
        examples = outcome.out.partition("\nexamples:\n")[2].splitlines()
        assert examples
        assert all(line.startswith("  unlearnbench ") for line in examples)


def test_the_help_of_run_ends_with_five_examples(command):
    assert len(command("run", "--help").out.partition("\nexamples:\n")[2].splitlines()) == 5


def test_the_examples_in_the_help_name_known_choices(command):
    for name in ("run", "check"):
        for example in command(name, "--help").out.partition("\nexamples:\n")[2].splitlines():
            words = example.split()[2:]
            for group, _, value in (word.partition("=") for word in words if word.partition("=")[0] in GROUPS):
                assert set(value.split(",")) <= {*choices(group), "mine"}, example


def test_the_version_is_that_of_the_installed_package(command):
    assert command("--version").out == command("run", "--version").out == f"unlearnbench {version('unlearnbench')}\n"


@pytest.mark.parametrize("words", [(), ("nope",), ("list", "nope"), ("show",), ("show", "x", "--md", "--csv")])
def test_a_wrong_command_or_argument_ends_in_2_with_the_usage(words, command):
    outcome = command(*words)
    assert outcome.code == 2
    assert outcome.err.startswith("usage: unlearnbench")


def test_list_names_every_choice_with_its_description(command):
    expected = command("list").out.splitlines()
    assert [line for line in expected if not line.startswith(" ")] == list(GROUPS)
    for group in GROUPS:
        listed = dict(line.split(maxsplit=1) for line in command("list", group).out.splitlines()[1:])
        assert list(listed) == choices(group)
        for name, description in listed.items():
            assert f"# {description}\n" in (CONF / group / f"{name}.yaml").read_text()


def test_check_says_what_would_be_done_and_makes_nothing(command, tmp_path):
    outcome = command("check", "experiment=smoke", "algo=ga")
    assert outcome.code == 0
    assert outcome.out.splitlines()[0].startswith("ready: ga on church, model tiny, on ")
    assert "2 forget, 2 paraphrase, 2 near, 2 far, 2 generic; 20 images of each model" in outcome.out
    assert not list(tmp_path.iterdir())


def test_the_composed_settings_are_printed_without_running(command, tmp_path):
    outcome = command("run", *SMALL, "algo=ga", "--cfg", "job")
    assert outcome.code == 0
    assert "unlearnbench.algos.ga.GradientAscent" in outcome.out
    assert not list(tmp_path.rglob("run.json"))


# --- sweeps -------------------------------------------------------------------------------------------------------------


def test_a_sweep_runs_every_combination_and_compares_them(command, tmp_path):
    outcome = command("run", "-m", *SMALL, "algo=none,ga", "hydra.sweep.dir=sweep")
    assert outcome.code == 0
    assert "2 of 2 runs done; `unlearnbench show sweep` prints this again" in outcome.out
    assert sorted(path.parent.name for path in tmp_path.glob("sweep/*/run.json")) == ["0-none-church", "1-ga-church"]
    assert [line.split()[0] for line in command("show", "sweep").out.splitlines()[1:3]] == ["none", "ga"]


def test_hydras_own_word_for_a_sweep_begins_one(command):
    outcome = command("run", *SMALL, "algo=none", "hydra.mode=MULTIRUN", "hydra.sweep.dir=sweep")
    assert outcome.code == 0
    assert "1 of 1 runs done; `unlearnbench show sweep` prints this again" in outcome.out


def test_a_job_that_fails_leaves_the_others_done_and_the_sweep_ends_in_1(command, tmp_path):
    outcome = command("run", "-m", *SMALL, "algo=ga", "algo.lr=1e30,1e-5", "algo.steps=3", "hydra.sweep.dir=sweep")
    assert outcome.code == 1
    assert "1 of 2 runs done" in outcome.out
    assert "failed: sweep/0-ga-church: RunError: the loss became " in outcome.err
    assert "Traceback" not in outcome.err
    status = {path.parent.name: json.loads(path.read_text())["status"] for path in tmp_path.glob("sweep/*/run.json")}
    assert status == {"0-ga-church": "error", "1-ga-church": "done"}


def test_a_job_whose_method_does_not_read_a_setting_is_refused_alone(command, tmp_path):
    outcome = command("run", "-m", *SMALL, "algo=ga,none", "algo.lr=0.001", "hydra.sweep.dir=sweep")
    assert outcome.code == 1
    assert outcome.err == (
        "failed: sweep/1-none-church: algo.lr=0.001: algo=none does not read lr, so it would change nothing; leave it out\n"
    )
    resumed = command("resume", "sweep")
    assert (resumed.code, resumed.err) == (1, outcome.err)
    again = command("resume", "sweep/1-none-church")
    assert (again.code, again.err) == (2, outcome.err.replace("failed: sweep/1-none-church", "error"))


def test_a_sweep_in_a_folder_with_signs_of_hydra_is_found_again(command, tmp_path):
    outcome = command("run", "-m", *SMALL, "algo=none", "hydra.sweep.dir='My Drive (x)/it\\'s'")
    assert (outcome.code, outcome.err) == (0, "")
    assert (tmp_path / "My Drive (x)/it's/0-none-church/metrics.json").is_file()
    assert "1 of 1 runs done" in command("resume", "My Drive (x)/it's").out


@pytest.mark.parametrize("value", ["~/x", "'~/x'", '"~/x"', "~/my (x)"])
def test_the_folder_of_a_run_may_begin_at_home(value, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    argument = _with_home(f"hydra.run.dir={value}")
    assert _given_folder([argument], "run") == str(tmp_path / value.strip("'\"")[2:])
    assert _with_home("cache=~/x") == "cache=~/x"


def test_a_job_with_a_wrong_value_is_logged_and_the_others_go_on(command, tmp_path):
    outcome = command("run", "-m", *SMALL, "algo=none", "algo.steps=-1,0", "hydra.sweep.dir=sweep")
    assert outcome.code == 1
    assert "failed: sweep/0-none-church: algo.steps: -1 is less than 0" in outcome.err
    logs = [json.loads((tmp_path / f"sweep/{i}-none-church/run.json").read_text()) for i in range(2)]
    assert [log["status"] for log in logs] == ["error", "done"]
    assert logs[0]["error"] == "algo.steps: -1 is less than 0"
    for form in ((), ("--md",), ("--csv",), ("--json",)):
        assert command("show", "sweep", *form).code == 0
        assert command("show", "sweep/0-none-church", *form).code == 0


def test_a_sweep_over_an_unknown_choice_is_reported(command, tmp_path):
    outcome = command("run", "-m", *SMALL, "algo=none,gaa")
    assert outcome.code == 2
    assert "error: algo=gaa: no such choice; did you mean 'ga'? known: " in outcome.err
    assert "Traceback" not in outcome.err


def test_a_sweep_never_writes_into_another(command, files, tmp_path):
    assert command("run", "-m", *SMALL, "algo=none", "hydra.sweep.dir=sweep").code == 0
    before = files(tmp_path / "sweep")
    outcome = command("run", "-m", *SMALL, "algo=none,ga", "hydra.sweep.dir=sweep")
    assert outcome.code == 2
    assert outcome.err == "error: sweep: holds runs already; choose another folder with hydra.sweep.dir=...\n"
    assert files(tmp_path / "sweep") == before


# --- show and measure ---------------------------------------------------------------------------------------------------


@pytest.fixture
def two(run):
    """The folder of two runs."""
    run("algo=none", folder="runs/a")
    return run("algo=ga", folder="runs/b").folder.parent


def test_show_of_one_run_prints_its_tables_in_each_form(smoke, command):
    plain, text = command("show", smoke.folder).out, command("show", smoke.folder, "--md").out
    for table in ("Forgetting", "Retention", "FID", "CLIPScore", "Cost"):
        assert f"\n{table}" in f"\n{plain}"
        assert f"## {table}\n" in text
    assert text == (smoke.folder / "tables.md").read_text()
    assert command("show", smoke.folder, "--csv").out == (smoke.folder / "tables.csv").read_text()
    [expected] = json.loads(command("show", smoke.folder, "--json").out)
    assert expected["status"] == "done"
    assert len(expected["values"]) == len(smoke.values)


def test_show_of_several_runs_compares_them_in_each_form(two, command):
    plain = command("show", two).out
    assert "* best of the column" in plain
    table = list(csv.reader(io.StringIO(command("show", two, "--csv").out)))
    assert table[0][:2] == ["algo", "status"]
    assert [row[0] for row in table[1:]] == ["none", "ga"]
    assert table[1][table[0].index("integrity (retain)")] == "1.0"
    lines = command("show", two / "a", two / "b", "--md").out.splitlines()
    assert lines[0].startswith("| algo | status |")
    assert len(lines) == 4
    assert [expected["algo"] for expected in json.loads(command("show", two, "--json").out)] == ["none", "ga"]


def test_measure_prints_the_tables_again_and_keeps_the_numbers(two, command, files):
    before = files(two)
    outcome = command("measure", two / "b")
    assert outcome.code == 0
    assert "Retention" in outcome.out
    assert files(two) == before


# --- the user's own parts -----------------------------------------------------------------------------------------------

CLASS = """
from dataclasses import dataclass
from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.losses import denoising_loss

@dataclass
class Mine(Unlearner):
    strength: float = 1.0

    def loss(self, model, frozen, forget, retain, generator):
        return -self.strength * denoising_loss(model, forget, generator)
"""
YAML = """
_target_: {module}.Mine
name: mine
train: xattn_kv
steps: 2
lr: 1e-4
batch: 2
clip: 1.0
strength: 2.0
"""


@pytest.fixture
def own(tmp_path):
    """A class in the working folder and its yaml in a folder with signs in its name."""
    (tmp_path / "my_module.py").write_text(CLASS)
    (tmp_path / "my conf, mine/algo").mkdir(parents=True)
    (tmp_path / "my conf, mine/algo/mine.yaml").write_text(YAML.format(module="my_module"))
    yield "my conf, mine"
    sys.modules.pop("my_module", None)


def test_an_algorithm_of_the_users_is_found_checked_run_and_measured(own, command, files, tmp_path):
    assert command("check", "--config-dir", own, *SMALL, "algo=mine").out.startswith("ready: mine on church")
    outcome = command("run", "--config-dir", own, *SMALL, "algo=mine", "algo.strength=3", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    log = json.loads((tmp_path / "run/run.json").read_text())
    assert (log["algo"], log["config"]["algo"]["strength"]) == ("mine", 3)
    before = files(tmp_path / "run")
    assert command("measure", "run").code == 0
    assert files(tmp_path / "run") == before


def test_the_users_choices_are_listed_and_suggested(own, command):
    listed = command("list", "algo", "--config-dir", own).out.splitlines()
    assert [line.split()[0] for line in listed[1:]] == sorted([*choices("algo"), "mine"])
    for name in ("check", "run"):
        outcome = command(name, "--config-dir", own, *SMALL, "algo=mien")
        assert outcome.err.startswith("error: algo=mien: no such choice; did you mean 'mine'? known: ")


def test_options_may_stand_anywhere_among_the_overrides(own, command):
    words = [*SMALL, "-m", "algo=mine", "--config-dir", own, "seed=0,1"]
    assert "2 of 2 runs done" in command("run", *words).out
    outcome = command("run", "algo=ga", "--cfg", "job", "concept=church", "--package", "algo")
    assert (outcome.code, outcome.out.splitlines()[0]) == (0, "# @package algo")


def test_the_algorithm_in_the_readme_runs_as_it_stands(command, tmp_path):
    text = (Path(__file__).parents[2] / "README.md").read_text()
    (code,), (settings,) = (re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) for language in ("python", "yaml"))
    (tmp_path / "mine.py").write_text(code)
    (tmp_path / "my-conf/algo").mkdir(parents=True)
    (tmp_path / "my-conf/algo/mine.yaml").write_text(settings)
    assert "run --config-dir my-conf algo=mine concept=church" in text
    outcome = command("run", "--config-dir", "my-conf", *SMALL, "algo=mine", "concept=church", "hydra.run.dir=run")
    sys.modules.pop("mine", None)
    assert outcome.code == 0, outcome.err


def test_an_algorithm_of_the_users_may_be_swept_against_ours(own, command):
    outcome = command("run", "-m", "--config-dir", own, *SMALL, "algo=mine,none", "hydra.sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    assert "2 of 2 runs done" in outcome.out


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text.replace("my_module.Mine", "my_module.Yours"), "error: _target_: my_module.Yours: cannot be imported"),
        (lambda text: text.replace("my_module.Mine", "gone.Mine"), "error: _target_: gone.Mine: cannot be imported"),
        (lambda text: text.replace("my_module.Mine", "pathlib.Path"), "error: _target_: pathlib.Path is not a subclass of"),
        (lambda text: text + "more: 1\n", "error: algo.more: no such setting of Mine; "),
        (lambda text: text.replace("2.0", "much"), "error: algo.strength: Value 'much' of type 'str' could not be converted"),
    ],
)
def test_a_mistake_in_the_users_part_is_reported(spoil, message, own, command, tmp_path):
    path = tmp_path / own / "algo/mine.yaml"
    path.write_text(spoil(path.read_text()))
    outcome = command("run", "--config-dir", own, *SMALL, "algo=mine")
    assert outcome.code == 2
    assert outcome.err.startswith(message)
    assert outcome.err.count("\n") == 1


def test_a_bar_that_no_terminal_shows_says_now_and_then_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr(console, "EVERY", 0)
    with progress_bar("unlearn", 3) as shown:
        shown.advance(remark="loss [0.5]")
        shown.advance()
        shown.advance()
    expected = capsys.readouterr().err.splitlines()
    assert expected[0] == "unlearn: 3 to do"
    assert [line.split(", ")[0] for line in expected[1:]] == ["unlearn: 1 of 3", "unlearn: 2 of 3"]
    assert expected[1].endswith("loss [0.5]")


def test_options_may_stand_between_arguments(command, smoke, tmp_path):
    assert command("show", smoke.folder, "--csv", smoke.folder) == command("show", smoke.folder, smoke.folder, "--csv")
    shutil.copytree(smoke.folder, tmp_path / "run")
    (tmp_path / "mine").mkdir()
    outcome = command("measure", tmp_path / "run", "--config-dir", "mine", "metrics=integrity")
    assert outcome.code == 0, outcome.err
    outcome = command("show", smoke.folder, "--csw", smoke.folder)
    assert (outcome.code, "--csw" in outcome.err) == (2, True)
