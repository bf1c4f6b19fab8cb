"""The commands that repeat a run, quoted for a shell."""

from __future__ import annotations

import shlex
from pathlib import Path

from unlearnbench.results.run import Run


def repeating_commands(run: Run, folder: str, without: tuple[str, ...] = ()) -> list[str]:
    """The command of a run, or of the measurement of images made elsewhere, and one for each later measurement.

    Args:
        run: the run.
        folder: its folder in the later measurements.
        without: overrides that begin so are left out.
    """

    def line(*words: str, overrides: list[str]) -> str:
        return shlex.join(["unlearnbench", *words, *(text for text in overrides if not text.startswith(without))])

    later = [line("measure", folder, overrides=overrides) for overrides in run.log.get("measured", [])]
    overrides = list(run.log.get("overrides", []))
    if sources := run.log.get("images_from"):
        folders = [word for side in ("original", "unlearned", "prompts") for word in (f"--{side}", sources[side])]
        name = [] if run.log["algo"] == Path(sources["unlearned"]).name else ["--name", run.log["algo"]]
        own = [text for text in overrides if not text.startswith(("model.size=", "algo="))]  # which the command sets itself
        return [line("measure", *folders, *name, overrides=own), *later]
    return [line("run", overrides=overrides), *later]
