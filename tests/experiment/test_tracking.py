"""A run in TensorBoard: the losses and numbers there are the run's own."""

from __future__ import annotations

import pytest

from unlearnbench.config.errors import UserError
from unlearnbench.experiment import tracking
from unlearnbench.reports.plots import read_losses


def test_tensorboard_gets_every_loss_and_number(run, tmp_path):
    pytest.importorskip("tensorboard", reason="no tensorboard here")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = run("tracker=tensorboard", "algo=ga")
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [
        (s, pytest.approx(x)) for s, x in read_losses(done.folder)
    ]
    [kept] = events.Scalars("Retention/integrity/retain")
    assert (kept.step, kept.value) == (2, pytest.approx(done.find("integrity", "retain").unlearned))


def test_a_tracker_that_is_unknown_or_not_installed_is_reported_before_the_run(run, monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"tracker=tensorbord: did you mean 'tensorboard'\?"):
        run("tracker=tensorbord")
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"tracker=wandb: its package is not installed; pip install 'unlearnbench\[wandb\]'"):
        run("tracker=wandb")
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_fails_is_one_warning_for_the_run_is_done(smoke, monkeypatch, caplog):
    def fail(name, run):
        raise RuntimeError("api_key not configured\ncall wandb.login")

    monkeypatch.setattr(tracking, "_log_run", fail)
    tracking.track("wandb", smoke)
    assert caplog.messages == ["tracker=wandb: the run is done, but was not logged (RuntimeError: api_key not configured)"]
