"""Log messages on the terminal: one line each, as wide as it is."""

from __future__ import annotations

import logging
from typing import Any

from rich.console import Console, ConsoleRenderable
from rich.logging import RichHandler
from rich.text import Text

LOGGERS = ("unlearnbench", "hydra_plugins.unlearnbench_submitit")


class LineHandler(RichHandler):
    """Rich's handler without its columns: the message alone, on stderr; warnings are yellow, errors red."""

    def __init__(self) -> None:
        super().__init__(console=Console(stderr=True, soft_wrap=True, highlight=False), markup=False, highlighter=None)

    def render(self, *, record: logging.LogRecord, traceback: Any, message_renderable: ConsoleRenderable) -> ConsoleRenderable:
        """The message, coloured by its level."""
        style = "red" if record.levelno >= logging.ERROR else "yellow" if record.levelno >= logging.WARNING else ""
        return Text(record.getMessage(), style)


def show_messages() -> None:
    """Print the messages of this package from level INFO on; a second call changes nothing."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(handler, LineHandler) for handler in logger.handlers):
            logger.addHandler(LineHandler())
            logger.setLevel(logging.INFO)
