"""Values with signs that Hydra or the shell reads: the hint, typed as it is given, means the value."""

from __future__ import annotations

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from unlearnbench.config.overrides import value_text
from unlearnbench.config.quoting import quoted_override

CSV = "prompt,split,use\na red church,forget,train\na church,forget,measure\n"
NAMES = ["a,b.csv", "o'neil.csv", "a b (1).csv", "a=b.csv", 'say "hi".csv', "x,y's.csv", "back\\slash,.csv", "end\\", "[a].csv",
         "~x", "tom&jerry!.csv", "q\\'s.csv", "教会,.csv", "", "null", "$HOME,x", "a#b.csv"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_quoted_override_means_its_text(name):
    [word] = shlex.split(quoted_override("concept.prompts", name))
    [override] = OverridesParser.create().parse_overrides([word])
    assert override.value() == name


@pytest.mark.parametrize("name", [*NAMES, "~/x", "a~b", "a@b", "a:b", "a+b", "@a", "-a", "8", "1e3", "yes", "a/b.c", " a "])
def test_a_text_of_python_means_itself_as_an_override(name):
    [override] = OverridesParser.create().parse_overrides([f"cache={value_text(name)}"])
    value = override.value()
    assert isinstance(value, str)
    assert value == name


def test_the_hint_for_a_name_with_a_comma_works(command, tmp_path):
    (tmp_path / "a,b.csv").write_text(CSV)
    refusal = command("check", "experiment=smoke", "concept.prompts=a,b.csv")
    assert (refusal.code, refusal.err) == (
        2, "error: concept.prompts=a,b.csv: a name with a comma; quote it: \"concept.prompts='a,b.csv'\"\n"
    )  # fmt: skip
    [word] = shlex.split(refusal.err.partition("quote it: ")[2])
    assert command("check", "experiment=smoke", word).code == 0
    refusal = command("check", "experiment=smoke", "concept.prompts=c,d.csv")
    assert refusal.err.endswith("for a list; a text with a comma is quoted: \"concept.prompts='c,d.csv'\"\n")
    (tmp_path / "o'neil.csv").write_text(CSV)
    refusal = command("check", "experiment=smoke", "concept.prompts=o'neil.csv")
    [word] = shlex.split(refusal.err.strip().partition("such as ")[2])
    assert command("check", "experiment=smoke", word).code == 0
