"""What the commands print in terminals of 80 and 120 columns, and what they say of typing mistakes."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from unlearnbench.config.paths import GROUPS, choices
from unlearnbench.console.columns import fit_columns, pieces, wrap
from unlearnbench.console.tables import print_remark
from unlearnbench.experiment import support
from unlearnbench.reports.plots import Point, label_heights
from unlearnbench.results.run import Run, Value

WIDTHS = (80, 120)
NUMBERS = (-0.275, 1.0, 72.5, 5277.6, 1000000.0)
METRICS = (
    ("Forgetting", "forget_accuracy", "forget"), ("Forgetting", "forget_accuracy", "paraphrase"),
    ("Forgetting", "forget_accuracy", "forget: church"), ("Retention", "integrity_norm", "retain"),
    ("Retention", "integrity", "retain"), ("Retention", "integrity", "near"), ("Retention", "retain_accuracy", "retain"),
    ("FID", "fid", "retain"), ("FID", "fid_original", "retain"), ("FID", "kid", "retain"),
    ("CLIPScore", "clipscore", "retain"), ("CLIPScore", "clipscore", "forget"), ("Cost", "total_seconds", "run"),
)  # fmt: skip


def written(folder, algo="substitute_text", seed=0, original=0.5, **log):
    """A finished run with every kind of value."""
    values = [
        Value(
            table=table, metric=metric, split=split, original=original, unlearned=NUMBERS[i % 5], better="higher", n=30000,
            low=NUMBERS[i % 5] - 0.125, high=NUMBERS[i % 5] + 0.125, backbone="lpips-alex",
        )
        for i, (table, metric, split) in enumerate(METRICS)
    ]  # fmt: skip
    config = {"concept": {"name": "church+nudity"}, "algo": {"name": algo, "lr": 1e-5}, "seed": seed, "model": {"path": "x"}}
    run = Run(folder, {"status": "done", "algo": algo, "config": config, **log}, values)
    folder.mkdir(parents=True)
    run.write()
    return run


def words(text):
    """The words of a text, without table signs."""
    return set(text.replace("*", " ").split())


@pytest.fixture
def folder(tmp_path):
    """A folder with four runs."""
    for i, (algo, seed) in enumerate((algo, seed) for algo in ("substitute_text", "uce") for seed in (0, 1)):
        written(tmp_path / f"sweep-of-a-long-name/{i}-{algo}-church+nudity", algo, seed)
    return Path("sweep-of-a-long-name")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("extra", [(), ("--group", "seed")])
def test_a_comparison_fits_the_terminal_and_splits_no_number_and_no_word(width, extra, folder, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    whole = command("show", folder, *extra).out
    monkeypatch.setenv("COLUMNS", str(width))
    outcome = command("show", folder, *extra)
    assert outcome.code == 0
    assert max(map(len, outcome.out.splitlines())) <= width
    assert words(outcome.out) == words(whole)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_runs_tables_fit_the_terminal_and_split_no_number_and_no_word(width, folder, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    whole = command("show", folder / "0-substitute_text-church+nudity").out
    monkeypatch.setenv("COLUMNS", str(width))
    text = command("show", folder / "0-substitute_text-church+nudity").out
    assert max(map(len, text.splitlines())) <= width
    assert words(text) == words(whole)
    assert "999999.875..1000000.125" in text.replace("1000000..1000000", "999999.875..1000000.125")


def test_a_table_that_is_too_wide_becomes_several_with_the_same_keys():
    head, rows = ["algo", *(f"metric_{i} (retain)" for i in range(6))], [["uce", *["12345.678"] * 6]]
    blocks = fit_columns(head, rows, 1, 40)
    assert [block.columns for block in blocks] == [[0, 1, 2, 3], [0, 4, 5, 6]]
    assert all(sum(block.widths) + 2 * (len(block.widths) - 1) <= 40 for block in blocks)
    assert fit_columns(head, rows, 1, 200)[0].columns == list(range(7))


def test_a_path_is_wrapped_at_its_slashes_and_a_key_gives_way_to_numbers():
    path = "outputs/sweeps/2026-07-01_12-00-00/10-substitute_text-church"
    assert wrap(path, 30).split("\n") == ["outputs/sweeps/", "2026-07-01_12-00-00/", "10-substitute_text-church"]
    [block] = fit_columns(["folder", "metric"], [[path * 3, "12345.678"]], 1, 24)
    assert block.widths == [13, 9]
    assert pieces("a b/c d") == ["a", "b/", "c", "d"]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_last_lines_of_a_run_fit_a_small_screen(width, command, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", str(width))
    outcome = command("run", "experiment=smoke", "hydra.run.dir=outputs/a-run")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert len(lines) <= 22, "of 24, with the prompt"
    assert max(map(len, lines)) <= width
    assert sum(line.startswith("detection rate ↓  ") for line in lines) == 2
    names = [line.split()[0] for line in lines[2:8] if line[0].isupper() or line.startswith("int")]
    assert names == ["UA", "integrity_norm", "FID", "CLIPScore"]
    closing = " ".join(" ".join(lines[-3:]).split())
    commands = "`unlearnbench show outputs/a-run` or `unlearnbench report outputs/a-run`"
    assert closing.endswith(f"images: outputs/a-run/grid.png; next: {commands}"), "each can be copied as it is"
    assert (tmp_path / "outputs/a-run/grid.png").is_file()


def test_paraphrases_that_the_original_does_not_show_are_warned_of(tmp_path, capsys):
    from unlearnbench.reports.tables import print_closing

    print_closing(written(tmp_path / "a", original=0.5))
    assert "warning" not in capsys.readouterr().out
    print_closing(written(tmp_path / "b", original=0.0))
    text = " ".join(capsys.readouterr().out.split())
    assert "warning: paraphrase: the original model shows the concept in none of the 30000 images" in text


# --- list ---------------------------------------------------------------------------------------------------------------


def test_list_wraps_descriptions_at_words_below_themselves(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = command("list", "algo").out.splitlines()[1:]
    assert max(map(len, lines)) <= 80
    assert all(re.match(r"  \w+ +\w|" + " " * 19 + r"\S", line) for line in lines)
    monkeypatch.delenv("COLUMNS")
    whole = command("list", "algo").out.splitlines()[1:]
    assert " ".join(" ".join(lines).split()) == " ".join(" ".join(whole).split())


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["esd_x", "church", "standard", "sd14", "p4d_k", "smoke"])
def test_list_explains_a_component_and_fits_the_terminal(width, name, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    outcome = command("list", name)
    assert outcome.code == 0
    assert max(len(line.rstrip()) for line in outcome.out.splitlines()) <= width
    if name == "esd_x":
        text = " ".join(outcome.out.split())
        assert "arXiv 2303.07345, equation 7" in text
        assert "eta (eps_0(x_t, c) - eps_0(x_t" in text
        assert re.search(r"\neta +2\.0 +strength of the negative guidance\.", outcome.out)
        assert re.search(r"\nlr +5e-05 +Adam's learning rate\.", outcome.out)
        assert "cost: 200 optimizer steps of 1 forget and 1 retain examples; prompts only" in text
        assert "with model=pictoworld the defaults are: steps 150" in text


def test_every_component_can_be_explained(command):
    for group in GROUPS:
        outcome = command("list", group)
        for line in outcome.out.splitlines()[1:]:
            name = line.split()[0]
            assert command("list", f"{group}={name}").out.startswith(f"{group}={name}: ")


def test_a_component_that_is_none_gets_a_suggestion(command):
    outcome = command("list", "esd")
    assert outcome.code == 2
    assert "esd: no such group or component; did you mean 'esd_x'?" in outcome.err


def test_the_support_table_is_markdown_in_a_pipe_and_a_table_in_a_terminal(command, monkeypatch, capsys):
    monkeypatch.setattr(support, "choices", lambda group: ["ga", "mace"] if group == "algo" else choices(group))
    markdown = command("list", "--support").out
    assert markdown.startswith("| algo | ")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda stream: True, raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert command("list", "--support", "--md").out == markdown
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", command("list", "--support").out)
    assert "|" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"\nmace +runs +runs +no xattn +no xattn", text)
    assert "- xattn: cross-attention, whose keys and values depend on the text alone." in text


def test_a_remark_breaks_no_command(capsys):
    remark = "images: a/grid.png; next: `unlearnbench show some/folder` or `report some/folder`"
    print_remark(Console(width=40), remark)
    assert capsys.readouterr().out.splitlines() == [
        "images: a/grid.png; next:", "`unlearnbench show some/folder` or", "`report some/folder`",
    ]  # fmt: skip


# --- typing mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("run", "metric=quick"), "metric: no such setting; did you mean 'metrics'? "),
        (("check", "sample.prompt=8"), "sample.prompt: no such setting; did you mean 'sample.prompts'? "),
        (("check", "lr=3"), "lr: no such setting; did you mean 'algo.lr'? "),
        (("run", "concpt=church"), "concpt: no such setting; did you mean 'concept'? "),
        (("run", "xyzzy=3"), "xyzzy: no such setting; `unlearnbench run --cfg job`"),
        (("run", "--seed", "3"), "--seed: a setting has no dashes: seed=3\n"),
        (("run", "algo=uce", "--seed=3"), "--seed=3: a setting has no dashes: seed=3\n"),
        (("run", "--lr", "1e-5"), "--lr: a setting has no dashes: algo.lr=1e-5\n"),
        (("run", "--config-dri", "x"), "--config-dri: no such option; did you mean '--config-dir'?\n"),
        (("measure", "run", "--orignal", "a"), "--orignal: no such option; did you mean '--original'?\n"),
        (("attack", "run", "--config-dri", "a", "attack=noise"), "--config-dri: no such option; did you mean '--config-dir'?\n"),
        (("measure", "run", "--seed", "3"), "--seed: a setting has no dashes: seed=3\n"),
        (("check", "--seed", "3", "algo=uce"), "--seed: a setting has no dashes: seed=3\n"),
    ],
)
def test_a_mistyped_key_or_option_gets_the_right_spelling(arguments, error, command, tmp_path):
    outcome = command(*arguments)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {error}")
    assert outcome.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_mistake_in_show_is_one_short_line(folder, command):
    assert command("show", folder, "--group", "algo").err == (
        "error: --group algo: algorithms are never averaged; these runs differ in: seed\n"
    )
    assert command("show", folder, "--group", "sead").err == (
        "error: --group sead: no such setting in these runs; did you mean 'seed'?; these runs differ in: seed\n"
    )
    error = command("show", folder, "--gap").err
    assert error.startswith(f"error: --gap: {folder}/0-substitute_text-church+nudity: needs one run of algo=oracle")
    assert error.endswith("; there is none among these runs\n")


def test_labels_of_equal_points_do_not_overprint():
    points = [Point(i, f"{i}", 1.0, 1.0, (1.0, 1.0), (0.9, 1.0)) for i in range(4)]
    points.append(Point(4, "4", 0.0, 1.0, (0.0, 0.0), (1.0, 1.0)))
    heights = label_heights(points)
    assert sorted(heights[:4])[1] - sorted(heights[:4])[0] >= 0.04 * (1.03 - 0.9)
    assert heights[4] == 1.0


def test_the_values_of_a_run_are_still_json(folder, command):
    assert len(json.loads(command("show", folder, "--json").out)) == 4
