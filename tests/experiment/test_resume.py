"""A run that was killed is taken up again, and nobody can tell by the result."""

from __future__ import annotations

import copy
import csv
import json
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pytest
import torch
from config_classes import classes_of
from filelock import FileLock
from omegaconf import OmegaConf
from quick_copy import copied
from shared_examples import CHURCH, by_kind

from unlearnbench import sampling
from unlearnbench.algos.base import Unlearner
from unlearnbench.algos.ga import GradientAscent
from unlearnbench.config.compose import compose
from unlearnbench.config.errors import Interrupted, RunError, UserError
from unlearnbench.config.paths import CONF
from unlearnbench.data.concept import Concept
from unlearnbench.data.images import Images
from unlearnbench.experiment import forget, run
from unlearnbench.experiment.checkpointing import Interrupt, TrainingJournal, deferred_interrupt
from unlearnbench.experiment.run import execute, resume
from unlearnbench.experiment.run_folder import open_run
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.models.sd import StableDiffusion
from unlearnbench.results.run import Run, load_run
from unlearnbench.storage.atomic import claim_folder
from unlearnbench.storage.tensors import read_tensors, write_hashed

STEPS = 3
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


class KilledJournal(TrainingJournal):
    """A journal that saves after each step, and is killed after `stop` steps, if given."""

    def __init__(self, folder, stop=None):
        super().__init__(folder, 0, "key")
        self.stop = stop

    def log(self, step, loss):
        if step - 1 == self.stop:
            raise Kill
        super().log(step, loss)


def trained(loaded, examples, spec, folder, stop=None):
    """The weights that an algorithm leaves, and train.csv; killed after `stop` steps, if given."""
    model = copied(loaded)
    names, _ = spec.algo.unlearn(model, *copy.deepcopy(examples), spec.concept, 0, KilledJournal(folder, stop))
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach() for name in names}, [row[:2] for row in csv.reader((folder / "train.csv").open())]


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


TRAINED = [name for name in classes_of("algo") if OmegaConf.load(CONF / f"algo/{name}.yaml").steps > 0]


@pytest.mark.parametrize("name", by_kind(TRAINED, ("ga", "duo", "receler", "mace")))
def test_a_training_that_was_killed_ends_with_the_same_weights(name, loaded, examples, algo_spec, tmp_path, capsys):
    spec = algo_spec(name, steps=STEPS, batch=1)
    whole, rows = trained(loaded, examples, spec, tmp_path / "whole")
    with pytest.raises(Kill):
        trained(loaded, examples, spec, tmp_path / "cut", BEFORE)
    capsys.readouterr()
    again, rows_again = trained(loaded, examples, spec, tmp_path / "cut")
    assert equal(whole, again)
    assert rows == rows_again
    assert ("resume training after step 2" in capsys.readouterr().err) == (name not in OWN_LOOP)


@pytest.mark.parametrize("stop", [1, pytest.param(3, marks=pytest.mark.thorough)])
def test_stereo_resumes_within_a_round_and_at_its_end(stop, loaded, examples, algo_spec, tmp_path):
    spec = algo_spec("stereo", steps=6, batch=1, rounds=2, lr=1e-3, inversion_steps=1, sample_steps=2)
    whole, rows = trained(loaded, examples, spec, tmp_path / "whole")
    with pytest.raises(Kill):
        trained(loaded, examples, spec, tmp_path / "cut", stop)
    again, rows_again = trained(loaded, examples, spec, tmp_path / "cut")
    assert equal(whole, again)
    assert rows == rows_again


@dataclass
class CountState:
    """What a method of the user's own keeps from step to step."""

    count: int = 0
    scale: float = 1.0
    average: dict[str, torch.Tensor] = field(default_factory=dict)


class Counting(GradientAscent):
    """A method of the user's own, whose loss depends on what it did in earlier steps."""

    def begin(self, training):
        return CountState()

    def step_loss(self, training, step):
        state = training.state
        state.count, state.scale = state.count + 1, state.scale * 1.5
        state.average = {"of.scales": state.average.get("of.scales", torch.zeros(())) + state.scale / state.count}
        return state.average["of.scales"] * self.loss(training.model, training.original, *step)


def test_a_method_of_the_users_own_resumes_from_its_state_without_code_of_its_own(loaded, examples, tmp_path, capsys):
    def train(folder, stop=None):
        algo, model = Counting(steps=STEPS, lr=1e-3, train="xattn"), copied(loaded)
        names, _ = algo.unlearn(model, *examples, CHURCH, 0, KilledJournal(folder, stop))
        return {name: parameter for name, parameter in model.named_parameters() if name in names}

    whole = train(tmp_path / "whole")
    with pytest.raises(Kill):
        train(tmp_path / "cut", BEFORE)
    assert equal(train(tmp_path / "cut"), whole)
    assert "resume training after step 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"count": 1}, "begin returned dict; it must return a dataclass, or None"),
        (CountState(average={"scale": 1.0}), "state.average: a dict must hold tensors, not float"),
    ],
)
def test_a_state_that_cannot_be_saved_is_refused_before_the_first_step(state, message, loaded, examples, tmp_path):
    class Unsavable(GradientAscent):
        def begin(self, training):
            return state

    with pytest.raises(TypeError, match=message):
        Unsavable(steps=STEPS, train="xattn").unlearn(copied(loaded), *examples, CHURCH, 0, KilledJournal(tmp_path))
    assert not (tmp_path / "train.csv").exists()


class Hidden(GradientAscent):
    """A method that keeps something outside its state."""

    def loss(self, *given):
        self.scale = getattr(self, "scale", 1.0) * 1.5
        return self.scale * super().loss(*given)


def test_a_method_that_keeps_something_outside_its_state_is_refused(loaded, examples):
    with pytest.raises(RunError, match=r"Hidden sets self\.scale while it trains; return it in the State of begin"):
        Hidden(steps=STEPS, lr=1e-3, train="xattn").unlearn(copied(loaded), *examples, CHURCH, 0)


@pytest.mark.parametrize("damage", ["cut", "flipped", "of another training"])
def test_a_state_that_is_damaged_or_of_another_training_is_not_taken(damage, loaded, examples, algo_spec, tmp_path, capsys):
    spec = algo_spec("ga", steps=STEPS, batch=1)
    whole, rows = trained(loaded, examples, spec, tmp_path / "whole")
    with pytest.raises(Kill):
        trained(loaded, examples, spec, tmp_path / "cut", BEFORE)
    path = tmp_path / "cut/training.safetensors"
    data = path.read_bytes()
    if damage == "of another training":
        tensors, note = read_tensors(path)
        write_hashed(path, tensors, {**note, "key": "other"})
    else:
        path.write_bytes(data[:-9] if damage == "cut" else data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    capsys.readouterr()
    again, rows_again = trained(loaded, examples, spec, tmp_path / "cut")
    assert ("training.safetensors is damaged; recomputing it" in capsys.readouterr().err) == (damage != "of another training")
    assert equal(whole, again)
    assert rows == rows_again


def test_the_state_is_written_from_time_to_time(loaded, examples, tmp_path):
    spec = RunSpec.of(compose("experiment=smoke", "algo=ga", "algo.batch=1"))
    for every, there in ((3600, False), (0, True)):
        journal = TrainingJournal(tmp_path, every, "key")
        spec.algo.unlearn(copied(loaded), *examples, spec.concept, 0, journal)
        assert (tmp_path / "training.safetensors").exists() == there
    journal.close()
    assert not (tmp_path / "training.safetensors").exists()


# --- whole runs ---------------------------------------------------------------------------------------------------------

WORDS = (
    "experiment=smoke", "algo=surgery", "algo.steps=3", "checkpoint_every=0", "metrics=quick",
    "sample.batch=3", "sample.prompts=1", "retain.splits=[far]",
)  # fmt: skip


def do(folder, *words):
    return execute(RunSpec.of(compose(*WORDS, *words)), folder, WORDS)


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


@pytest.fixture
def interruptible():
    """Ctrl-C as in a terminal: a process that was started in the background ignores it."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_saves_the_training_after_the_step_and_the_run_goes_on_with_the_same_result(whole, tmp_path, monkeypatch):
    folder, _ = whole
    do_step, steps = Unlearner._step, []

    def step(*given):
        steps.append(given)
        if len(steps) == 2:
            signal.raise_signal(signal.SIGINT)
        return do_step(*given)

    with monkeypatch.context() as patch:
        patch.setattr(Unlearner, "_step", step)
        with pytest.raises(Interrupted, match=f"interrupted; `unlearnbench resume {tmp_path}/run` continues"):
            do(tmp_path / "run", "cache=cache", "checkpoint_every=60")
    assert len(steps) == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert load_run(tmp_path / "run").status == "interrupted"
    assert (tmp_path / "run/training.safetensors").exists()
    with monkeypatch.context() as patch:
        patch.setattr(Unlearner, "_step", step)
        assert resume(tmp_path / "run").status == "done"
    assert len(steps) == 3
    assert result(tmp_path / "run") == result(folder)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RunError("the loss became nan")])
def test_a_failure_adds_no_seconds_for_the_checkpoint_has_those_of_the_training(error, tmp_path, monkeypatch):
    def train(spec, recorder, *_):
        recorder.update(fingerprint="f")
        recorder.seconds.add(100)
        raise error

    monkeypatch.setattr(run, "unlearn_and_measure", train)
    record = Run(tmp_path, {"status": "started", "seconds": 5.0})
    with pytest.raises((Interrupted, RunError)):
        run._record_outcome(None, record, torch.device("cpu"), None)
    assert json.loads((tmp_path / "run.json").read_text())["seconds"] == pytest.approx(5, abs=1)


@pytest.mark.usefixtures("interruptible")
def test_a_second_ctrl_c_stops_at_once():
    interrupt = Interrupt()

    def press_twice():
        with deferred_interrupt(interrupt):
            signal.raise_signal(signal.SIGINT)
            assert interrupt.requested
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        press_twice()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("share", by_kind([0.05, 0.3, 0.55, 0.75, 0.97], [0.55]))
def test_a_run_that_was_killed_is_taken_up_again_with_the_same_result(share, whole, tmp_path, monkeypatch):
    folder, count = whole
    killed(tmp_path / "run", monkeypatch, round(share * count))
    assert load_run(tmp_path / "run").log["status"] == "started"
    done = resume(tmp_path / "run")
    assert done.log["status"] == "done"
    assert len(done.log["resumed"]) == 1
    assert result(tmp_path / "run") == result(folder)
    assert not list(tmp_path.rglob(".*"))


def test_a_run_that_was_killed_before_it_said_anything_begins_with_the_same_words(whole, tmp_path, monkeypatch):
    killed(tmp_path / "run", monkeypatch, 1)
    assert not (tmp_path / "run/run.json").exists()
    do(tmp_path / "run", "cache=cache", "resume=true")
    assert result(tmp_path / "run") == result(whole[0])


def test_a_run_that_is_done_is_not_done_again(whole):
    folder, _ = whole
    before = (folder / "run.json").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "unlearn_and_measure", pytest.fail)
        assert resume(folder).values == load_run(folder).values
    assert (folder / "run.json").read_bytes() == before


def opened(folder, *words):
    return open_run(RunSpec.of(compose(*WORDS, "resume=true", *words)), folder, torch.device("cpu"), ())


def test_a_run_that_is_done_is_no_result_of_other_settings(whole):
    assert opened(whole[0]).values == load_run(whole[0]).values
    assert opened(whole[0], "cache=elsewhere", "cache_limit=1GB").log["status"] == "done"
    with pytest.raises(UserError, match=r"the run began with other settings \(seed 0, now 4\); choose another folder"):
        opened(whole[0], "seed=4")


def test_settings_that_came_later_and_a_later_measurement_are_no_other_settings(whole, tmp_path):
    (tmp_path / "run").mkdir()
    log = json.loads((whole[0] / "run.json").read_text())
    del log["config"]["sample"]["row_size"]
    (tmp_path / "run/run.json").write_text(json.dumps(log))
    assert opened(tmp_path / "run").log["status"] == "done"
    (tmp_path / "run/run.json").write_text(json.dumps(log | {"status": "error"}))
    assert opened(tmp_path / "run").log["status"] == "started"
    log["config"]["metrics"]["fid"] = {"name": "fid"}
    (tmp_path / "run/run.json").write_text(json.dumps(log))
    with pytest.raises(UserError, match=r"other settings \(metrics\.fid"):
        opened(tmp_path / "run")
    (tmp_path / "run/run.json").write_text(json.dumps(log | {"measured": [["metrics=fid"]]}))
    assert opened(tmp_path / "run").log["status"] == "done"


@pytest.fixture
def cut(whole, tmp_path):
    """A copy of the whole run as it stood when everything was sampled and nothing measured."""
    folder = shutil.copytree(whole[0], tmp_path / "run")
    log = json.loads((folder / "run.json").read_text()) | {"status": "started"}
    (folder / "run.json").write_text(json.dumps(log))
    for name in ("metrics.json", "tables.md", "tables.csv", "per_image.json"):
        (folder / name).unlink()
    return folder


def test_what_is_sampled_and_saved_is_not_made_again(cut, whole, monkeypatch):
    monkeypatch.setattr(sampling.ImageGenerator, "batch", pytest.fail)
    monkeypatch.setattr("unlearnbench.algos.surgery.Surgery.unlearn", pytest.fail)
    resume(cut)
    assert result(cut) == result(whole[0])


@pytest.mark.parametrize("name", ["weights.safetensors", "images/after/00002.png", "images/before/00004.png"])
def test_a_file_that_was_damaged_meanwhile_is_reported_and_repeated(name, cut, whole, capsys, caplog):
    data = (cut / name).read_bytes()
    (cut / name).write_bytes(data[: len(data) // 2])
    resume(cut)
    assert f"{cut / name} is damaged" in capsys.readouterr().err + caplog.text
    assert result(cut) == result(whole[0])


def test_a_run_goes_on_only_with_what_it_began_with(cut, monkeypatch):
    def fails(*words, match):
        with pytest.raises(UserError, match=match):
            do(cut, "resume=true", *words)

    before = (cut / "run.json").read_bytes()
    fails("algo.lr=0.5", "seed=4", match=r"run: the run began with other settings \(algo.lr .*, now 0.5, seed 0, now 4\); choose")
    load = Concept.load
    with monkeypatch.context() as patch:
        patch.setattr(Concept, "load", lambda concept: load(concept)[::-1])
        fails(match="the prompt lists have changed since the run began")
    with FileLock(cut / "run.lock"):
        fails(match="another process is working on this run")
    (cut / "run.lock").unlink()
    assert (cut / "run.json").read_bytes() == before
    with monkeypatch.context() as patch:
        patch.setattr(StableDiffusion, "fingerprint", lambda _: "other")
        fails(match="the run began with another model, or on another kind of device")


def test_a_disk_that_was_full_is_no_reason_to_begin_again(whole, command, tmp_path):
    resource = pytest.importorskip("resource", reason="Windows has no limit of files")
    words = [*WORDS, "cache=cache", "hydra.run.dir=run"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
        outcome = command("run", *words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert outcome.code == 1
    line = "run failed: no space is left on the disk; free some and run `unlearnbench resume run`"
    assert outcome.err.splitlines()[-1].startswith(line)
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]
    assert command("resume", "run").code == 0
    assert result(tmp_path / "run") == result(whole[0])


def test_concepts_forgotten_in_turn_are_not_forgotten_twice(tmp_path, monkeypatch, capsys):
    words = ("algo=ga", "concept=[church,parachute]", "concept.continual=true", "metrics=integrity", "sample.prompts=1")
    do(tmp_path / "whole", *words, "cache=cache")
    with monkeypatch.context() as patch:
        sample = sampling.sample
        patch.setattr(forget, "sample", lambda name, *rest: 1 / 0 if name == "sample after church" else sample(name, *rest))
        with pytest.raises(RunError, match="division by zero"):
            do(tmp_path / "run", *words, "cache=cache")
    capsys.readouterr()
    resume(tmp_path / "run")
    lines = capsys.readouterr().err
    assert lines.count("unlearn parachute: 3 to do") == 1
    assert "unlearn church" not in lines
    assert result(tmp_path / "run") == result(tmp_path / "whole")


# --- by the command line ------------------------------------------------------------------------------------------------

FEW = ("experiment=smoke", "algo=none", "metrics=integrity", "sample.prompts=1", "retain.splits=[far]")


def unfinished(folder):
    log = json.loads((folder / "run.json").read_text()) | {"status": "started"}
    (folder / "run.json").write_text(json.dumps(log))


def test_the_same_words_with_resume_find_their_newest_unfinished_run(command, tmp_path):
    runs = tmp_path / "outputs/none-church"
    for name in ("2026-01-01_00-00-00", "2026-01-02_00-00-00", "2026-01-03_00-00-00"):
        assert command("run", *FEW, f"hydra.run.dir=outputs/none-church/{name}", f"seed={name[9]}").code == 0
        unfinished(runs / name)
    assert command("run", *FEW, "seed=2", "resume=true").code == 0
    assert [load_run(path).log["status"] for path in sorted(runs.iterdir())] == ["started", "done", "started"]
    assert command("run", *FEW, "seed=2", "resume=true").code == 0
    assert len(list(runs.iterdir())) == 4
    assert "resume" not in load_run(runs / "2026-01-02_00-00-00").log["config"]


def test_every_unfinished_run_of_a_sweep_is_taken_up_again(command, tmp_path):
    assert command("run", "-m", *FEW, "seed=0,1,2", "hydra.sweep.dir=sweep").code == 0
    first, second, third = sorted((tmp_path / "sweep").glob("*/"))
    before = (first / "run.json").read_bytes()
    unfinished(second)
    shutil.rmtree(third)
    outcome = command("resume", "sweep")
    assert outcome.code == 0
    assert "3 of 3 runs done" in outcome.out
    assert (first / "run.json").read_bytes() == before
    assert [load_run(path).log["config"]["seed"] for path in (first, second, third)] == [0, 1, 2]
    (tmp_path / "sweep/multirun.yaml").unlink()
    unfinished(third)
    assert command("resume", "sweep").code == 0
    assert load_run(third).log["status"] == "done"


def test_what_cannot_be_taken_up_again_is_reported(command, tmp_path):
    assert command("resume", "nowhere").err == "error: nowhere: no run there\n"
    outcome = command("run", "-m", *FEW, "resume=true")
    assert outcome.err.startswith(
        "error: resume=true: of which sweep? name it with hydra.sweep.dir=..., or `unlearnbench resume FOLDER`"
    )
    assert outcome.code == 2
    assert not list(tmp_path.rglob("*.json"))


def test_two_runs_of_one_second_have_two_folders_whatever_the_clock_says(command, monkeypatch, tmp_path):
    stamp = "2026-01-01_00-00-00"

    class Stopped(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 1)

    monkeypatch.setattr("hydra.core.utils.datetime", Stopped)
    monkeypatch.setattr("time.strftime", lambda form, *_: form.replace("%Y-%m-%d_%H-%M-%S", stamp))
    for _ in range(2):
        assert command("run", *FEW).code == 0
    for _ in range(2):
        assert command("run", "-m", *FEW).code == 0
    actual = sorted(str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("run.json"))
    assert actual == [
        f"outputs/none-church/{stamp}", f"outputs/none-church/{stamp}-2",
        f"outputs/sweeps/{stamp}-2/0-none-church", f"outputs/sweeps/{stamp}/0-none-church",
    ]  # fmt: skip


def test_folders_are_claimed_one_by_one(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda _: claim_folder(tmp_path / "run", "images"), range(16)))
    assert sorted(path.name for path in claimed) == sorted(["run", *(f"run-{n}" for n in range(2, 17))])


# --- prompts ------------------------------------------------------------------------------------------------------------

PROMPTS = [
    'a "red" church', "a church, blue", "../../church", "C:\\church", "église 教会 ⛪", "a church\u2028or\x85two", "church }",
]  # fmt: skip


def test_any_prompt_is_sampled_measured_and_found_again(command, tmp_path):
    with (tmp_path / "mine.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["prompt"], *([prompt] for prompt in PROMPTS)])
    words = ("sample.prompts=null", "sample.per_prompt=1", "concept.prompts=mine.csv", "hydra.run.dir=run")
    assert command("run", *FEW, *words).code == 0
    images = Images(tmp_path / "run/images/after")
    assert [record.prompt for record in images.where("forget")] == PROMPTS
    assert all(images.intact(record) for record in images)
    assert not list(tmp_path.rglob("*church*.png"))
    before = result(tmp_path / "run")
    unfinished(tmp_path / "run")
    assert command("resume", "run").code == 0
    assert result(tmp_path / "run") == before


# --- a process that is killed -------------------------------------------------------------------------------------------
