"""Numbers with what they mean, the log of a run, and the tables made of them."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from unlearnbench.config import UserError
from unlearnbench.files import write_text as write_text
from unlearnbench.progress import screen

TABLES = ("Forgetting", "Retention", "FID", "CLIPScore", "Cost")


@dataclass(frozen=True)
class Value:
    """One number of a run.

    Attributes:
        table: which of `TABLES` it stands in, or the name of a stage (see `tables`).
        metric: its name, such as "integrity".
        split: the prompts it was measured on: forget, paraphrase, near, far, generic, retain (the last three together);
            "forget: church" where several concepts are forgotten.
        original: the original's value, or None where the metric compares the two models.
        unlearned: the unlearned model's.
        better: "higher", "lower" or "" where neither is.
        n: how many images.
        low: the lower end of the 95 % interval of `unlearned`, if it has one.
        high: the upper end.
        backbone: the network, detector or distance that measured it.
        note: images left out and why, or a warning; or a number beside it, such as "D_reseed: 0.253".
    """

    table: str
    metric: str
    split: str
    original: float | None
    unlearned: float
    better: str
    n: int
    low: float | None = None
    high: float | None = None
    backbone: str = ""
    note: str = ""

    @property
    def place(self) -> tuple[str, str, str, str]:
        """What it is a number of."""
        return self.table, self.metric, self.split, self.backbone

    @property
    def difference(self) -> float | None:
        """Unlearned less original."""
        return None if self.original is None else self.unlearned - self.original


def tables(run: Run) -> list[str]:
    """The names of the tables: `TABLES`, then one for each concept but the last where several were forgotten in turn."""
    return list(dict.fromkeys([*TABLES, *(value.table for value in run.values)]))


@dataclass
class Run:
    """A run's folder: run.json (what was done), metrics.json (what was measured)."""

    folder: Path
    log: dict[str, Any] = field(default_factory=dict)
    values: list[Value] = field(default_factory=list)

    def write(self) -> None:
        """Write metrics.json, then run.json, which says whether it is done."""
        if self.values:
            write_text(self.folder / "metrics.json", json.dumps([asdict(v) for v in self.values], indent=1) + "\n")
        write_text(self.folder / "run.json", json.dumps(self.log, indent=2, default=str, ensure_ascii=False) + "\n")

    def find(self, metric: str, split: str, backbone: str | None = None) -> Value:
        """The value of a metric on a split.

        Raises:
            KeyError: it was not measured.
        """
        for value in self.values:
            if (value.metric, value.split) == (metric, split) and backbone in (None, value.backbone):
                return value
        raise KeyError(f"{metric} on {split}")

    @property
    def name(self) -> str:
        """Algorithm and concept."""
        return f"{self.log['algo']} on {self.concept}"

    @property
    def concept(self) -> str:
        """What was forgotten: church; church+nudity for two at once; "nudity, then church" for one after the other."""
        concept = self.log["config"]["concept"]
        return ", then ".join(concept["of"]) if concept.get("continual") else concept["name"]


def load_run(folder: str | Path) -> Run:
    """Read a run's folder.

    Raises:
        UserError: it is not one, or run.json is damaged.
    """
    folder = Path(folder)
    path = folder / "run.json"
    if not path.is_file():
        raise UserError(f"{folder}: not a run (no run.json there)")
    try:
        log = json.loads(path.read_text(encoding="utf-8"))
        metrics = folder / "metrics.json"
        values = [Value(**v) for v in json.loads(metrics.read_text(encoding="utf-8"))] if metrics.is_file() else []
        if not {"status", "algo", "config"} <= set(log):
            raise ValueError("it lacks status, algo or config")
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder}: run.json or metrics.json is damaged ({error})") from error
    return Run(folder, log, values)


def find_runs(folders: Sequence[str]) -> list[Run]:
    """The runs at these folders, or anywhere below them: 2-ga-church before 10-ga-church."""
    found = []
    for folder in folders:
        root = Path(folder)
        paths = [root] if (root / "run.json").is_file() else sorted((p.parent for p in root.rglob("run.json")), key=by_number)
        if not paths:
            raise UserError(f"{folder}: no run there")
        found += [load_run(path) for path in paths]
    return found


def by_number(path: Path) -> list[list[str | int]]:
    """A key that sorts paths by name, numbers in them as numbers."""
    return [[int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))] for name in path.parts]


def number(value: float | None) -> str:
    """Three decimals below 100, one below 10,000, then none; an empty cell where there is no number."""
    if value is None:
        return ""
    places = 0 if abs(value) >= 10_000 else 3 if abs(value) < 100 else 1
    return f"{value:.{places}f}"


HEAD = ("metric", "on", "original", "unlearned", "change", "95 % interval", "n")
ARROW = {"higher": " ↑", "lower": " ↓", "": ""}


def rows(run: Run, table: str) -> list[list[str]]:
    """The cells of one table, under `HEAD`; the arrow at a metric's name points to the better side."""
    return [
        [
            v.metric + ARROW[v.better], v.split, number(v.original), number(v.unlearned),
            "" if v.difference is None else f"{v.difference:+.3f}",
            "" if v.low is None else f"{number(v.low)}..{number(v.high)}", str(v.n or ""),
        ]
        for v in run.values if v.table == table
    ]  # fmt: skip


def remarks(run: Run, table: str) -> str:
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


def provenance(run: Run) -> str:
    """The one line that says what made the numbers."""
    log = run.log
    sample, model = log["config"]["sample"], log["config"]["model"]
    revision = f"@{model['revision']}" if model.get("revision") else ""
    return (
        f"{run.name}; model {model['path']}{revision} ({log['fingerprint'][:12]}), {log['scheduler']}, {sample['steps']} steps, "
        f"guidance {sample['guidance']}, {model['size']} px, sampling seed {sample['seed']}, "
        f"unlearning seed {log['config']['seed']}, {log['device']}, unlearnbench {log['versions']['unlearnbench']}"
    )


def show(run: Run, console: Console | None = None) -> None:
    """Print a run's tables; a column that is empty in a table is left out of it."""
    console = console or screen()
    for name in tables(run):
        cells = rows(run, name)
        if cells:
            full = [i for i in range(len(HEAD)) if any(row[i] for row in cells)]
            table = Table(title=name, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)
            for i in full:
                table.add_column(
                    HEAD[i], justify="left" if HEAD[i] in ("metric", "on", "95 % interval") else "right", no_wrap=HEAD[i] != "on"
                )
            for row in cells:
                table.add_row(*(row[i] for i in full))
            console.print(table)
            if remark := remarks(run, name):
                console.print(remark, style="dim", highlight=False, markup=False)
            console.print()
    if run.log.get("status") != "done":
        console.print(f"status: {run.log.get('status')}: {run.log.get('error', 'not finished')}", style="red", markup=False)
    if "fingerprint" in run.log:
        console.print(provenance(run), style="dim", highlight=False, markup=False)
    console.print(f"{run.folder}: images/, metrics.json, tables.md", style="dim", highlight=False, markup=False)


def markdown(run: Run) -> str:
    """The tables as markdown."""
    lines = [f"# {run.name}", ""]
    for name in tables(run):
        cells = rows(run, name)
        if cells:
            lines += [f"## {name}", "", "| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
            lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
            lines += ["", remarks(run, name), ""] if remarks(run, name) else [""]
    if run.log["status"] != "done":
        lines += [f"status: {run.log['status']}: {run.log.get('error', 'not finished')}", ""]
    return "\n".join([*lines, *([provenance(run), ""] if "fingerprint" in run.log else [])])


def as_csv(run: Run) -> str:
    """Every value of the run, one a line, unrounded."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [*Value.__dataclass_fields__, "difference"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**asdict(v), "difference": v.difference} for v in run.values)
    return out.getvalue()
