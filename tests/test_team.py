"""Two processes do one run, and its files are those of one process."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import pytest
import torch

from unlearnbench.config import compose
from unlearnbench.sampling import draw
from unlearnbench.spec import Spec

TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "unlearnbench.cli", "run"]
SMALL = ("experiment=smoke", "metrics=integrity", "sample.prompts=2", "sample.batch=3", "retain.splits=[far]")


def together(*words):
    return subprocess.run([*TWO, *words], capture_output=True, text=True, timeout=900)


@pytest.fixture
def one_thread(monkeypatch):
    """As many threads as each of two processes has; more may round otherwise."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_images_and_weights_are_those_of_one_process(one_thread, run, files, tmp_path):
    words = [*SMALL, "algo=esd_x", "algo.steps=2"]
    told = together(*words, "cache=shared", "hydra.run.dir=two")
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("integrity_norm ↑") == 1
    log = json.loads((tmp_path / "two/run.json").read_text())
    assert (log["status"], log["cache"]["hits"]) == ("done", 0)
    alone = run(*words, "cache=other", folder="one")
    two, one = files(tmp_path / "two/images"), files(alone.folder / "images")
    assert len([name for name in one if name.endswith(".png")]) == 2 * log["images"]["after"]
    assert two == one
    assert (tmp_path / "two/weights.safetensors").read_bytes() == (alone.folder / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("algo", ["sld", "safree"])
def test_what_steers_goes_to_another_process_whole(algo, tiny, examples):
    spec = Spec.of(compose("experiment=smoke", f"algo={algo}"))
    spec.algo.unlearn(tiny, *examples, spec.concept, 0, lambda step, loss: None)
    image = draw(tiny, ["a red church"], [0], 2, 2.0)
    tiny.steering = pickle.loads(pickle.dumps(tiny.steering))
    assert torch.equal(draw(tiny, ["a red church"], [0], 2, 2.0), image)


def test_a_mistake_is_told_once_and_all_processes_end(tmp_path):
    told = together(*SMALL, "algo.train=xatn", "hydra.run.dir=two")
    assert told.returncode != 0
    assert told.stderr.count("error: algo.train=xatn: selects no parameter") == 1
