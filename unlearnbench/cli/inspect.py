"""The commands `list` and `check`."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from unlearnbench.cli.command import Commands, add_command, add_overrides
from unlearnbench.cli.config_dir import add_config_dir, refuse_shadowed_files, searchpath_overrides
from unlearnbench.config.errors import UserError
from unlearnbench.config.paths import CONF, GROUPS


def add_list(commands: Commands) -> None:
    """Add the command `list`."""
    parser = add_command(
        commands, "list", list_components, "list the available components",
        "list", "list algo", "list --support", "list algo --config-dir my-conf",
    )  # fmt: skip
    parser.add_argument("group", nargs="?", choices=GROUPS)
    parser.add_argument("--support", action="store_true", help="show which algorithm runs on which model family")
    add_config_dir(parser)


def list_components(options: argparse.Namespace) -> int:
    """Print the names and descriptions of one group or of all."""
    if options.support:
        from unlearnbench.experiment.support import support_table

        print(support_table(), end="")
        return 0
    folders = [CONF]
    if options.config_dir:
        refuse_shadowed_files(options.config_dir)
        folders.append(Path(options.config_dir))
    for group in [options.group] if options.group else GROUPS:
        print(group)
        paths = [path for folder in folders for path in (folder / group).glob("*.yaml")]
        for path in sorted(paths, key=lambda path: path.stem):
            print(f"  {path.stem:<16} {_description(path)}")
    return 0


def _description(path: Path) -> str:
    """The comment that a yaml file begins with."""
    comments = [line[2:] for line in path.read_text(encoding="utf-8").splitlines()[:2] if line.startswith("# ")]
    return next((comment for comment in comments if not comment.startswith("@package")), "")


def add_check(commands: Commands) -> None:
    """Add the command `check`."""
    parser = add_command(
        commands, "check", check, "validate a configuration without loading a model",
        "check algo=ga concept=nudity", "check model=sd14 algo=esd_x device=cuda", "check --config-dir my-conf algo=mine",
    )  # fmt: skip
    add_overrides(parser)
    add_config_dir(parser)


def check(options: argparse.Namespace) -> int:
    """Compose and build everything that a run needs; print what it would do, or raise all problems at once."""
    from unlearnbench.config.compose import compose
    from unlearnbench.experiment.preflight import find_problems, find_warnings, select_device
    from unlearnbench.experiment.run_spec import RunSpec

    spec = RunSpec.of(compose(*searchpath_overrides(options.config_dir), *options.overrides))
    problems = find_problems(spec)
    if problems:
        raise UserError("\n".join(problems))
    counts = Counter(prompt.split for prompt in spec.sample.limit(spec.prompts()))
    images = counts.total() * spec.sample.per_prompt
    print(f"ready: {spec.algo.name} on {spec.concept.name}, model {spec.model.path}, on {select_device(spec.device)}")
    print("prompts: " + ", ".join(f"{n} {split}" for split, n in counts.items()) + f"; {images} images of each model")
    print(f"metrics: {', '.join(spec.metrics)}")
    for warning in find_warnings(spec):
        print(f"warning: {warning}")
    return 0
