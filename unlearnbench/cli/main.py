"""The command line `unlearnbench`: its commands, their dispatch, the exit codes."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from unlearnbench.__about__ import __version__
from unlearnbench.cli import cache, convert, depth, export, fetch, inspect, rerun, run, show, world
from unlearnbench.cli.command import refuse_unknown_options
from unlearnbench.cli.completion import complete
from unlearnbench.cli.errors import print_error
from unlearnbench.cli.logs import show_messages
from unlearnbench.config.compose import translate
from unlearnbench.config.errors import Interrupted, RunError, UserError
from unlearnbench.config.paths import at_home

COMMANDS = {
    "run": run.add_run,
    "resume": rerun.add_resume,
    "list": inspect.add_list,
    "check": inspect.add_check,
    "fetch": fetch.add_fetch,
    "measure": rerun.add_measure,
    "attack": rerun.add_attack,
    "depth": depth.add_depth,
    "convert": convert.add_convert,
    "show": show.add_show,
    "report": show.add_report,
    "export": export.add_export,
    "cache": cache.add_cache,
    "world": world.add_world,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Do one command; returns the exit code: 0, 1 for a run that failed, 2 for a mistake of the user."""
    arguments = [_with_home(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    _prepare_streams()
    show_messages()
    try:
        sys.path.append(str(_working_folder()))
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except (UserError, RunError) as error:
        return print_error(error)
    except BrokenPipeError:
        _discard_output()
        return 0
    except KeyboardInterrupt as error:
        print(error if isinstance(error, Interrupted) else "interrupted; finished work is kept", file=sys.stderr)
        return 130
    except Exception as error:
        mistake = translate(error)
        if not isinstance(mistake, UserError):
            raise
        _discard_output()
        return print_error(mistake)


def _with_home(argument: str) -> str:
    """An argument as --output=~/a.html with the ~ expanded, which a shell does only at the start of a word."""
    option, separator, value = argument.partition("=")
    return f"{option}={at_home(value)}" if option.startswith("--") and separator else argument


def _prepare_streams() -> None:
    """Let no output fail: a closed stream (>&-) goes nowhere, and what the terminal cannot show becomes an escape."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Send nowhere what stdout still holds if it cannot be written, or the interpreter would fail at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _working_folder() -> Path:
    """The working folder, in which the user's own modules are.

    Raises:
        UserError: it was removed.
    """
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        raise UserError("the working folder no longer exists; go to another one") from error


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["run"]:
        return run.run(arguments[1:])
    if arguments[:1] == ["-sc"]:
        return complete(arguments, COMMANDS)
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown and ("overrides" in options or "words" in options):
        refuse_unknown_options(arguments[arguments.index(unknown[0]) :], re.findall(r"-[\w-]+", options.usage()))
    for name in ("overrides", "words", "runs"):  # after an option argparse takes no further arguments of these
        if name in options and not any(word.startswith("-") for word in unknown):
            setattr(options, name, [*getattr(options, name), *unknown])
            unknown = []
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return options.function(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "unlearnbench",
        description="Unlearn concepts from text-to-image models and measure the damage to everything else.",
        epilog="`unlearnbench COMMAND --help` explains a command and gives examples.",
    )
    parser.add_argument("--version", action="version", version=f"unlearnbench {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for add in COMMANDS.values():
        add(commands)
    return parser
