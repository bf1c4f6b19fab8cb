"""Log messages on the terminal: one line each, as wide as it is."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleRenderable
from rich.logging import RichHandler
from rich.text import Text


class LineHandler(RichHandler):
    """Rich's handler without its columns: the message alone, on stderr; warnings are yellow, errors red."""

    def __init__(self) -> None:
        super().__init__(console=Console(stderr=True, soft_wrap=True, highlight=False), markup=False, highlighter=None)

    def render(self, *, record: logging.LogRecord, traceback: Any, message_renderable: ConsoleRenderable) -> ConsoleRenderable:
        """The message, coloured by its level."""
        style = "red" if record.levelno >= logging.ERROR else "yellow" if record.levelno >= logging.WARNING else ""
        return Text(record.getMessage(), style)


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
