"""Every attack on the given runs, as one markdown table. An attack with the same weights and settings is not repeated.

python scripts/attacks.py RUN... [--attacks unlearndiffatk,ring_a_bell] [--write docs/attacks-table.md] [attack.prompts=12 ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unlearnbench.config.errors import RunError, UserError
from unlearnbench.config.paths import choices
from unlearnbench.console import console, progress_bar
from unlearnbench.experiment.attack import attack
from unlearnbench.experiment.attack_inputs import stored_report
from unlearnbench.experiment.attacked import AttackedRun
from unlearnbench.reports.attack_report import ATTACK_HEAD, attack_head, attack_table
from unlearnbench.reports.export import markdown_table
from unlearnbench.results.run import Run, find_runs
from unlearnbench.storage.atomic import write_text


def page(reports: Sequence[tuple[Run, dict[str, Any]]], left_out: Sequence[str], command: str) -> str:
    """The reports as one markdown table."""
    head = max((attack_head(report) for _, report in reports), key=len, default=ATTACK_HEAD)
    body = [
        [run.name, str(run.log["config"]["seed"]), report["attack"], *row, *[""] * (len(head) - len(row))]
        for run, report in reports
        for row in attack_table(report)
    ]
    lines = [
        "# Attacks",
        "",
        f"Made by `{command}`; how to read it: [attacks.md](attacks.md). Intervals: Wilson, 95 %, of `attacked`.",
        "",
        markdown_table(["run", "seed", "attack", *head], body),
    ]
    return "\n".join([*lines, *(f"- left out: {line}" for line in left_out), ""])


def main() -> None:
    """Attack, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arguments", nargs="+", metavar="RUN or key=value")
    parser.add_argument("--attacks", default=",".join(choices("attack")))
    parser.add_argument("--write", type=Path, default=Path("docs/attacks-table.md"))
    options = parser.parse_intermixed_args()
    settings = [word for word in options.arguments if "=" in word and not Path(word).exists()]
    folders = [word for word in options.arguments if word not in settings]
    runs = [run for run in find_runs(folders) if run.log["status"] == "done"]
    names = options.attacks.split(",")
    reports: list[tuple[Run, dict[str, Any]]] = []
    left_out: list[str] = []
    with progress_bar("attacks", len(runs) * len(names)) as bar:
        for run in runs:
            for name in names:
                overrides = [f"attack={name}", *settings]
                try:
                    reports.append((run, stored_report(AttackedRun.of(run), overrides) or attack(run.folder, *overrides)))
                except (UserError, RunError) as error:
                    left_out.append(f"{run.name}, {name}: {error}")
                    console.print(left_out[-1], style="yellow", markup=False)
                bar.advance(remark=f"{run.name}, {name}")
    write_text(options.write, page(reports, left_out, "scripts/attacks.py"))
    console.print(f"wrote {options.write}: {len(reports)} attacks, {len(left_out)} left out")


if __name__ == "__main__":
    main()
