"""The commands that go on with an existing run: `resume`, `measure`, `attack`."""

from __future__ import annotations

import argparse
from pathlib import Path

from unlearnbench.cli import run as run_command
from unlearnbench.cli.command import Commands, add_command, add_overrides
from unlearnbench.cli.config_dir import add_config_dir, searchpath_overrides
from unlearnbench.cli.errors import print_error
from unlearnbench.cli.logs import starting
from unlearnbench.cli.tables import print_comparison
from unlearnbench.config.errors import RunError, UserError


def add_resume(commands: Commands) -> None:
    """Add the command `resume`."""
    parser = add_command(
        commands, "resume", resume_run_or_sweep, "continue an interrupted run, or every unfinished run of a sweep",
        "resume outputs/ga-nudity/2026-07-01_12-00-00", "resume outputs/sweeps/2026-07-01_12-00-00",
    )  # fmt: skip
    parser.add_argument("folder", metavar="RUN|SWEEP", help="the folder of a run, of a sweep or of several runs")


def resume_run_or_sweep(options: argparse.Namespace) -> int:
    """Continue one run, a sweep, or every run in a folder; returns the worst exit code."""
    with starting():
        from unlearnbench.experiment.run import resume
        from unlearnbench.reports.tables import print_closing
        from unlearnbench.results.run import find_runs
    from unlearnbench.sweeps.hydra_settings import sweep_overrides

    overrides = sweep_overrides(Path(options.folder))
    if overrides is not None:
        return run_command.run([*overrides, "resume=true"])
    runs = find_runs([options.folder])
    if len(runs) == 1:
        with starting():
            run = resume(runs[0].folder)
        print_closing(run)
        return 0
    code = 0
    for run in runs:
        try:
            resume(run.folder)
        except (UserError, RunError) as error:
            code = max(code, print_error(error))
    print_comparison(find_runs([options.folder]))
    return code


def add_measure(commands: Commands) -> None:
    """Add the command `measure`."""
    parser = add_command(
        commands, "measure", measure_again, "measure a finished run again from its images, or images made elsewhere",
        "measure outputs/ga-nudity/2026-07-01_12-00-00", "measure outputs/ga-nudity/2026-07-01_12-00-00 metrics=quick",
        "measure --original sd14 --unlearned esd --prompts nudity.csv concept=nudity",
    )  # fmt: skip
    parser.add_argument("words", nargs="*", metavar="RUN|key=value", help="a run's folder, and overrides: see docs/weights.md")
    elsewhere = parser.add_argument_group("images made elsewhere, in place of RUN")
    elsewhere.add_argument("--original", metavar="FOLDER", help="images of the original model")
    elsewhere.add_argument("--unlearned", metavar="FOLDER", help="images of the unlearned model, under the same names")
    elsewhere.add_argument("--prompts", metavar="FILE", help="their prompts: a csv, tsv, jsonl, parquet or text file, or a set")
    elsewhere.add_argument("--name", metavar="METHOD", help="the method's name in tables; by default that of the folder")
    add_config_dir(parser)


def measure_again(options: argparse.Namespace) -> int:
    """Measure the images of a run, or of two folders, and print its tables."""
    folders = {name: getattr(options, name) for name in ("original", "unlearned", "prompts")}
    is_elsewhere = any(value is not None for value in (*folders.values(), options.name))
    search_path = searchpath_overrides(options.config_dir)
    if is_elsewhere and (missing := [f"--{name}" for name, value in folders.items() if value is None]):
        raise UserError(f"measure: {', '.join(missing)} must be given, too; images made elsewhere need all three")
    paths = [word for word in options.words if "=" not in word or Path(word).is_dir()]
    if len(paths) != (0 if is_elsewhere else 1) or options.words[: len(paths)] != paths:
        expected = "overrides (key=value) beside --original, --unlearned and --prompts" if is_elsewhere else "RUN, then overrides"
        raise UserError(f"measure: it takes {expected}; see `unlearnbench measure --help`")
    with starting():
        from unlearnbench.experiment.measure import measure
        from unlearnbench.experiment.measure_folders import measure_folders
        from unlearnbench.reports.tables import print_run

        if is_elsewhere:
            run = measure_folders(*folders.values(), *search_path, *options.words, name=options.name)
        else:
            run = measure(options.words[0], *search_path, *options.words[1:])
    print_run(run)
    return 0


def add_attack(commands: Commands) -> None:
    """Add the command `attack`."""
    parser = add_command(
        commands, "attack", attack_run, "attack the unlearned model of a finished run",
        "attack outputs/ga-nudity/2026-07-01_12-00-00 attack=unlearndiffatk", "list attack",
    )  # fmt: skip
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    add_overrides(parser, "attack=NAME and its settings")
    add_config_dir(parser)


def attack_run(options: argparse.Namespace) -> int:
    """Attack the model of a run and print the success rates."""
    with starting():
        from unlearnbench.experiment.attack import attack
        from unlearnbench.reports.attack_report import print_attack

        report = attack(options.run, *searchpath_overrides(options.config_dir), *options.overrides)
    print_attack(report, Path(options.run))
    return 0
