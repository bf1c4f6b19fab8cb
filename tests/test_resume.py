"""A run that was killed is taken up again, and nobody can tell by the result."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path

import pytest
import torch
from by_hand import CHURCH

from unlearnbench import bench, checkpoint
from unlearnbench.algos.ga import GradientAscent
from unlearnbench.config import choices, compose
from unlearnbench.journal import Journal
from unlearnbench.results import load_run
from unlearnbench.spec import Spec

STEPS = 4
BEFORE = 2
OWN_LOOP = ("mace",)
TIMES = ("seconds", "total_seconds", "peak_memory_mb")


class Kill(BaseException):
    """Stands for SIGKILL where the process must go on."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def result(folder):
    """All that a run made, less what is measured in seconds or megabytes of the process."""
    kept = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix in (".png", ".safetensors", ".jsonl") or name == "per_image.json":
            kept[name] = path.read_bytes()
    kept["metrics.json"] = [v for v in json.loads((folder / "metrics.json").read_text()) if v["metric"] not in TIMES]
    kept["train.csv"] = [row[:2] for row in csv.reader((folder / "train.csv").open())]
    return kept


# --- training -----------------------------------------------------------------------------------------------------------


def trained(loaded, examples, words, folder, stop=None):
    """The weights that an algorithm leaves, and train.csv; killed after `stop` steps, if given."""
    spec = Spec.of(compose("experiment=smoke", *words, f"algo.steps={STEPS}", "algo.batch=1"))
    model, journal = copy.deepcopy(loaded), Journal(folder, 0, "key")
    spec.algo.journal = journal

    def log(step, loss):
        if step - 1 == stop:
            raise Kill
        journal(step, loss)

    names = spec.algo.unlearn(model, *copy.deepcopy(examples), spec.concept, 0, log)
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach() for name in names}, [row[:2] for row in csv.reader((folder / "train.csv").open())]


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("name", [name for name in choices("algo") if compose(f"algo={name}").algo.steps > 0])
def test_a_training_that_was_killed_ends_with_the_same_weights(name, loaded, examples, algo_words, tmp_path, capsys):
    words = algo_words(name)
    whole, rows = trained(loaded, examples, words, tmp_path / "whole")
    with pytest.raises(Kill):
        trained(loaded, examples, words, tmp_path / "cut", BEFORE)
    capsys.readouterr()
    again, rows_again = trained(loaded, examples, words, tmp_path / "cut")
    assert equal(whole, again)
    assert rows == rows_again
    assert ("goes on after step 2" in capsys.readouterr().err) == (name not in OWN_LOOP)


class Hidden(GradientAscent):
    """A method that keeps something and does not say so."""

    def loss(self, *given):
        self.scale = getattr(self, "scale", 1.0) * 1.5
        return self.scale * super().loss(*given)


def test_a_method_that_does_not_say_what_it_keeps_is_trained_again(loaded, examples, tmp_path):
    def train(stop=None):
        algo, model = Hidden(steps=STEPS, lr=1e-3, train="xattn"), copy.deepcopy(loaded)
        algo.journal = Journal(tmp_path, 0, "key")

        def log(step, loss):
            if step - 1 == stop:
                raise Kill

        names = algo.unlearn(model, *examples, CHURCH, 0, log)
        return {name: parameter for name, parameter in model.named_parameters() if name in names}

    with pytest.raises(Kill):
        train(BEFORE)
    assert not (tmp_path / "training.safetensors").exists()
    assert equal(train(), train())


@pytest.mark.parametrize("damage", ["cut", "flipped", "of another training"])
def test_a_state_that_is_damaged_or_of_another_training_is_not_taken(damage, loaded, examples, tmp_path, capsys):
    whole, rows = trained(loaded, examples, ["algo=ga"], tmp_path / "whole")
    with pytest.raises(Kill):
        trained(loaded, examples, ["algo=ga"], tmp_path / "cut", BEFORE)
    path = tmp_path / "cut/training.safetensors"
    data = path.read_bytes()
    if damage == "of another training":
        tensors, note = checkpoint.read(path)
        checkpoint.write_sealed(path, tensors, {**note, "key": "other"})
    else:
        path.write_bytes(data[:-9] if damage == "cut" else data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    capsys.readouterr()
    again, rows_again = trained(loaded, examples, ["algo=ga"], tmp_path / "cut")
    assert ("training.safetensors is damaged and is made again" in capsys.readouterr().err) == (damage != "of another training")
    assert equal(whole, again)
    assert rows == rows_again


def test_the_state_is_written_from_time_to_time(loaded, examples, tmp_path):
    spec = Spec.of(compose("experiment=smoke", "algo=ga", "algo.batch=1"))
    for every, there in ((3600, False), (0, True)):
        spec.algo.journal = Journal(tmp_path, every, "key")
        spec.algo.unlearn(copy.deepcopy(loaded), *examples, spec.concept, 0, spec.algo.journal)
        assert (tmp_path / "training.safetensors").exists() == there
    spec.algo.journal.close()
    assert not (tmp_path / "training.safetensors").exists()


# --- whole runs ---------------------------------------------------------------------------------------------------------

WORDS = ("experiment=smoke", "algo=surgery", "algo.steps=3", "checkpoint_every=0", "metrics=quick", "sample.batch=3")


def do(folder, *words):
    return bench.execute(Spec.of(compose(*WORDS, *words)), folder, WORDS)


class Killer:
    """Ends the process at its n-th renaming, or lets it live and counts them: after that nothing is renamed or removed."""

    def __init__(self, monkeypatch, at=None):
        self.count, self.at = 0, at
        replace, unlink = Path.replace, Path.unlink

        def dying_replace(path, target):
            self.count += 1
            if self.at is not None and self.count >= self.at:
                raise Kill
            return replace(path, target)

        def dying_unlink(path, missing_ok=False):
            if self.at is not None and self.count >= self.at:
                raise Kill
            unlink(path, missing_ok)

        monkeypatch.setattr(Path, "replace", dying_replace)
        monkeypatch.setattr(Path, "unlink", dying_unlink)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, shared_cache):
    """A run that nothing stopped, and how often it renamed a file."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        killer = Killer(patch)
        do(folder / "run", f"cache={folder / 'cache'}")
    return folder / "run", killer.count


def killed(folder, monkeypatch, at):
    with monkeypatch.context() as patch:
        Killer(patch, at)
        with pytest.raises(Kill):
            do(folder, "cache=cache")


@pytest.mark.parametrize("share", [0.05, 0.2, 0.45, 0.62, 0.8, 0.97])
def test_a_run_that_was_killed_is_taken_up_again_with_the_same_result(share, whole, tmp_path, monkeypatch):
    folder, count = whole
    killed(tmp_path / "run", monkeypatch, round(share * count))
    assert load_run(tmp_path / "run").log["status"] == "started"
    done = bench.resume(tmp_path / "run")
    assert done.log["status"] == "done"
    assert len(done.log["resumed"]) == 1
    assert result(tmp_path / "run") == result(folder)
    assert not list(tmp_path.rglob(".*"))


def test_a_run_that_was_killed_before_it_said_anything_begins_with_the_same_words(whole, tmp_path, monkeypatch):
    killed(tmp_path / "run", monkeypatch, 1)
    assert not (tmp_path / "run/run.json").exists()
    do(tmp_path / "run", "cache=cache", "resume=true")
    assert result(tmp_path / "run") == result(whole[0])


def test_a_run_that_is_done_is_not_done_again(whole, files):
    folder, _ = whole
    before = files(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "_work", pytest.fail)
        assert bench.resume(folder).values == load_run(folder).values
    assert files(folder) == before
