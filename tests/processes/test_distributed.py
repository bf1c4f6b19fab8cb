"""A run of two processes: its files are those of one process."""

from __future__ import annotations

import json
import os
import socket
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from unlearnbench.algos.examples import Batch
from unlearnbench.algos.training import Step, TrainingContext
from unlearnbench.config.compose import compose
from unlearnbench.experiment.distributed import _deserialize, _serialize, connect_processes, distributed_problem
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.sampling import generate

TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "unlearnbench", "run")
SMALL = ("experiment=smoke", "metrics=integrity", "sample.prompts=2", "sample.batch=3", "retain.splits=[far]")


@pytest.fixture
def together(typed):
    """Start a run in two processes by torchrun."""
    return partial(typed, command=TWO)


@pytest.fixture
def one_thread(monkeypatch):
    """One thread, as each of two processes has: more may round differently."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.thorough
def test_images_and_weights_are_those_of_one_process(together, true_python, one_thread, run, files, tmp_path):
    words = [*SMALL, "algo=esd_x", "algo.steps=2"]
    outcome = together(*words, "cache=shared", "hydra.run.dir=two", interpreter=true_python)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.count("integrity_norm ↑") == 1
    log = json.loads((tmp_path / "two/run.json").read_text())
    assert (log["status"], log["cache"]["hits"]) == ("done", 0)
    alone = run(*words, "cache=other", folder="one")
    two, one = files(tmp_path / "two/images"), files(alone.folder / "images")
    assert len([name for name in one if name.endswith(".png")]) == 2 * log["images"]["after"]
    assert two == one
    assert (tmp_path / "two/weights.safetensors").read_bytes() == (alone.folder / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("algo", ["sld", "safree"])
def test_guidance_is_complete_after_it_is_sent_to_another_process(algo, tiny, examples):
    spec = RunSpec.of(compose("experiment=smoke", f"algo={algo}"))
    guidance = spec.algo.unlearn(tiny, *examples, spec.concept, 0).guidance
    image = generate(tiny, ["a red church"], [0], 2, 2.0, guidance)
    received = _deserialize(_serialize(guidance), torch.device("cpu"))
    assert torch.equal(generate(tiny, ["a red church"], [0], 2, 2.0, received), image)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("override", "message"),
    [("algo.train=xatn", "algo.train=xatn: selects no parameter"), ("algo.steps=-3", "algo.steps: -3 is less than 0")],
    ids=["found while it runs", "found by every process"],
)
def test_a_mistake_is_reported_once_and_all_processes_end(override, message, together):
    outcome = together(*SMALL, override, "hydra.run.dir=two")
    assert outcome.returncode != 0
    assert outcome.stderr.count(f"error: {message}") == 1


@pytest.mark.thorough
def test_two_processes_share_each_training_batch(together, one_thread, run, tmp_path):
    words = [*SMALL, "algo=ga", "algo.steps=3", "algo.batch=4", "cache=shared"]
    alone = run(*words, folder="one")
    runs = [together(*words, "training.processes=2", f"hydra.run.dir={name}") for name in ("two", "again")]
    assert [outcome.returncode for outcome in runs] == [0, 0], runs[0].stderr
    first, second, other = (load_file(tmp_path / name / "weights.safetensors") for name in ("two", "again", "one"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first.keys() == other.keys()
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert len((tmp_path / "two/train.csv").read_text().splitlines()) == 1 + 3
    assert (tmp_path / "two/images/before/00000.png").read_bytes() == (alone.folder / "images/before/00000.png").read_bytes()


@pytest.mark.thorough
def test_all_processes_end_if_the_main_one_fails(together, tmp_path):
    (tmp_path / "broken.py").write_text(
        "from dataclasses import dataclass\n\nfrom unlearnbench.algos.ga import GradientAscent\n\n\n"
        "@dataclass\nclass Broken(GradientAscent):\n"
        "    def after_step(self, training):\n"
        "        if training.context.processes.is_main:\n            raise OSError(28, 'No space left on device')\n"
    )
    words = "algo=ga", "algo._target_=broken.Broken", "algo.steps=3", "algo.batch=4", "training.processes=2"
    outcome = together(*SMALL, *words, "hydra.run.dir=two")
    assert outcome.returncode != 0
    assert "no space is left on the disk" in outcome.stderr
    assert json.loads((tmp_path / "two/run.json").read_text())["status"] == "error"


def average_gradients(rank, address, folder):
    """Share a step in one of two processes, average the gradient, and save the result in the folder."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": address, "RANK": str(rank), "WORLD_SIZE": "2"}
    context = connect_processes("cpu").context(TrainingContext())
    whole = Batch([f"{i}" for i in range(6)], [""] * 6, torch.arange(6.0)[:, None])
    generator = torch.Generator().manual_seed(0)
    part, _, own = context.share(Step(whole, whole, generator))
    weight, unused = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(2))
    loss = (weight * part.latents[:, 0]).mean()
    loss.backward()
    value = context.average(loss, [weight, unused])
    noise = torch.rand(1, generator=own).item()
    torch.save({"prompts": part.prompts, "loss": value, "gradient": weight.grad, "noise": noise,
                "unused": unused.grad is None, "next": torch.rand(1, generator=generator)}, folder / f"{rank}.pt")  # fmt: skip


def test_parts_make_the_batch_and_their_mean_gradient_is_that_of_the_whole(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = str(free.getsockname()[1])
    torch.multiprocessing.start_processes(average_gradients, (address, tmp_path), nprocs=2, start_method="fork")
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert (one["prompts"], two["prompts"]) == (["0", "2", "4"], ["1", "3", "5"])
    assert one["loss"] == two["loss"] == 2.5
    assert one["gradient"] == two["gradient"] == 2.5
    assert one["noise"] != two["noise"]
    assert one["next"] == two["next"]
    assert one["unused"]
    assert two["unused"]


@pytest.mark.parametrize(
    ("processes", "batch", "problem"),
    [
        (
            2,
            4,
            "training.processes=2, but the number of processes is 1; "
            "start it by torchrun --nproc_per_node 2 -m unlearnbench run ...",
        ),
        (1, 3, None),
    ],
)
def test_a_shared_training_needs_its_processes(processes, batch, problem):
    assert distributed_problem(processes, batch) == problem


def test_a_batch_that_is_not_divisible_is_reported(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert distributed_problem(2, 3) == "algo.batch=3 is not divisible by training.processes=2"
