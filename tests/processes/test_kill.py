"""Runs that are killed from outside, at a random moment."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.mark.thorough
def test_a_process_that_is_killed_at_a_random_moment_is_survived(typed):
    script = Path(__file__).parents[2] / "scripts/kill_and_resume.py"
    few = ["metrics=integrity", "sample.prompts=1", "retain.splits=[far]"]
    done = typed(script, "--kills", "1", "--only", "ga", *few, command=())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 killed runs ended as the run that was never stopped" in done.stdout
