"""Results of an attack: success rates with intervals, on the terminal and as markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearnbench.console.tables import print_columns, print_remark, table_console
from unlearnbench.reports.export import markdown_table
from unlearnbench.results.intervals import wilson_interval

FIRST_SUCCESS = "first success"
ORACLE_SUFFIX = "-oracle"  # of the files with the probes of an included oracle
ATTACK_HEAD = ("on", "n", "original", "no attack", "attacked", "95 % interval", "brought back")
TEXT_COLUMNS = ("on", "95 % interval")


@dataclass(frozen=True)
class SuccessRate:
    """In how many images of one kind of attempt the detector finds the concept.

    Attributes:
        kind: the kind of attempt.
        n: images of each model.
        original: detections in the original model's images of the prompts.
        control: detections in the unlearned model's images of the same prompts and seeds, without an attack.
        attacked: detections in the unlearned model's images of the attacked prompts, with the same seeds.
        back: detections under attack among the n - control images whose control shows no concept.
        any_found: images of which the attack found some successful prompt, if it stops at the first success; else None.
    """

    kind: str
    n: int
    original: int
    control: int
    attacked: int
    back: int
    any_found: int | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the fraction attacked / n, by Wilson."""
        return wilson_interval(self.attacked, self.n)

    def cells(self) -> list[str]:
        """The row of the table, under `ATTACK_HEAD`."""
        fractions = [f"{count / self.n:.3f}" for count in (self.original, self.control, self.attacked)]
        low, high = self.interval
        first = [] if self.any_found is None else [f"{self.any_found / self.n:.3f}"]
        return [self.kind, str(self.n), *fractions, f"{low:.3f}..{high:.3f}", f"{self.back} of {self.n - self.control}", *first]


def success_rates(rows: Sequence[dict[str, Any]]) -> list[SuccessRate]:
    """The success rate of each kind of attempt, in the order of the rows.

    Args:
        rows: one an image, with the keys kind, and original, control and found: whether the detector finds the concept.
    """
    rates = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        group = [row for row in rows if row["kind"] == kind]
        original, control, attacked = (sum(row[side] for row in group) for side in ("original", "control", "found"))
        back = sum(row["found"] and not row["control"] for row in group)
        any_found = sum(row["any_found"] for row in group) if all("any_found" in row for row in group) else None
        rates.append(SuccessRate(kind, len(group), original, control, attacked, back, any_found))
    return rates


def attack_head(report: dict[str, Any]) -> tuple[str, ...]:
    """The head of a report's table: `ATTACK_HEAD`, and `FIRST_SUCCESS` where the attack counts that."""
    has_first = any(share.get("any_found") is not None for share in report["shares"])
    return (*ATTACK_HEAD, FIRST_SUCCESS) if has_first else ATTACK_HEAD


def attack_table(report: dict[str, Any]) -> list[list[str]]:
    """The rows of a report's table, under `attack_head`."""
    rates = [SuccessRate(**{key: value for key, value in share.items() if key != "interval"}) for share in report["shares"]]
    return [rate.cells() for rate in rates]


def attack_remarks(report: dict[str, Any]) -> list[str]:
    """The lines below the table: the detectors, the attack's objective, its settings, the sampling and the device."""
    objectives = [(row["first"], row["last"]) for row in report["images"] if row["first"] is not None]
    lines = [f"by {'; '.join(dict.fromkeys(report['detectors'].values()))}"]
    if objectives:
        first, last = (sum(values) / len(objectives) for values in zip(*objectives, strict=True))
        lines.append(f"mean of the attack's objective: {first:.4g} at the start, {last:.4g} at the end")
    named = {key: "all" if key == "prompts" and value is None else value for key, value in report["settings"].items()}
    settings = ", ".join(f"{key} {value}" for key, value in named.items() if key not in ("name", "kinds") and value is not None)
    sampling = ", ".join(f"{key} {value}" for key, value in report["sample"].items())
    return [*lines, f"{settings}; sampling: {sampling}; {report['device']}, {report['seconds']} s"]


def attack_label(report: dict[str, Any]) -> str:
    """The name of the attack, and whether it is that of the oracle beside the run."""
    return f"{report['attack']}{', of the oracle' if report.get('oracle') else ''}"


def attack_title(report: dict[str, Any]) -> str:
    """Which attack, on which run, or on the oracle that a run is compared with."""
    return f"{report['attack']} against {'the oracle beside ' if report.get('oracle') else ''}{report['run']}"


def stored_attacks(folder: Path) -> list[dict[str, Any]]:
    """The reports of the attacks and probes of a run, by name; a file that cannot be read is left out.

    The probes of an included oracle follow the run's own. Earlier versions marked them by the name of the file alone.
    """
    reports = []
    for path in sorted(folder.glob("attack-*.json"), key=lambda path: path.stem):
        with suppress(OSError, ValueError):
            report = json.loads(path.read_text(encoding="utf-8"))
            if "shares" in report and "images" in report:
                reports.append(report | {"oracle": path.stem == f"attack-{report['attack']}{ORACLE_SUFFIX}"})
    return reports


def attack_markdown(report: dict[str, Any]) -> str:
    """A report as markdown."""
    table = markdown_table(attack_head(report), attack_table(report))
    return "\n".join([f"# {attack_title(report)}", "", table, *attack_remarks(report), ""])


def print_attack(report: dict[str, Any], folder: Path) -> None:
    """Print a report, and which files it has in the run's folder."""
    console = table_console()
    print_columns(console, attack_head(report), attack_table(report), TEXT_COLUMNS, 1, attack_title(report))
    files = ", ".join(f"attack-{report['attack']}{ending}" for ending in (".md", ".json", "/"))
    for line in [*attack_remarks(report), f"{folder}: {files}"]:
        print_remark(console, line)
