"""Short runs of every algorithm, as of `make families`: no setting is overridden that the algorithm does not read."""

from __future__ import annotations

import pytest
from reduced_counts import reduced_counts

from unlearnbench.config.compose import compose
from unlearnbench.config.paths import choices
from unlearnbench.experiment.preflight import find_problems
from unlearnbench.experiment.run_spec import RunSpec

SMOKE = ("experiment=smoke", "concept=church", "metrics=integrity", "sample.prompts=1", "retain.splits=[far]")


@pytest.mark.parametrize("algo", sorted(set(choices("algo")) - {"oracle", "checkpoint"}))
def test_a_short_run_overrides_counts_that_the_algorithm_reads(algo):
    words = (*SMOKE, f"algo={algo}")
    short = reduced_counts(compose(*words).algo)
    problems = find_problems(RunSpec.of(compose(*words, *short)), short)
    assert [problem for problem in problems if "does not read" in problem] == []
    assert all(word.endswith("=3") for word in short)
