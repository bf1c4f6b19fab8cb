"""The tables of one run: on the terminal, as markdown, as csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from unlearnbench.console import format_number, table_console
from unlearnbench.results.run import Run, Value

TABLES = ("Forgetting", "Retention", "FID", "CLIPScore", "Cost")


def table_names(run: Run) -> list[str]:
    """The names of the tables: `TABLES`, then one for each concept but the last where several were forgotten in turn."""
    return list(dict.fromkeys([*TABLES, *(value.table for value in run.values)]))


TABLE_HEAD = ("metric", "on", "original", "unlearned", "change", "95 % interval", "n")
ARROWS = {"higher": " ↑", "lower": " ↓", "": ""}


def table_rows(run: Run, table: str) -> list[list[str]]:
    """The cells of one table, under `HEAD`; the arrow at a metric's name points to the better side."""
    return [
        [
            v.metric + ARROWS[v.better], v.split, format_number(v.original), format_number(v.unlearned),
            "" if v.difference is None else f"{v.difference:+.3f}",
            "" if v.low is None else f"{format_number(v.low)}..{format_number(v.high)}", str(v.n or ""),
        ]
        for v in run.values if v.table == table
    ]  # fmt: skip


def table_remarks(run: Run, table: str) -> str:
    """What measured the numbers of a table, and what their notes say of which metric or split, in one line."""
    by: dict[str, list[Value]] = {}
    for v in run.values:
        if v.table == table and v.backbone:
            by.setdefault(v.backbone, []).append(v)
    told = {name: _notes(values) for name, values in by.items()}
    return "; ".join(f"by {name}" + (f" ({notes})" if notes else "") for name, notes in told.items())


def _notes(values: Sequence[Value]) -> str:
    """Each note once, behind the metrics that it is of."""
    found: dict[str, list[str]] = {}
    for metric in dict.fromkeys(v.metric for v in values if v.note):
        name, said = _said([v for v in values if v.metric == metric])
        found.setdefault(said, []).append(name)
    return "; ".join(f"{', '.join(names)}: {said}" for said, names in found.items())


def _said(values: Sequence[Value]) -> tuple[str, str]:
    """Of what one metric's notes speak, and what they say; split by split, unless all have the same."""
    metric, noted = values[0].metric, [v for v in values if v.note]
    if len({v.note for v in values}) == 1:
        return metric, noted[0].note.removeprefix(f"{metric}: ")
    name = noted[0].note.partition(": ")[0]
    name = name if all(v.note.startswith(f"{name}: ") for v in noted) else ""
    return name or metric, ", ".join(f"{v.split} {v.note.removeprefix(f'{name}: ')}" for v in noted)


def provenance_line(run: Run) -> str:
    """The one line that says what made the numbers."""
    log = run.log
    sample, model = log["config"]["sample"], log["config"]["model"]
    revision = f"@{model['revision']}" if model.get("revision") else ""
    return (
        f"{run.name}; model {model['path']}{revision} ({log['fingerprint'][:12]}), {log['scheduler']}, {sample['steps']} steps, "
        f"guidance {sample['guidance']}, {model['size']} px, sampling seed {sample['seed']}, "
        f"unlearning seed {log['config']['seed']}, {log['device']}, unlearnbench {log['versions']['unlearnbench']}"
    )


def print_run(run: Run, console: Console | None = None) -> None:
    """Print a run's tables; a column that is empty in a table is left out of it."""
    console = console or table_console()
    for name in table_names(run):
        cells = table_rows(run, name)
        if cells:
            full = [i for i in range(len(TABLE_HEAD)) if any(row[i] for row in cells)]
            table = Table(title=name, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)
            for i in full:
                table.add_column(
                    TABLE_HEAD[i],
                    justify="left" if TABLE_HEAD[i] in ("metric", "on", "95 % interval") else "right",
                    no_wrap=TABLE_HEAD[i] != "on",
                )
            for row in cells:
                table.add_row(*(row[i] for i in full))
            console.print(table)
            if remark := table_remarks(run, name):
                console.print(remark, style="dim", highlight=False, markup=False)
            console.print()
    if run.log.get("status") != "done":
        console.print(f"status: {run.log.get('status')}: {run.log.get('error', 'not finished')}", style="red", markup=False)
    if "fingerprint" in run.log:
        console.print(provenance_line(run), style="dim", highlight=False, markup=False)
    console.print(f"{run.folder}: images/, metrics.json, tables.md", style="dim", highlight=False, markup=False)


def run_markdown(run: Run) -> str:
    """The tables as markdown."""
    lines = [f"# {run.name}", ""]
    for name in table_names(run):
        cells = table_rows(run, name)
        if cells:
            lines += [f"## {name}", "", "| " + " | ".join(TABLE_HEAD) + " |", "|" + "---|" * len(TABLE_HEAD)]
            lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
            lines += ["", table_remarks(run, name), ""] if table_remarks(run, name) else [""]
    if run.log["status"] != "done":
        lines += [f"status: {run.log['status']}: {run.log.get('error', 'not finished')}", ""]
    return "\n".join([*lines, *([provenance_line(run), ""] if "fingerprint" in run.log else [])])


def run_csv(run: Run) -> str:
    """Every value of the run, one a line, unrounded."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [*Value.__dataclass_fields__, "difference"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**asdict(v), "difference": v.difference} for v in run.values)
    return out.getvalue()
