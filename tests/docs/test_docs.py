"""The documentation: generated pages are those of today, commands are right, and the tutorial leads to its end."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import docs_pages
import pytest

from unlearnbench.cli.main import _parser
from unlearnbench.config.compose import compose

ROOT = Path(__file__).parents[2]
GENERATED = (
    "algorithms.md", "command-line.md", "leaderboard.md", "leaderboard-quick.md", "leaderboard-pictoscenes.md",
    "attacks-table.md",
)  # fmt: skip
OWN_PARTS = re.compile(r"--config-dir|algo=mine|=my[.-]|concept=heart\b")
SMALL = ["experiment=smoke", "sample.prompts=1", "metrics=[integrity,forget_accuracy]"]


def fenced(text, *kinds):
    """The fenced blocks of a page, of some languages."""
    return [body for kind, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL) if kind in kinds]


def commands():
    """Each command of the README and of docs/, with its page."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        if path.name in GENERATED:
            continue
        for block in fenced(path.read_text(encoding="utf-8"), "", "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("unlearnbench ") and "<" not in line and "..." not in line:
                    yield pytest.param(shlex.split(line, comments=True)[1:], id=f"{path.stem}: {line[13:70]}")


def first_choices(words):
    """The overrides of the first run of a sweep, without options."""
    overrides = [word for word in words if not word.startswith("-")]
    for word in overrides:
        key, _, value = word.partition("=")
        if "(" in value:  # an interval of a search
            continue
        yield word if not value or value.startswith(("[", "{")) else f"{key}={value.split(',')[0]}"


@pytest.mark.thorough
@pytest.mark.parametrize("words", commands())
def test_a_command_of_the_documentation_is_understood(words):
    command, *others = words
    if command not in ("run", "check", "fetch"):
        _parser().parse_args(words)
    elif not OWN_PARTS.search(" ".join(words)):
        assert compose(*first_choices(others))


@pytest.mark.thorough
def test_generated_pages_are_those_of_today(capsys):
    assert docs_pages.run(check=True) == 0, capsys.readouterr().out


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} == listed


@pytest.mark.thorough
def test_the_tutorial_leads_to_its_end(command, tmp_path):
    """Each command as it stands, with the settings of a smoke run."""
    text = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
    laptop = text[: text.index("## 5.")] + text[text.index("## 6.") :]
    [table], [concept] = fenced(laptop, "csv"), fenced(laptop, "yaml")
    (tmp_path / "hearts.csv").write_text(table)
    (tmp_path / "my-conf/concept").mkdir(parents=True)
    (tmp_path / "my-conf/concept/heart.yaml").write_text(concept)
    for line in "".join(fenced(laptop, "bash")).splitlines():
        words = shlex.split(line)[1:]
        if words[0] in ("run", "check"):
            words += [word for word in SMALL if "concept=heart" not in words or "sample" not in word]
        if "TIME" in line:
            [sweep] = (tmp_path / "outputs/sweeps").iterdir()
            words = [word.replace("outputs/sweeps/TIME", str(sweep)) for word in words]
        outcome = command(*words)
        assert outcome.code == 0, (line, outcome.out, outcome.err)
    assert (tmp_path / "report.html").is_file()
