"""The commands `list` and `check`."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from unlearnbench.cli.command import Commands, add_command, add_overrides
from unlearnbench.cli.config_dir import add_config_dir, refuse_unusable_files, searchpath_overrides
from unlearnbench.config.errors import UserError, similar
from unlearnbench.config.paths import CONF, GROUPS, read_text

MIN_WIDTH = 40  # below it, lines are longer than the terminal

if TYPE_CHECKING:
    from unlearnbench.experiment.run_spec import RunSpec


def add_list(commands: Commands) -> None:
    """Add the command `list`."""
    parser = add_command(
        commands, "list", list_components, "list the available components, or explain one",
        "list", "list algo", "list esd_x", "list --support", "list algo --config-dir my-conf",
    )  # fmt: skip
    parser.add_argument("name", nargs="?", metavar="GROUP|NAME", help=f"one of {', '.join(GROUPS)}; or a component's name")
    parser.add_argument("--support", action="store_true", help="show which algorithm runs on which model family")
    parser.add_argument("--md", action="store_true", help="with --support: as markdown")
    parser.set_defaults(refuse=parser.error)
    add_config_dir(parser)


def list_components(options: argparse.Namespace) -> int:
    """Print the names and descriptions of one group or of all, or all about one component."""
    if options.md and not options.support:
        raise UserError("--md does nothing without --support; say both, or leave it out")
    if options.support and (options.name or options.config_dir):
        ignored = options.name or f"--config-dir {options.config_dir}"
        raise UserError(f"{ignored}: --support shows the package's own algorithms, all of them; leave out one of the two")
    if options.support:
        _print_support(options.md or not sys.stdout.isatty())
        return 0
    folders = [CONF]
    if options.config_dir:
        refuse_unusable_files(options.config_dir)
        folders.append(Path(options.config_dir))
    paths = {group: sorted((p for f in folders for p in (f / group).glob("*.yaml")), key=lambda p: p.stem) for group in GROUPS}
    if options.name and options.name not in GROUPS:
        return _explain(options, paths)
    for group in [options.name] if options.name else GROUPS:
        print(group)
        for path in paths[group]:
            print(_line(path.stem, _description(path)))
    return 0


def _line(name: str, description: str) -> str:
    """A component's line; in a terminal its description continues below itself."""
    start = f"  {name:<16} "
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        return start + description
    width, indent = max(shutil.get_terminal_size().columns, MIN_WIDTH), " " * len(start)
    parts = textwrap.wrap(description, width - len(start), break_long_words=False, break_on_hyphens=False)
    return start + f"\n{indent}".join(parts)


def _explain(options: argparse.Namespace, paths: dict[str, list[Path]]) -> int:
    """Print everything about the component that the options name: esd_x, algo=esd_x or algo/esd_x."""
    from unlearnbench.cli.describe import print_component

    group, _, name = options.name.replace("/", "=").rpartition("=")
    matches = [(g, path) for g in paths for path in paths[g] if path.stem == name and group in ("", g)]
    if not matches:
        names = [*GROUPS, *(path.stem for group_paths in paths.values() for path in group_paths)]
        options.refuse(f"{options.name}: no such group or component; {similar(name, names)}groups: {', '.join(GROUPS)}")
    for number, (component_group, path) in enumerate(matches):
        print("\n" * bool(number), end="")
        print_component(component_group, path, _description(path))
    return 0


def _print_support(markdown: bool) -> None:
    from unlearnbench.experiment.support import capability_lines, support_markdown, support_rows

    if markdown:
        print(support_markdown(), end="")
        return
    from unlearnbench.console.tables import print_columns, table_console

    console = table_console()
    head, rows = support_rows()
    print_columns(console, head, rows, head, 1)
    console.print("\n".join(["", *capability_lines()]), markup=False, highlight=False)


def _description(path: Path) -> str:
    """The comment that a yaml file begins with."""
    comments = [line[2:] for line in read_text(path).splitlines()[:2] if line.startswith("# ")]
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
    from unlearnbench.experiment.downloads import missing_downloads, missing_sets
    from unlearnbench.experiment.estimate import estimate_lines
    from unlearnbench.experiment.preflight import find_problems, find_warnings, select_device
    from unlearnbench.experiment.run_spec import RunSpec

    spec = RunSpec.of(compose(*searchpath_overrides(options.config_dir), *options.overrides))
    problems = find_problems(spec, options.overrides)
    estimate = estimate_lines(spec)
    if problems:
        for line in estimate:
            print(line)
        raise UserError("\n".join(problems))
    are_prompts_missing = bool(missing_sets(spec))
    print(f"ready: {spec.algo.name} on {spec.concept.name}, model {spec.model.path}, on {select_device(spec.device)}")
    print(f"prompts: {'not known before the download' if are_prompts_missing else _prompt_counts(spec)}")
    print(f"metrics: {', '.join(spec.metrics)}")
    for warning in [] if are_prompts_missing else find_warnings(spec):
        print(f"warning: {warning}")
    for download in missing_downloads(spec):
        print(f"downloads: {download.line()}")
    for line in estimate:
        print(line)
    return 0


def _prompt_counts(spec: RunSpec) -> str:
    """How many prompts of each split are measured, and how many images that makes."""
    counts = Counter(prompt.split for prompt in spec.sample.limit(spec.prompts()))
    images = counts.total() * spec.sample.per_prompt
    return ", ".join(f"{n} {split}" for split, n in counts.items()) + f"; {images} images of each model"
