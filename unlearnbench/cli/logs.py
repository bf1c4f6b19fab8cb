"""Log messages on the terminal: one line each, as wide as it is."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class LineHandler(logging.Handler):
    """Prints messages by the console of the progress bars, so that they appear above a bar; warnings are yellow, errors red."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        from unlearnbench.console import console

        style = "red" if record.levelno >= logging.ERROR else "yellow" if record.levelno >= logging.WARNING else None
        try:
            console.print(self.format(record), style=style, markup=False, highlight=False, soft_wrap=True)
        except Exception:
            self.handleError(record)


@contextmanager
def starting() -> Iterator[None]:
    """Say that a command starts until its first progress bar: libraries and models take seconds to load."""
    from unlearnbench.console import progress_line

    with progress_line("starting"):
        yield


def show_messages() -> None:
    """Print the messages of this package, and the warnings of Hydra's plugins; a second call changes nothing."""
    logging.getLogger("unlearnbench").setLevel(logging.INFO)
    for name in ("unlearnbench", "hydra_plugins"):
        logger = logging.getLogger(name)
        if not any(isinstance(handler, LineHandler) for handler in logger.handlers):
            logger.addHandler(LineHandler())


class RecordList(logging.Handler):
    """Collects messages; `logging.config.dictConfig`, which submitit calls, would empty a MemoryHandler."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message."""
        self.records.append(record)


@contextmanager
def messages_held_back(name: str) -> Iterator[None]:
    """Hold the messages of one logger back until the block ends: they would break a live table."""
    logger, messages = logging.getLogger(name), RecordList()
    logger.addHandler(messages)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = True
        logger.removeHandler(messages)
        for record in messages.records:
            logger.handle(record)
