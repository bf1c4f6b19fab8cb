"""Processes: `typed` runs the command as it is typed, in a process forked from a warm interpreter or in a true one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import diffusers
import lpips  # noqa: F401
import pytest
import torch.distributed.run  # noqa: F401
import transformers
from warm_python import warm_python

from unlearnbench.models import sd  # noqa: F401


@pytest.fixture(scope="session")
def python(loaded):
    """The path of a python that starts at once, with everything imported that a run imports."""
    assert diffusers.StableDiffusionPipeline
    assert transformers.CLIPTextModel
    with tempfile.TemporaryDirectory(prefix="warm-") as folder, warm_python(Path(folder)) as path:
        yield path


@pytest.fixture
def typed(python, tmp_path):
    """Type `python -m unlearnbench words` in the test's folder, with more environment variables if given."""

    def do(*words, interpreter=python, command=("-m", "unlearnbench"), **environment):
        return subprocess.run(
            [interpreter, *command, *map(str, words)],
            cwd=tmp_path, env={**os.environ, **environment}, capture_output=True, text=True, timeout=1200,
        )  # fmt: skip

    return do


@pytest.fixture
def true_python():
    """The interpreter that runs the tests, for what must hold from a cold start."""
    return sys.executable
