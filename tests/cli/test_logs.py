"""Log messages on the terminal."""

from __future__ import annotations

import logging
import logging.config

import pytest

from unlearnbench.cli.logs import messages_held_back, show_messages


@pytest.fixture(autouse=True)
def _shown():
    show_messages()


def test_a_message_is_one_line_on_stderr_as_wide_as_it_is(capsys):
    show_messages()
    logging.getLogger("unlearnbench.somewhere").info(f"[red] {'x' * 300} tail")
    assert capsys.readouterr() == ("", f"[red] {'x' * 300} tail\n")


def test_messages_of_other_packages_below_a_warning_are_not_shown(capsys):
    logging.getLogger("hydra_plugins.other").info("launching 2 jobs")
    assert capsys.readouterr().err == ""


def test_messages_that_are_held_back_come_when_the_block_ends(capsys):
    log = logging.getLogger("hydra_plugins.unlearnbench_submitit")
    with messages_held_back(log.name):
        log.warning("job 1 ended")
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})  # as submitit does
        assert capsys.readouterr().err == ""
    assert capsys.readouterr().err == "job 1 ended\n"
    log.warning("job 2 ended")
    assert capsys.readouterr().err == "job 2 ended\n"
