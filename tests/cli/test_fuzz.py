"""Whatever is typed: an exit code of 0, 1 or 2, and never a traceback. `make fuzz` types 300 lines."""

from __future__ import annotations

import re
import shutil

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from unlearnbench.config.errors import RunError
from unlearnbench.config.paths import choices
from unlearnbench.experiment import run

VALUES = """= == a=b=c null nan -1 1e999 999999999999999999999999999999 [ ] {} [] [a ${seed} ${nowhere} ' " \ é 教会 $(reboot) ;ls
    * ? ga substitute church nudity tiny pictoworld quick smoke none auto cpu mine true 0"""
KEYS = """algo concept model metrics retain experiment seed device cache resume checkpoint_every sample tuned
    algo.lr algo.steps algo.train algo._target_ sample.batch sample.prompts sample.guidance concept.prompts concept.anchor
    concept.words retain.splits retain.images training.forget_folder model.path model.dtype metrics.integrity.distances
    hydra.run.dir hydra.sweep.dir hydra.verbose"""
OPTIONS = """-m --multirun --cfg job hydra all -c --info --help --resolve --package -x --config-dir mine --config-name
    --config-path --experimental-rerun --hydra-help --version"""
COMMANDS = {
    "run": "", "check": "", "resume": "done nowhere .", "list": "algo concept --support",
    "show": "done nowhere . --md --csv --json --paired --group seed --plot a.svg a.exe",
    "measure": "nowhere . metrics=quick", "attack": "nowhere attack=mine", "report": "nowhere",
    "export": "nowhere --as diffusers lora --kohya --whole --public -o x",
    "cache": "--prune --older 3d --limit 1GB --clear --yes cache=c", "world": "quality --captions",
    "-sc": "query=bash", "": "", "rnu": "", "--help": "", "--version": "",
}  # fmt: skip

strange = st.one_of(
    st.sampled_from(VALUES.split()),
    st.sampled_from(["~", "~/x", "'~/x'", "./x", "a/b/c", "clip:./x"]),
    st.sampled_from(["", " ", "\n", "a\nb", "\u202e", "\u2028", "\udc80", "a" * 3000]),
    st.text(st.characters(exclude_characters="\0", exclude_categories=()), max_size=12).map(lambda text: text.lstrip("/")),
    st.integers().map(str),
    st.floats().map(str),
)
word = st.one_of(
    st.tuples(st.sampled_from(["", "", "", "+", "++", "~"]), st.sampled_from(KEYS.split()), strange).map(
        lambda parts: f"{parts[0]}{parts[1]}={parts[2]}"
    ),
    st.tuples(strange, strange).map("=".join),
    strange,
    st.sampled_from(OPTIONS.split()),
)


@st.composite
def lines(draw):
    name = draw(st.sampled_from([*COMMANDS] + ["run", "check"] * 8))
    own = [st.sampled_from(COMMANDS[name].split())] if COMMANDS[name] else []
    return [name, *draw(st.lists(st.one_of(*own, word), max_size=5))]


@pytest.fixture
def typed(command, smoke, tmp_path, monkeypatch):
    """Type a line; a run goes as far as its model, where it fails, and a sweep of runs is one run long."""

    def stop(*_):
        raise RunError("far enough")

    monkeypatch.setattr(run, "unlearn_and_measure", stop)
    monkeypatch.setattr("unlearnbench.experiment.measure.measure_images", stop)
    monkeypatch.setattr("unlearnbench.recipes.pictoworld_quality.measure_quality", stop)
    shutil.copytree(smoke.folder, tmp_path / "done")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COMP_LINE", "unlearnbench run al")
    return command


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(line=lines())
@example(line=["run", "concept.prompts=\u2028"])
@example(line=["run", "experiment=smoke", "hydra.run.dir=\udc80"])
@example(line=["run", "-m", "algo=ga,none", "experiment=smoke"])
def test_no_line_ends_in_a_traceback(line, typed):
    outcome = typed(*line)
    assert outcome.code in (0, 1, 2), (line, outcome)
    assert "Traceback" not in outcome.err + outcome.out, (line, outcome)
    if outcome.code and line[0] in ("run", "check", "measure", "resume"):
        assert re.search(r"^(error|run failed|usage|failed): ?", outcome.err, re.MULTILINE), (line, outcome)


def test_the_names_in_the_lines_are_known():
    assert {"ga", "substitute", "none"} <= set(choices("algo"))
    assert {"church", "nudity"} <= set(choices("concept"))
