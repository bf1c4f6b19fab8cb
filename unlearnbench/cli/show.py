"""The commands `show` and `report`: the results of runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from unlearnbench.cli.command import Commands, add_command
from unlearnbench.cli.tables import print_comparison, print_table
from unlearnbench.config.errors import UserError

if TYPE_CHECKING:
    from unlearnbench.results.run import Run

FORMATS = {
    "md": "print as markdown",
    "csv": "print all numbers unrounded, as csv",
    "tex": "print as LaTeX, with booktabs",
    "json": "print all settings and numbers unrounded, as json",
}


def add_show(commands: Commands) -> None:
    """Add the command `show`."""
    parser = add_command(
        commands, "show", show, "print the tables of a run, or compare several runs",
        "show outputs/ga-nudity/2026-07-01_12-00-00", "show outputs/sweeps/2026-07-01_12-00-00 --group seed --tex",
        "show RUN RUN --paired", "show outputs --plot front.svg", "show SWEEP --interference --plot matrix.svg",
    )  # fmt: skip
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or a folder of runs")
    output = parser.add_mutually_exclusive_group()
    for name, meaning in FORMATS.items():
        output.add_argument(f"--{name}", action="store_true", help=meaning)
    output.add_argument(
        "--plot",
        metavar="FILE",
        help="draw forgetting against integrity, and the loss (with --interference the matrices), as .svg, .png or .pdf",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--group",
        metavar="SETTING",
        help="average runs that differ only in this setting, or in several: --group seed,sample.seed",
    )
    mode.add_argument(
        "--paired", action="store_true", help="compare the first run with the others image by image: difference, interval, p"
    )
    mode.add_argument(
        "--interference", action="store_true", help="what forgetting each concept did to every other one, as matrices"
    )
    parser.add_argument("--gap", action="store_true", help="show each value's distance to the algo=oracle run among the runs")


def show(options: argparse.Namespace) -> int:
    """Print or draw one run, or several runs side by side."""
    _refuse_combinations(options)
    from unlearnbench.results.run import find_runs

    runs = find_runs(options.runs)
    if options.interference:
        return _show_interference(runs, options)
    if options.gap:
        from unlearnbench.reports.comparison import with_gaps

        runs = with_gaps(runs)
    if options.paired:
        runs = _without_unfinished(runs)
    over = options.group.split(",") if options.group else []
    form = next((name for name in FORMATS if getattr(options, name)), None)
    if options.plot:
        from unlearnbench.reports.plots import draw_runs

        draw_runs(runs, Path(options.plot))
        print(f"wrote {options.plot}")
    elif form is not None:
        print(_exported(form, runs, over, options.paired), end="")
    elif options.paired:
        _print_paired_tests(*runs)
    elif len(runs) == 1 and not over:
        from unlearnbench.reports.tables import print_run

        print_run(runs[0])
    else:
        print_comparison(runs, over)
    return 0


def _refuse_combinations(options: argparse.Namespace) -> None:
    for one, other in (("plot", "group"), ("plot", "paired"), ("plot", "gap"), ("paired", "gap"), ("interference", "gap")):
        if getattr(options, one) and getattr(options, other):
            raise UserError(f"--{one} takes no --{other}; leave out one of the two")


def _without_unfinished(runs: Sequence[Run]) -> list[Run]:
    """The runs that are done, for a paired test; the others are named on stderr.

    Raises:
        UserError: the first run, with which the others are compared, is not done, or no other is.
    """
    if len(runs) > 1 and runs[0].status != "done":
        raise UserError(f"--paired compares {runs[0].folder} with the others, and it is not done ({runs[0].status})")
    done = [run for run in runs if run.status == "done"]
    for run in runs:
        if len(runs) > 1 and run.status != "done":
            print(f"left out, {run.status}: {run.folder}", file=sys.stderr)
    if len(done) < 2:
        raise UserError("--paired compares a run with others; name two runs or more")
    return done


def _show_interference(runs: Sequence[Run], options: argparse.Namespace) -> int:
    """Print the matrices of runs, export them or draw heat maps."""
    from unlearnbench.cli.tables import print_matrices
    from unlearnbench.reports.export import latex_table, markdown_table, records_csv
    from unlearnbench.reports.interference import effect_records, needed_matrices

    matrices = needed_matrices(runs)
    if options.plot:
        from unlearnbench.reports.plots import draw_matrices

        draw_matrices(matrices, Path(options.plot))
        print(f"wrote {options.plot}")
    elif options.csv:
        print(records_csv(effect_records(matrices)), end="")
    elif options.json:
        print(json.dumps(effect_records(matrices), indent=1))
    elif options.md:
        print("\n".join(f"{m.title}\n\n{markdown_table(m.head, m.body)}" for m in matrices), end="")
    elif options.tex:
        print("\n".join(latex_table(m.head, m.body, 1) for m in matrices), end="")
    else:
        print_matrices(matrices)
    return 0


def _exported(form: str, runs: Sequence[Run], over: Sequence[str], paired: bool) -> str:
    """The runs as text in one of the formats."""
    if form == "json" and not over and not paired:
        logs = [{**run.log, "folder": str(run.folder), "values": [asdict(value) for value in run.values]} for run in runs]
        return json.dumps(logs, indent=1) + "\n"
    if len(runs) == 1 and not over and form in ("md", "csv"):
        from unlearnbench.reports.tables import run_csv, run_markdown

        return run_markdown(runs[0]) if form == "md" else run_csv(runs[0])
    from unlearnbench.reports.export import export_comparison

    return export_comparison(form, runs, over, paired)


def _print_paired_tests(left: Run, *others: Run) -> None:
    from unlearnbench.reports.paired_test import PAIRED_HEAD, paired_tests

    print("\n".join([f"left: {left.name}, {left.folder}", *(f"right: {run.name}, {run.folder}" for run in others)]))
    remark = (
        "mean distance to the original's image, lower keeps more; interval and p by bootstrap over prompts; "
        "p, Holm: corrected for the number of right runs"
    )
    print_table(PAIRED_HEAD, [test.cells for test in paired_tests(left, *others)], remark, 3, keys=3)


def add_report(commands: Commands) -> None:
    """Add the command `report`."""
    parser = add_command(
        commands, "report", report, "write runs into one HTML file: tables, plots, images sorted by damage",
        "report outputs/ga-nudity/2026-07-01_12-00-00", "report outputs -o all.html --images 4",
    )  # fmt: skip
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or a folder of runs")
    parser.add_argument("-o", "--output", metavar="FILE", help="by default report.html, unless that exists; FILE is replaced")
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="number of retain and of forget prompts per run; default 12, fewer for many runs",
    )
    parser.add_argument("--unblur", action="store_true", help="show the images of explicit prompts unblurred")


def report(options: argparse.Namespace) -> int:
    """Write the HTML report."""
    from unlearnbench.reports.html_report import write_report
    from unlearnbench.results.run import find_runs
    from unlearnbench.storage.units import format_size

    if options.images is not None and options.images < 0:
        raise UserError(f"--images {options.images}: is less than 0")
    path = Path(options.output or "report.html")
    if path.is_dir():
        raise UserError(f"-o {path}: is a folder; name a file, such as {path / 'report.html'}")
    if options.output is None and path.exists():
        raise UserError(f"{path} exists; -o {path} replaces it, -o FILE writes another file")
    write_report(find_runs(options.runs), path, options.images, options.unblur)
    print(f"wrote {path}, {format_size(path.stat().st_size)}")
    return 0
