"""Progress: the time left from all ticks, one line for a run, nothing that stands still."""

from __future__ import annotations

import io
import re

import pytest
import torch
from rich.console import Console
from shared_examples import by_kind

from unlearnbench import console
from unlearnbench.config.compose import compose
from unlearnbench.console import part_of_step, planned_steps, progress_bar, run_plan, tick
from unlearnbench.console.run_plan import PlannedStep
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.experiment.steps import run_steps
from unlearnbench.sampling import ImageGenerator, SamplingBatch


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test moves it."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

        def time(self):
            return self.now

    fake = Clock()
    monkeypatch.setattr(run_plan, "time", fake)
    monkeypatch.setattr(console, "time", fake)
    return fake


def rendered(bar, width=80):
    """The line as text."""
    return bar.render(width).plain


def test_batches_of_several_minutes_have_a_time_left(clock):
    with progress_bar("sample original", 96) as bar:
        assert bar.left() is None
        clock.now += 300
        bar.advance(32)
        assert bar.left() == pytest.approx(600)
        clock.now += 100
        assert bar.left() == pytest.approx(500), "it counts down between two ticks"
        clock.now += 200
        bar.advance(32)
        assert bar.left() == pytest.approx(300)
        clock.now += 301
        assert bar.left() is None, "longer than expected: no 0:00 that stands still"


def test_a_tick_for_a_part_of_a_batch_moves_the_bar_and_never_back(clock):
    with progress_bar("sample original", 64) as bar:
        bar.size = 32
        clock.now += 10
        tick(0.5)
        assert rendered(bar).split() == ["sample", "original", "━" * 30, "16/64", "0:30", "left"]
        tick(0.25)
        assert "16/64" in rendered(bar)
        with part_of_step(0.5, 1.0), part_of_step(0.0, 0.5):
            tick(1.0)
        assert "24/64" in rendered(bar)
        bar.advance(32)
        assert "32/64" in rendered(bar)
        tick(1.0)
        assert "63/64" in rendered(bar), "an image counts when it is there"


def test_what_the_cache_holds_does_not_count_as_work(clock):
    with progress_bar("sample original", 96) as bar:
        bar.skip(64)
        assert bar.left() is None
        clock.now += 50
        bar.advance(16)
        assert bar.left() == pytest.approx(50)


def test_a_run_has_one_line_with_its_step_and_the_time_left_in_all_steps(clock):
    steps = [PlannedStep("load model"), PlannedStep("sample original", 100), PlannedStep("unlearn", 200, "unlearn church")]
    steps += [PlannedStep("sample unlearned", 100), PlannedStep("measure", 50)]
    with planned_steps(steps):
        with progress_bar("load model", None) as bar:
            clock.now += 60
            assert rendered(bar) == "step 1 of 5  load model  1:00", "what cannot be counted shows that time passes"
        with progress_bar("sample original", 10) as bar:
            clock.now += 10
            bar.advance(1)
            assert bar.left() == pytest.approx(10 * 45 - 10), "what is not seen yet works at the pace that is seen"
            clock.now += 90
            bar.advance(9)
        with progress_bar("unlearn", None) as outer:
            assert outer.left() == pytest.approx(350)
            with progress_bar("unlearn", 20) as bar:
                assert bar.left() == pytest.approx(350), "before its first step"
                clock.now += 1
                bar.advance(1, remark="loss 0.1234")
                assert bar.left() == pytest.approx(19 + 100 + 50 * (101 / 110), rel=0.01)
                assert rendered(bar).startswith("step 3 of 5  unlearn church  ━")
                assert rendered(bar).endswith("1/20  2:45 left  loss 0.1234")
            with progress_bar("fisher information", 4) as bar:
                assert rendered(bar).startswith("step 3 of 5  fisher information")
        with progress_bar("sample unlearned", 10) as bar:
            clock.now += 10
            bar.advance(1)
            assert bar.heading == "step 4 of 5, sample unlearned"


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_line_fits_the_terminal_and_shows_the_time_left(width, clock):
    name = "sample forget set of van_gogh"
    with planned_steps([PlannedStep(name, 10)]), progress_bar(name, 30000) as bar:
        clock.now += 7322
        bar.advance(15000, remark="x" * 200)
        line = rendered(bar, width)
    assert len(line) <= width
    assert line.startswith("step 1 of 1")
    assert line.endswith("15000/30000  2:02:02 left")


def test_the_lines_without_a_terminal_name_the_step_and_the_time_left(clock, capsys):
    with planned_steps([PlannedStep("sample original", 10), PlannedStep("measure", 10)]):
        with progress_bar("sample original", 4) as bar:
            clock.now += 31
            bar.advance()
        with progress_bar("measure", 2):
            pass
    assert capsys.readouterr().err.splitlines() == [
        "step 1 of 2, sample original: 4 to do",
        "step 1 of 2, sample original: 1 of 4, 3:37 left",
        "step 2 of 2, measure: 2 to do",
    ]


def test_on_a_terminal_a_run_is_one_line_that_goes_when_it_ends(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=screen, force_terminal=True, width=80, legacy_windows=False))
    with planned_steps([PlannedStep("sample original"), PlannedStep("measure")]):
        for name in ("sample original", "measure"):
            with progress_bar(name, 2) as bar:
                bar.advance(2)
    text = screen.getvalue()
    assert text.count("\n") == 1
    assert "step 2 of 2  measure  ━" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert text.endswith("\n\x1b[?25h\r\x1b[1A\x1b[2K")


@pytest.mark.parametrize(
    "words",
    by_kind(
        [
            "algo=ga", "algo=uce", "algo=substitute", "algo=ga concept=[church,parachute] concept.continual=true",
            "algo=ga concept=[church,parachute]",
        ],
        ["algo=substitute", "algo=ga concept=[church,parachute] concept.continual=true"],
    ),
)  # fmt: skip
def test_a_runs_bars_are_its_planned_steps_in_order_and_no_two_have_one_name(words, run, tmp_path, monkeypatch, capsys):
    words = (*words.split(), "metrics=integrity", "sample.prompts=1", "retain.splits=[far]", f"cache={tmp_path / 'cache'}")
    steps = run_steps(RunSpec.of(compose("experiment=smoke", *words)))
    run(*words)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    begun = list(dict.fromkeys(line.partition(":")[0] for line in lines))
    assert begun == [f"step {i} of {len(steps)}, {step.title or step.name}" for i, step in enumerate(steps, 1)]
    assert len({step.title or step.name for step in steps}) == len(steps)


def test_sampling_ticks_at_each_step_and_while_it_decodes(tiny):
    ticks = []
    with progress_bar("sample", 2) as bar:
        bar.size, bar.tick = 2, ticks.append
        ImageGenerator(tiny).batch(SamplingBatch(["a church"] * 2, [0, 1], 6, 2.0))
    assert ticks == pytest.approx([*(i / 8 for i in range(1, 7)), 1.0])


def test_a_batch_that_is_halved_goes_on_counting(tiny, monkeypatch):
    ticks, generate = [], ImageGenerator._generate

    def out_of_memory_above_one(self, batch):
        if len(batch.prompts) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(self, batch)

    monkeypatch.setattr(ImageGenerator, "_generate", out_of_memory_above_one)
    with progress_bar("sample", 2) as bar:
        bar.tick = ticks.append
        ImageGenerator(tiny).batch(SamplingBatch(["a church"] * 2, [0, 1], 2, 2.0))
    assert ticks == sorted(ticks)
    assert len(ticks) == 6
    assert ticks[2] == pytest.approx(0.5)


def test_a_command_that_starts_slowly_says_so(monkeypatch, capsys):
    monkeypatch.setattr(console, "SILENCE", 0.0)
    with console.progress_line("starting") as line:
        for _ in range(100):
            if "starting" in (text := capsys.readouterr().err):
                break
            console.threading.Event().wait(0.01)
        assert text == "starting\n"
        assert not line.bars
