"""How a command adds itself to the parser of the command line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

from unlearnbench.config.compose import full_name, setting_names
from unlearnbench.config.errors import UserError, similar

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
    parser.set_defaults(function=function, usage=parser.format_usage)
    return parser


def refuse_unknown_options(arguments: Sequence[str], options: Sequence[str]) -> None:
    """Refuse an option that is none, and say how a setting is written.

    Args:
        arguments: of a command that takes overrides.
        options: those of the command; each may be followed by "=VALUE".

    Raises:
        UserError: one argument begins with a dash and is not among the options.
    """
    for number, argument in enumerate(arguments):
        name, separator, value = argument.partition("=")
        if re.match(r"-+[a-zA-Z]", argument) and name not in options:
            following = arguments[number + 1] if number + 1 < len(arguments) else ""
            is_value = following and not following.startswith("-") and "=" not in following
            value = value if separator else following if is_value else "VALUE"
            key, known = name.lstrip("-"), [option for option in options if option.startswith("--")]
            setting = full_name(key, setting_names())
            if setting is None and (option := similar(name, known)):
                raise UserError(f"{argument}: no such option; {option.strip()}")
            raise UserError(f"{argument}: a setting has no dashes: {setting or key}={value}")


def add_overrides(parser: argparse.ArgumentParser, help_text: str = "Hydra overrides, as for `unlearnbench run`") -> None:
    """Let a command take Hydra overrides."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=help_text)
