"""The command `depth`: what a run's model still shows when the prompt is not asked."""

from __future__ import annotations

import argparse
from pathlib import Path

from unlearnbench.cli.command import Commands, add_command, add_overrides
from unlearnbench.cli.config_dir import add_config_dir, searchpath_overrides
from unlearnbench.cli.logs import starting


def add_depth(commands: Commands) -> None:
    """Add the command `depth`."""
    parser = add_command(
        commands, "depth", depth_of_run, "probe the unlearned model of a finished run beyond its prompts",
        "depth outputs/uce-church/2026-07-01_12-00-00",
        "depth outputs/uce-church/2026-07-01_12-00-00 --oracle outputs/oracle-church/2026-07-01_12-10-00 attack.prompts=12",
    )  # fmt: skip
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument(
        "--oracle",
        metavar="RUN",
        help="a run of algo=oracle with the same concept, prompts and sampling; by default that of an embedded model",
    )
    add_overrides(parser, "settings of every probe, such as attack.prompts=12")
    add_config_dir(parser)


def depth_of_run(options: argparse.Namespace) -> int:
    """Probe the model of a run and print its depth."""
    with starting():
        from unlearnbench.experiment.depth import measure_depth
        from unlearnbench.reports.depth_report import print_depth

        overrides = [*searchpath_overrides(options.config_dir), *options.overrides]
        report = measure_depth(options.run, options.oracle, overrides)
    print_depth(report, Path(options.run))
    return 0
