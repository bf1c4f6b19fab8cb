"""The option --config-dir: yaml files of the user beside those in conf/."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise

from unlearnbench.config.search_path import refuse_unusable_files as refuse_unusable_files
from unlearnbench.config.search_path import searchpath_overrides as searchpath_overrides


def add_config_dir(parser: argparse.ArgumentParser) -> None:
    """Let a command find the yaml files of the user."""
    parser.add_argument("--config-dir", metavar="FOLDER", help="also use your own yaml files, in groups as in conf/")


def config_dirs(arguments: Sequence[str]) -> list[str]:
    """The folders that the arguments of `unlearnbench run` name by --config-dir."""
    parts = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--config-dir=") else [word])]
    return [folder for option, folder in pairwise(parts) if option in ("--config-dir", "-cd")]
