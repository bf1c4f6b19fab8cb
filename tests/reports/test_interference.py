"""What forgetting one concept does to every other: prompts of all, the shared original, the matrix, its files."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from unlearnbench.config.compose import catalog_names, compose
from unlearnbench.config.errors import UserError
from unlearnbench.config.paths import CONF, read_yaml
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.reports.html_report import interference_matrices
from unlearnbench.reports.interference import effect_records, matrices
from unlearnbench.results.run import Run, Value
from unlearnbench.sampling.generation import ImageGenerator

SMALL = ("model=tiny", "algo=uce", "sample.prompts=1", "sample.steps=1")


def near(concept, metric, unlearned, **more):
    return Value(table="Retention", metric=metric, split=f"near: {concept}", unlearned=unlearned, better="higher", n=2, **more)


def a_run(forgotten, values, algo="uce", seed=0, **settings):
    config = {"algo": {"name": algo, **settings}, "concept": {"name": forgotten}, "sample": {"seed": 0}, "seed": seed}
    return Run(Path(f"{algo}-{forgotten}-{seed}"), {"status": "done", "algo": algo, "config": config}, values)


def own(unlearned):
    return Value(
        table="Forgetting", metric="forget_accuracy", split="forget", original=1.0, unlearned=unlearned, better="lower", n=2,
        low=0.0, high=0.5,
    )  # fmt: skip


@pytest.fixture
def two_runs():
    """A run that forgets trees and one that forgets fish."""
    return [
        a_run("tree", [own(0.1), near("fish", "retain_accuracy", 0.8, original=0.9), near("fish", "integrity_norm", 0.7)]),
        a_run("fish", [own(0.0), near("tree", "retain_accuracy", 0.5, original=1.0), near("tree", "integrity_norm", 0.4)]),
    ]


@pytest.mark.parametrize(
    ("concept", "which"),
    [
        ("pictoworld_subject", ("tree", "person", "nude")),
        ("pictoscenes_subject model=pictoscenes", ("whale", "person", "nude")),
        ("imagenette", ("church", "tench")),
    ],
)
def test_all_concepts_of_a_list_have_the_same_measured_prompts_whichever_is_forgotten(concept, which):
    texts = []
    for name in which:
        spec = RunSpec.of(compose("experiment=interference", *f"concept={concept}".split(), f"concept.which={name}"))
        rows = spec.prompts()
        assert len(set(Counter(p.split for p in rows).values())) == 1
        assert {p.split for p in rows if p.split != "forget"} == {f"near: {other}" for other in spec.concept.others}
        assert not {p.text for p in rows} & {p.text for p in spec.retain.load(spec.concept) if p.use == "train"}
        texts.append({p.text for p in rows})
    assert all(one == texts[0] for one in texts)


def test_a_sweep_varies_every_concept_of_the_list_and_a_concept_without_a_list_is_refused(command):
    assert catalog_names("lists/imagenette.yaml").split(",") == list(read_yaml(CONF / "lists/imagenette.yaml"))
    outcome = command("run", "-m", "experiment=interference", "concept=church", "~concept.near_entries")
    assert outcome.code == 2
    assert "experiment=interference takes a concept out of a list, such as concept=imagenette" in outcome.err


def test_the_second_run_of_a_sweep_generates_no_image_of_the_original_anew(command, monkeypatch, tmp_path):
    counts, generate = [], ImageGenerator._generate

    def counted(self, batch):
        counts.append(len(batch.prompts))
        return generate(self, batch)

    monkeypatch.setattr(ImageGenerator, "_generate", counted)
    words = (f"cache={tmp_path / 'cache'}", "concept.which=church,tree", "hydra.sweep.dir=sweep")
    outcome = command("run", "-m", "experiment=interference", *SMALL, *words)
    assert outcome.code == 0, outcome.err
    assert sum(counts) == 3 * 14 * 2  # the original once, and the model of each run
    assert "uce: accuracy" in outcome.out
    assert "uce: integrity_norm" in outcome.out
    with Path("sweep/interference.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["metric"] for row in rows) == {"accuracy": 2 * 14, "integrity_norm": 2 * 13}
    assert all(row["low"] and row["high"] for row in rows if row["metric"] == "accuracy")
    assert Path("sweep/interference.svg").stat().st_size > 10_000
    assert command("show", "sweep", "--interference", "--csv").out == Path("sweep/interference.csv").read_text()
    assert command("report", "sweep", "-o", "r.html", "--images=0").code == 0
    assert Path("r.html").read_text().count('<table class="matrix">') == 2


def test_rows_are_what_was_forgotten_and_columns_what_prompts_name(two_runs):
    accuracy, integrity = matrices(two_runs)
    assert accuracy.head == ["forgotten", "tree", "fish"]
    assert accuracy.body == [["(original)", "1.000", "0.900"], ["tree", "0.100", "0.800"], ["fish", "0.500", "0.000"]]
    assert integrity.body == [["tree", "", "0.700"], ["fish", "0.400", ""]]
    assert [effect["concept"] for effect in effect_records([accuracy])] == ["tree", "fish", "fish", "tree"]
    assert (accuracy.effects["tree", "tree"].low, accuracy.effects["tree", "tree"].high) == (0.0, 0.5)


def test_seeds_are_averaged_and_settings_of_a_method_are_methods_of_their_own(two_runs):
    values = [near("fish", "retain_accuracy", 0.6, original=0.9)]
    [matrix] = [m for m in matrices([two_runs[0], a_run("tree", values, seed=1)]) if m.metric == "accuracy"]
    effect = matrix.effects["tree", "fish"]
    assert (round(effect.unlearned, 9), effect.runs) == (0.7, 2)
    assert effect.low < 0.6 < 0.8 < effect.high
    distances = [near("fish", "integrity_norm", x, backbone=name) for x, name in ((0.8, "lpips-alex"), (0.2, "dreamsim"))]
    [matrix] = matrices([a_run("tree", distances)])
    assert (matrix.effects["tree", "fish"].unlearned, matrix.effects["tree", "fish"].runs) == (0.8, 1)
    titles = [m.title for m in matrices([a_run("tree", values, ridge=1), a_run("tree", values, ridge=2)])]
    assert titles == ["uce ridge=1: accuracy", "uce ridge=2: accuracy"]


def test_runs_of_different_sampling_make_no_matrix(two_runs, command):
    two_runs[1].log["config"]["sample"] = {"seed": 1}
    with pytest.raises(UserError, match="differ in model or sampling"):
        matrices(two_runs)
    assert interference_matrices(two_runs) == []
    two_runs[0].folder = Path("alone")
    two_runs[0].folder.mkdir()
    two_runs[0].write()
    assert json.loads(command("show", "alone", "--interference", "--json").out)[0]["forgotten"] == "tree"
    two_runs[0].values[1:] = []
    two_runs[0].write()
    assert command("show", "alone", "--interference").err.startswith("error: no run here has prompts of every concept")
