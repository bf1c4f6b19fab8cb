"""Tab completion: the commands here, the overrides of `unlearnbench run` by Hydra."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence


def complete(arguments: Sequence[str], commands: Iterable[str]) -> int:
    """Answer the shell's query `-sc ...`; Hydra, which knows no commands, gets the line of `run` without that word."""
    program, _, rest = os.environ.get("COMP_LINE", "").partition(" ")
    command, space, line = rest.lstrip().partition(" ")
    if list(arguments[1:]) == ["query=bash"] and not (command == "run" and space):
        print("" if space else " ".join(name for name in commands if name.startswith(command)))
        return 0
    from unlearnbench.cli.hydra_job import run_job

    os.environ["COMP_LINE"] = f"{program} {line}"
    sys.argv = ["unlearnbench", *arguments]
    run_job()
    return 0
