"""The command `fetch`: download all that a run needs."""

from __future__ import annotations

import argparse
import sys

from unlearnbench.cli.command import Commands, add_command, add_overrides
from unlearnbench.cli.config_dir import add_config_dir, searchpath_overrides
from unlearnbench.config.errors import UserError


def add_fetch(commands: Commands) -> None:
    """Add the command `fetch`."""
    parser = add_command(
        commands, "fetch", fetch, "download all that a run with the same overrides needs",
        "fetch model=sd14 concept=church", "fetch model=sdxl model.variant=fp16 retain=coco",
    )  # fmt: skip
    add_overrides(parser)
    add_config_dir(parser)


def fetch(options: argparse.Namespace) -> int:
    """Download what is missing: prompts, model, networks of metrics, real images; name what a package manager must install.

    Raises:
        UserError: something cannot be downloaded, or a download was cut.
    """
    from unlearnbench.config.compose import compose
    from unlearnbench.experiment.downloads import fetch_all, left_out_metrics, missing_downloads, refused_downloads
    from unlearnbench.experiment.preflight import find_problems
    from unlearnbench.experiment.run_spec import RunSpec

    spec = RunSpec.of(compose(*searchpath_overrides(options.config_dir), *options.overrides))
    if problems := refused_downloads(spec):
        raise UserError("\n".join(problems))
    downloads = missing_downloads(spec)
    fetch_all(downloads)
    for name, reason in left_out_metrics(spec).items():
        print(f"without {name}: {reason}", file=sys.stderr)
    if problems := find_problems(spec, options.overrides):
        raise UserError("\n".join(problems))
    print(f"{len(downloads)} downloaded, nothing is missing" if downloads else "nothing is missing")
    return 0
