"""The own concept and the own metric of the docs, as they stand there."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from pathlib import Path

from unlearnbench.data.concept import Concept
from unlearnbench.pictoworld.captions import _VALUES_BY_WORD, DRESSED, LEADS, SYNONYMS
from unlearnbench.results.run import load_run

DOCS = Path(__file__).parents[2] / "docs"
SMALL = ("experiment=smoke", "sample.prompts=1", "retain.splits=[far]")


def section(name, title):
    """The text below a heading of a page."""
    return re.split(r"\n##+ ", (DOCS / name).read_text().partition(f" {title}\n")[2])[0]


def test_the_concept_in_the_docs_runs_as_it_stands(command, tmp_path):
    text = section("concepts.md", "A concept of your own")
    [settings] = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my-conf/concept").mkdir(parents=True)
    (tmp_path / "my-conf/concept/star.yaml").write_text(settings)
    (tmp_path / "stars.txt").write_text("a red star\na starlet on the left\n")
    assert command("check", "--config-dir", "my-conf", *SMALL, "concept=star").code == 0
    assert "detector" in command("list", "star", "--config-dir", "my-conf").out
    outcome = command("run", "--config-dir", "my-conf", *SMALL, "metrics=forget_accuracy", "concept=star", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert load_run("run").find("forget_accuracy", "forget").backbone == "classifier subject=star"


def test_the_docs_list_every_field_of_a_concept_and_every_word_of_pictoworld():
    text = section("concepts.md", "A concept of your own")
    assert set(re.findall(r"\n\| `(\w+)` \|", text)) == {field.name for field in fields(Concept)}
    words = set(re.findall(r"[a-z]+", text.partition("| attribute | words |")[2]))
    known = {word for by_word in _VALUES_BY_WORD.values() for word in by_word} | set(DRESSED)
    known |= {word for names in SYNONYMS.values() for name in names for word in name.split()}
    known |= {word for lead in LEADS for word in lead.split()}
    assert known <= words


def test_the_metric_in_the_docs_runs_as_it_stands(command, tmp_path):
    text = section("metrics.md", "Your own")
    (code,), (settings,) = (re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) for language in ("python", "yaml"))
    (tmp_path / "brightness.py").write_text(code)
    (tmp_path / "my-conf/metrics").mkdir(parents=True)
    (tmp_path / "my-conf/metrics/brightness.yaml").write_text(settings)
    words = ("--config-dir", "my-conf", *SMALL, "metrics=[integrity,brightness]", "hydra.run.dir=run")
    outcome = command("run", *words)
    sys.modules.pop("brightness", None)
    assert outcome.code == 0, outcome.err
    value = load_run("run").find("brightness", "retain")
    assert 0 < value.unlearned < 1
    assert 0 < value.original < 1
