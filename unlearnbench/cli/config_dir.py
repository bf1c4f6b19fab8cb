"""The option --config-dir: yaml files of the user beside those in conf/."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from unlearnbench.config.errors import UserError
from unlearnbench.config.paths import CONF


def add_config_dir(parser: argparse.ArgumentParser) -> None:
    """Let a command find the yaml files of the user."""
    parser.add_argument("--config-dir", metavar="FOLDER", help="also use your own yaml files, in groups as in conf/")


def searchpath_overrides(folder: str | None) -> list[str]:
    """The override by which Hydra finds the yaml files of --config-dir; empty without that option.

    Raises:
        UserError: there is no such folder, or one of its files has the name of a file in conf/.
    """
    if not folder:
        return []
    refuse_shadowed_files(folder)
    return [f"hydra.searchpath={[str(Path(folder).resolve())]}"]


def config_dirs(arguments: Sequence[str]) -> list[str]:
    """The folders that the arguments of `unlearnbench run` name by --config-dir."""
    parts = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--config-dir=") else [word])]
    return [folder for option, folder in pairwise(parts) if option in ("--config-dir", "-cd")]


def refuse_shadowed_files(folder: str) -> None:
    """Refuse files that have the name of a file in conf/: Hydra would silently prefer the one in conf/.

    Raises:
        UserError: there is no such folder, or one of its files has the name of a file in conf/.
    """
    if not Path(folder).is_dir():
        raise UserError(f"--config-dir {folder}: no such folder")
    for path in Path(folder).rglob("*.yaml"):
        name = path.relative_to(folder)
        if (CONF / name).is_file():
            raise UserError(f"{path}: conf/ has its own {name}, which would win; give yours another name")
