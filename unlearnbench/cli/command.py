"""How a command adds itself to the parser of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_command(
    commands: Commands, name: str, function: Callable[[argparse.Namespace], int], help_text: str, *examples: str
) -> argparse.ArgumentParser:
    """Add a command and return its parser.

    Args:
        commands: the commands that the parser has so far.
        name: what the user types.
        function: does the command; returns the exit code.
        help_text: one sentence for `unlearnbench --help` and for the command's own help.
        examples: command lines without the program's name, for the end of the help.
    """
    parser = commands.add_parser(
        name,
        help=help_text,
        description=f"{help_text[0].upper()}{help_text[1:]}.",
        epilog="\n".join(["examples:", *(f"  unlearnbench {example}" for example in examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(function=function)
    return parser


def add_overrides(parser: argparse.ArgumentParser, help_text: str = "Hydra overrides, as for `unlearnbench run`") -> None:
    """Let a command take Hydra overrides."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=help_text)
