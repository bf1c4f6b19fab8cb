"""The command line in odd surroundings: no working folder, no output, no width, no disk space, names and paths with signs."""

from __future__ import annotations

import builtins
import io
import os
import sys
from pathlib import Path

import pytest

from unlearnbench.cli.main import main
from unlearnbench.config.compose import compose, translate
from unlearnbench.config.paths import CONF
from unlearnbench.console.tables import table_console
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.recipes.quality import Score, quality_page
from unlearnbench.reports.tables import print_closing
from unlearnbench.results.run import Run, Value
from unlearnbench.storage.atomic import claim_folder
from unlearnbench.worlds import embedded_world

CONFIG = {"concept": {"name": "church"}, "seed": 0}


def make_run(folder):
    """A run of one number."""
    value = Value(table="Retention", metric="integrity", split="retain", unlearned=0.9, better="higher", n=4)
    run = Run(folder, {"status": "done", "algo": "ga", "config": CONFIG, "overrides": []}, [value])
    folder.mkdir(parents=True)
    run.write()
    return run


def test_a_working_folder_that_was_removed_is_a_mistake_of_one_line(command, monkeypatch, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    outcome = command("list", "algo")
    assert (outcome.code, outcome.err) == (2, "error: the working folder no longer exists; go to another one\n")


def test_a_closed_output_fails_no_command(monkeypatch):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)  # as Python has it after >&-
    assert main(["list", "retain"]) == 0
    assert main(["cache", "cache=none", "--clear"]) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a file that is always full")
@pytest.mark.parametrize("words", [["list", "retain"], ["list", "algo"]])  # shorter and longer than the buffer of the output
def test_an_output_on_a_full_disk_is_reported_in_one_line(words, monkeypatch, capsys):
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(words) == 2
    error = capsys.readouterr().err
    assert error == "error: no space is left on the disk; free some ([Errno 28] No space left on device)\n"


def test_a_reader_that_went_away_is_no_failure(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert main(["list", "retain"]) == 0


@pytest.mark.parametrize(("columns", "width"), [("0", 160), ("-3", 160), ("wide", 160), ("", 160), ("72", 72)])
def test_a_width_that_is_none_is_not_taken(columns, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys, "__stdout__", io.StringIO())
    assert table_console().width == width


def test_tables_are_printed_though_columns_is_0(command, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "0")
    outcome = command("show", make_run(tmp_path / "run").folder)
    assert outcome.code == 0
    assert "integrity ↑" in outcome.out


def test_the_end_of_input_at_the_question_removes_nothing(command, monkeypatch, tmp_path):
    entry = tmp_path / "store/images" / f"{'a' * 64}.json"
    entry.parent.mkdir(parents=True)
    entry.write_text("{}")

    def end(question):
        raise EOFError

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(builtins, "input", end)
    assert command("cache", f"cache={tmp_path}/store", "--clear").code == 0
    assert entry.exists()


def test_a_path_after_an_option_may_begin_at_home(command, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run = make_run(tmp_path / "run")
    outcome = command("report", run.folder, "--output=~/page.html")
    assert (outcome.code, outcome.out.split(",")[0]) == (0, f"wrote {tmp_path}/home/page.html")
    assert not Path("~").exists()


@pytest.mark.parametrize("setting", ["concept.prompts", "retain.prompts"])
def test_a_name_too_long_for_a_file_is_a_mistake_of_one_line(setting, command):
    outcome = command("check", "experiment=smoke", f"{setting}=a {'very ' * 60}long prompt")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert outcome.err.startswith("error: a very very ")


def test_an_error_about_a_name_too_long_is_translated(tmp_path):
    with pytest.raises(OSError, match="too long") as raised:
        (tmp_path / ("x" * 300)).mkdir()
    assert str(translate(raised.value)) == f"{tmp_path}/{'x' * 300}: cannot be written (File name too long)"


def test_a_link_to_a_disk_that_is_not_mounted_is_reported(command, tmp_path):
    Path("outputs").symlink_to(tmp_path / "not mounted")
    with pytest.raises(FileExistsError):
        claim_folder(Path("outputs/ga-church/1"), "images")
    outcome = command("run", "-m", "experiment=smoke", "seed=0,1")
    assert (outcome.code, outcome.err) == (2, "error: outputs: cannot be written (File exists)\n")


def test_a_folder_that_was_taken_meanwhile_gives_way_to_the_next_number(tmp_path):
    (tmp_path / "run/images").mkdir(parents=True)
    assert claim_folder(tmp_path / "run", "images") == tmp_path / "run-2"


def test_the_next_commands_are_quoted_for_a_shell(capsys):
    print_closing(make_run(Path("my runs/it's")))
    words = "unlearnbench show 'my runs/it'\"'\"'s'"
    assert f"next: `{words}` or `" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize("words", [["show"], ["report"], ["resume"], ["measure"], ["export", "--as", "unet"]])
def test_a_file_of_a_run_in_place_of_its_folder_is_refused_with_the_folder(words, command, tmp_path):
    make_run(tmp_path / "run")
    outcome = command(words[0], "run/run.json", *words[1:])
    assert (outcome.code, outcome.err) == (2, "error: run/run.json: a file; name the run's folder, run\n")


@pytest.mark.parametrize("folder", ["sweep", "outputs"])
def test_no_run_is_written_over_the_folders_of_others(folder, command, tmp_path):
    make_run(tmp_path / "sweep/0-ga-church")
    make_run(tmp_path / "outputs/ga-church/1")
    outcome = command("run", "experiment=smoke", f"hydra.run.dir={folder}")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert outcome.err.startswith(f"error: {folder}: holds other runs, such as {folder}/")
    assert [path.name for path in (tmp_path / folder).iterdir()] in (["0-ga-church"], ["ga-church"])


def test_the_quality_of_few_captions_leaves_out_what_none_of_them_names():
    scores = [Score("pipeline", "color", 1, 2, 0.9), Score("pipeline", "style", 0, 0, 0.9)]
    page = quality_page(embedded_world("pictoworld"), scores, "make world-quality")
    assert "| pipeline | color | 50.0 |" in page
    assert "style" not in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sheet", "sheet"], "--sheet sheet: the suffix must be one of .png, "),
        (["--sheet", "sheet.svg"], "--sheet sheet.svg: the suffix must be one of .png, "),
        (["--write", "."], "--write .: is a folder; name a file"),
        (["--write", "file/x.md"], "file: cannot be "),
    ],
)
def test_files_that_cannot_be_written_are_refused_before_the_quality_is_measured(words, message, command, monkeypatch, tmp_path):
    monkeypatch.setattr("unlearnbench.recipes.pictoworld_quality.measure_quality", pytest.fail)
    (tmp_path / "file").touch()
    outcome = command("world", "quality", *words)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert outcome.err.startswith(f"error: {message}")


def test_an_export_without_the_prompts_of_its_card_is_refused_before_the_model_is_loaded(run, command, monkeypatch, tmp_path):
    (tmp_path / "mine.csv").write_text("prompt\na church\na red church\n")
    done = run("algo=uce", "concept.prompts=mine.csv")
    (tmp_path / "mine.csv").unlink()
    monkeypatch.setattr(type(RunSpec.of(compose("experiment=smoke")).model), "load", pytest.fail)
    outcome = command("export", done.folder, "--as", "diffusers")
    assert (outcome.code, outcome.err.splitlines()[-1]) == (2, f"error: mine.csv: no such file, neither here nor in {CONF}")
