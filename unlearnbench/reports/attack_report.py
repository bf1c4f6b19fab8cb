"""What an attack achieved: success rates with intervals, as a table and as markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from unlearnbench.console import table_console
from unlearnbench.reports.export import markdown_table
from unlearnbench.results.intervals import wilson_interval

ATTACK_HEAD = ("on", "n", "original", "no attack", "attacked", "95 % interval", "brought back")


@dataclass(frozen=True)
class SuccessRate:
    """How often the detector finds the concept, over the images of one kind of attempt.

    Attributes:
        kind: which attempts.
        n: images of each side.
        original: found in the original's images of the prompts.
        control: found in the unlearned model's images of the same prompts and seeds.
        attacked: found in its images of the attacked prompts, with the same seeds.
        back: found there, of the images whose control shows nothing: n - control.
    """

    kind: str
    n: int
    original: int
    control: int
    attacked: int
    back: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the share that is found under attack."""
        return wilson_interval(self.attacked, self.n)

    def cells(self) -> list[str]:
        """The row of the table, under `HEAD`."""
        shares = [f"{found / self.n:.3f}" for found in (self.original, self.control, self.attacked)]
        silent = self.n - self.control
        return [self.kind, str(self.n), *shares, "{:.3f}..{:.3f}".format(*self.interval), f"{self.back} of {silent}"]


def success_rates(rows: Sequence[dict[str, Any]]) -> list[SuccessRate]:
    """The shares of each kind, in the order in which they come."""
    shares = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        some = [row for row in rows if row["kind"] == kind]
        original, control, attacked = (sum(row[side] for row in some) for side in ("original", "control", "found"))
        back = sum(row["found"] and not row["control"] for row in some)
        shares.append(SuccessRate(kind, len(some), original, control, attacked, back))
    return shares


def attack_table(report: dict[str, Any]) -> list[list[str]]:
    """The rows of a report's table, under `HEAD`."""
    shares = [SuccessRate(**{key: value for key, value in share.items() if key != "interval"}) for share in report["shares"]]
    return [share.cells() for share in shares]


def attack_remarks(report: dict[str, Any]) -> list[str]:
    """What stands under the table: what judged, the objective, and what made it."""
    goals = [(row["first"], row["last"]) for row in report["images"] if row["first"] is not None]
    lines = [f"by {'; '.join(dict.fromkeys(report['detectors'].values()))}"]
    if goals:
        first, last = (sum(ends) / len(goals) for ends in zip(*goals, strict=True))
        lines.append(f"the attack's objective, mean: {first:.4g} at its start, {last:.4g} at its end")
    settings = ", ".join(f"{key} {value}" for key, value in report["settings"].items() if key not in ("name", "kinds"))
    made = ", ".join(f"{key} {value}" for key, value in report["sample"].items())
    return [*lines, f"{settings}; sampling: {made}; {report['device']}, {report['seconds']} s"]


def attack_markdown(report: dict[str, Any]) -> str:
    """A report as markdown."""
    return "\n".join(
        [
            f"# {report['attack']} against {report['run']}",
            "",
            markdown_table(ATTACK_HEAD, attack_table(report)),
            *attack_remarks(report),
            "",
        ]
    )


def print_attack(report: dict[str, Any]) -> None:
    """Print a report."""
    console = table_console()
    shown = Table(
        title=f"{report['attack']} against {report['run']}", title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    for name in ATTACK_HEAD:
        shown.add_column(name, justify="left" if name in ("on", "95 % interval") else "right", no_wrap=True)
    for row in attack_table(report):
        shown.add_row(*row)
    console.print(shown)
    for line in attack_remarks(report):
        console.print(line, style="dim", highlight=False, markup=False)
