"""The own concept and the own metric of the docs, as they stand there."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

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


def test_the_detector_in_the_docs_judges_as_it_stands(command, tmp_path):
    text = section("concepts.md", "A detector of your own")
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "redness.py").write_text(code)
    overrides = re.findall(r"'(\S*concept\.detector\..*?)'", text)
    outcome = command("run", *SMALL, "algo=none", "metrics=forget_accuracy", *overrides, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    detector = sys.modules["redness"].Redness(share=0.05)
    red, green = torch.zeros(2, 4, 4, 3, dtype=torch.uint8).split(1)
    red[..., 0], green[..., 1] = 200, 200
    assert detector.detect(torch.cat([red, green]), torch.device("cpu")).tolist() == [True, False]
    sys.modules.pop("redness")
    assert load_run("run").find("forget_accuracy", "forget").backbone == "red pixels >= 0.05"


def test_the_attack_in_the_docs_asks_as_it_stands(command, smoke, tmp_path):
    text = section("attacks.md", "Your own")
    (code,), (settings,) = (re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) for language in ("python", "yaml"))
    (tmp_path / "shouted.py").write_text(code)
    (tmp_path / "my-conf/attack").mkdir(parents=True)
    (tmp_path / "my-conf/attack/shouted.yaml").write_text(settings)
    shutil.copytree(smoke.folder, tmp_path / "run")
    outcome = command("attack", "run", "--config-dir", "my-conf", "attack=shouted", "attack.prompts=2")
    sys.modules.pop("shouted", None)
    assert outcome.code == 0, outcome.err
    asked = {row["attacked"] for row in json.loads((tmp_path / "run/attack-shouted.json").read_text())["images"]}
    assert len(asked) == 2
    assert all(text == text.upper() and text.endswith("!!!") for text in asked)


@pytest.mark.parametrize(
    ("content", "checked", "listed"),
    [
        (
            b"# A list.\n- a\n",
            "In 'experiment/smoke': Cannot merge DictConfig with ListConfig\n",
            "{file}: a list; it must hold entries, name: value\n",
        ),
        (b"text\n", "", "{file}: a single value; it must hold entries, name: value\n"),
        (b"# A brace.\nname: {a\nlr: 1\n", "{file}, line 3: not valid yaml (expected ',' or '}}', but got ':')\n", ""),
        (b"name: a\n\tlr: 1\n", "{file}, line 2: not valid yaml (found character '\\t' that cannot start any token)\n", ""),
        (b"# Latin \xe9.\nname: a\n", "{file}, line 1: not UTF-8; convert it with `iconv -t utf-8`\n", ""),
    ],
)
def test_a_file_of_the_users_that_is_no_yaml_of_settings_is_named_with_its_line(content, checked, listed, command, tmp_path):
    file = tmp_path / "mine/algo/odd.yaml"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    for words, expected in (
        (["check", *SMALL, "algo=odd"], checked),
        (["run", *SMALL, "algo=odd"], checked),
        (["list", "odd"], listed or checked),
    ):
        outcome = command(*words, "--config-dir", tmp_path / "mine")
        assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1), outcome
        assert outcome.err.startswith("error: " + expected.format(file=file))


def test_what_lies_beside_the_groups_in_a_folder_of_the_users_is_not_read(command, tmp_path):
    (tmp_path / "mine/notes").mkdir(parents=True)
    (tmp_path / "mine/notes/latin.yaml").write_bytes(b"\xe9")
    (tmp_path / "mine/algo/folder.yaml").mkdir(parents=True)
    assert command("check", *SMALL, "--config-dir", "mine").code == 0


def test_an_empty_file_and_one_with_a_byte_order_mark_are_listed(command, tmp_path):
    (tmp_path / "mine/algo").mkdir(parents=True)
    (tmp_path / "mine/algo/empty.yaml").write_text("")
    target = "unlearnbench.algos.none.NoTraining"
    (tmp_path / "mine/algo/marked.yaml").write_text(f"# It has a mark.\n_target_: {target}\nname: marked\n", "utf-8-sig")
    assert command("list", "empty", "--config-dir", "mine").code == 0
    assert command("list", "marked", "--config-dir", "mine").out.startswith("algo=marked: It has a mark.\n")
