"""Depth under probes: a table on the terminal and as markdown."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from unlearnbench.console.tables import print_columns, print_remark, table_console
from unlearnbench.reports.export import markdown_table
from unlearnbench.results.depth import is_autoencoder

HEAD = ("probe", "kind", "n", "original", "unlearned", "oracle", "depth", "95 % interval")
TEXT_COLUMNS = ("probe", "kind", "95 % interval")
REMARK = (
    "Shares of images that show the concept. depth = (original - unlearned) / (original - oracle): 0 as the original, 1 as a "
    "model that never saw the concept; without an oracle it counts from 0. pooled: the probes of images together, sums divided."
)


def depth_cells(report: dict[str, Any]) -> list[list[str]]:
    """The rows of the table, under `HEAD`."""
    return [_cells(row) for row in report["rows"]]


def stored_depth(folder: Path) -> dict[str, Any] | None:
    """The report of a run's depth; None if it was not measured, or cannot be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        report = json.loads((folder / "depth.json").read_text(encoding="utf-8"))
        return report if depth_cells(report) else None
    return None


def _cells(row: dict[str, Any]) -> list[str]:
    low, high = row["interval"]["low"], row["interval"]["high"]
    shares = ["" if row[side] is None else f"{row[side]:.3f}" for side in ("original", "unlearned", "oracle")]
    depth = ["" if row["depth"] is None else f"{row['depth']:.2f}", "" if low is None else f"{low:.2f}..{high:.2f}"]
    kind = "autoencoder alone" if is_autoencoder(row["probe"], row["kind"]) else row["kind"]
    return [row["probe"], kind, str(row["n"]), *shares, *depth]


def depth_markdown(report: dict[str, Any]) -> str:
    """A report as markdown."""
    return "\n".join([f"# Depth of {report['run']}", "", markdown_table(HEAD, depth_cells(report)), REMARK, ""])


def print_depth(report: dict[str, Any], folder: Path) -> None:
    """Print a report, and which files it has in the run's folder."""
    console = table_console()
    print_columns(console, HEAD, depth_cells(report), TEXT_COLUMNS, 2, f"depth of {report['run']}")
    print_remark(console, REMARK)
    files = [name for name in ("depth.md", "depth.json", "depth.png") if (folder / name).is_file()]
    print_remark(console, f"{folder}: {', '.join(files)}")
