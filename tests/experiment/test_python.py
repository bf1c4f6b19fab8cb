"""The interface in Python: keywords as overrides, own yaml files, a run in a notebook and as a data frame."""

from __future__ import annotations

import builtins
import importlib.util
from pathlib import Path

import pytest

import unlearnbench
from unlearnbench.config.overrides import override_texts, value_text
from unlearnbench.results.run import Run

FEW = {"metrics": "integrity", "sample": {"prompts": 1}, "retain": {"splits": ["far"]}}


def test_keywords_are_overrides_and_a_run_says_what_it_is_in_one_line():
    run = unlearnbench.run("experiment=smoke", algo="uce", concept=["church", "parachute"], seed=3, **FEW)
    assert (run.name, run.log["config"]["seed"]) == ("uce on church+parachute", 3)
    assert run.log["overrides"] == [
        "experiment=smoke", "algo=uce", "concept=[church,parachute]", "seed=3", "metrics=integrity", "sample.prompts=1",
        "retain.splits=[far]",
    ]  # fmt: skip
    assert repr(run) == f"<Run uce on church+parachute: done, {len(run.values)} values, {run.folder}>"
    assert repr(Run(Path("x"))) == "<Run not started, 0 values, x>"


def test_the_yaml_files_of_a_folder_are_found(tmp_path):
    path = tmp_path / "my-conf/algo/mine.yaml"
    path.parent.mkdir(parents=True)
    text = (unlearnbench.config.paths.CONF / "algo/uce.yaml").read_text()
    path.write_text(text.replace("name: uce", "name: mine"))
    config = unlearnbench.compose("experiment=smoke", config_dir=tmp_path / "my-conf", algo="mine")
    assert config.algo.name == "mine"
    run = unlearnbench.run("experiment=smoke", algo="mine", config_dir=path.parents[1], **FEW)
    assert run.name == "mine on church"
    with pytest.raises(unlearnbench.UserError, match="no such folder"):
        unlearnbench.run(config_dir=tmp_path / "gone")


@pytest.mark.parametrize("text", ["a b", "8", "true", "it's", "a\\", "a\\'", "x,y", "[a]", "{a}", "", " a", "a=b", "1e5", "é"])
def test_text_stays_the_text_that_it_is(text):
    assert unlearnbench.compose("experiment=smoke", concept={"guide": text}).concept.guide == text


def test_values_of_python_are_written_as_hydra_reads_them():
    assert override_texts([], None, {"a": {"b": 1, "c.d": None}, "e": [True, 1e-5, "x y"]}) == [
        "a.b=1", "a.c.d=null", "e=[true,1e-05,'x y']",
    ]  # fmt: skip
    assert value_text(Path("/a/b c")) == "'/a/b c'"


def test_a_notebook_shows_a_table(smoke):
    html = smoke._repr_html_()
    assert html.startswith("<table><caption>")
    assert html.count("<tr>") == len(smoke.values) + 1
    assert "<td>forget_accuracy</td><td>forget</td>" in html
    escaped = Run(smoke.folder / "<b>", smoke.log, smoke.values)._repr_html_()
    assert "&lt;b&gt;" in escaped


def test_a_data_frame_without_pandas_is_refused_in_one_line(smoke, monkeypatch):
    load = builtins.__import__

    def without_pandas(name, *rest):
        if name == "pandas":
            raise ImportError(name)
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_pandas)
    with pytest.raises(unlearnbench.UserError, match=r"^to_frame needs pandas: pip install pandas$"):
        smoke.to_frame()


def test_a_data_frame_has_a_row_for_each_value(smoke, monkeypatch):
    if importlib.util.find_spec("pandas") is None:

        class Pandas:
            @staticmethod
            def DataFrame(rows, columns):
                return rows, columns

        monkeypatch.setitem(__import__("sys").modules, "pandas", Pandas)
        rows, columns = smoke.to_frame()
    else:
        frame = smoke.to_frame()
        rows, columns = frame.to_dict("records"), list(frame.columns)
    assert columns[:5] == ["table", "metric", "split", "original", "unlearned"]
    assert [row["unlearned"] for row in rows] == [value.unlearned for value in smoke.values]
