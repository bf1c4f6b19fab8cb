"""A run's folder on disk: its log and its values."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnbench.config.errors import UserError
from unlearnbench.config.quoting import command_text
from unlearnbench.console.tables import format_number
from unlearnbench.results.intervals import interval_text
from unlearnbench.storage.atomic import write_text as write_text
from unlearnbench.storage.lock import is_locked

if TYPE_CHECKING:
    import pandas

BOUNDS: dict[str, tuple[float | None, float | None]] = {
    r"forget_accuracy|retain_accuracy|ua|ira|cra|pinpointness|(binding|geneval)(_.+)?": (0.0, 1.0),
    r"(rest_)?integrity(_norm)?": (None, 1.0),
    r"depth": (None, None),
    r"clipscore": (0.0, 100.0),
    r"fid|fid_original|cmmd|oracle_gap": (0.0, None),
}  # the ranges of the metrics of this package, by a pattern of their names
COUNTS = ("trained_parameters", "saved_bytes")  # values that are whole numbers


@dataclass(frozen=True, kw_only=True)
class Value:
    """One number of a run.

    Attributes:
        table: the table that it stands in: one of `TABLES`, or a stage of sequential unlearning.
        metric: its name, such as "integrity".
        split: the prompts it was measured on: forget, paraphrase, near, far, generic, retain (the last three together);
            "forget: church" if several concepts are forgotten.
        original: the original model's value; None for a metric that compares the two models.
        unlearned: the unlearned model's value.
        better: "higher", "lower" or "" if neither is better.
        n: how many images.
        low: the lower end of the 95 % interval of `unlearned`, if it has one.
        high: the upper end.
        backbone: the network, detector or distance that measured it.
        note: a remark in words, such as images left out and why, or a warning.
        extras: further numbers by name, such as D_reseed beside integrity_norm.
        interval: how the interval was computed, such as "bootstrap over 24 prompts"; "" if there is none or it is not known.
        lowest: the metric's lowest possible value; None if it has none, or if `BOUNDS` knows the metric.
        highest: the metric's highest possible value, likewise.
    """

    table: str
    metric: str
    split: str
    original: float | None = None
    unlearned: float
    better: str
    n: int
    low: float | None = None
    high: float | None = None
    backbone: str = ""
    note: str = ""
    extras: dict[str, float] = field(default_factory=dict, hash=False)
    interval: str = ""
    lowest: float | None = None
    highest: float | None = None

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        """The metric's lowest and highest possible value, None where it has none."""
        if self.table == "Cost":
            return 0.0, None
        known = next((bounds for name, bounds in BOUNDS.items() if re.fullmatch(name, self.metric)), (None, None))
        return (self.lowest, self.highest) if (self.lowest, self.highest) != (None, None) else known

    @property
    def place(self) -> tuple[str, str, str, str]:
        """What identifies it within a run."""
        return self.table, self.metric, self.split, self.backbone

    @property
    def difference(self) -> float | None:
        """The unlearned model's value minus the original's."""
        return None if self.original is None else self.unlearned - self.original


FRAME = ("table", "metric", "split", "original", "unlearned", "difference", "low", "high", "better", "n", "backbone", "note")


@dataclass(repr=False)
class Run:
    """A run's folder: run.json (what was done), metrics.json (what was measured)."""

    folder: Path
    log: dict[str, Any] = field(default_factory=dict)
    values: list[Value] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<Run {self._title()}, {len(self.values)} values, {self.folder}>"

    def _title(self) -> str:
        if {"algo", "config"} - self.log.keys() or "concept" not in self.log["config"]:
            return str(self.log.get("status", "not started"))
        return f"{self.name}: {self.log.get('status', 'not started')}"

    def _repr_html_(self) -> str:
        """The values as a table, for notebooks."""
        columns = ("metric", "on", "original", "unlearned", "95 % interval", "n")
        head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
        rows = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in _cells(v))}</tr>" for v in self.values)
        caption = html.escape(f"{self._title()}, {self.folder}")
        return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"

    def to_frame(self) -> pandas.DataFrame:
        """The values as a pandas data frame: a row for each, unrounded.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise UserError("to_frame needs pandas: pip install pandas") from error
        return pandas.DataFrame([{name: getattr(v, name) for name in FRAME} for v in self.values], columns=list(FRAME))

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
    def protocol(self) -> dict[str, Any] | None:
        """The published protocol that the settings follow, as in run.json; None if there is none."""
        return self.log["config"].get("protocol")

    @property
    def name(self) -> str:
        """Algorithm and concept."""
        return f"{self.log['algo']} on {self.concept}"

    @property
    def status(self) -> str:
        """How far the run is: running, done, failed, interrupted (by Ctrl-C), or stopped (its process ended without a word)."""
        status, error = str(self.log["status"]), str(self.log.get("error", ""))
        if status == "started":
            return "running" if is_locked(self.folder) else "stopped"
        if status == "error":
            return "interrupted" if error.startswith("KeyboardInterrupt") else "failed"  # the former by earlier versions
        return status

    @property
    def status_text(self) -> str:
        """The status in words: with the error of a failed run, and with the command that continues an unfinished one."""
        if self.status == "failed":
            return f"failed: {self.log.get('error', 'for an unknown reason')}"
        if self.status in ("interrupted", "stopped"):
            return f"{self.status}; {command_text('resume', self.folder)} continues"
        return self.status

    @property
    def concept(self) -> str:
        """What was forgotten: church; church+nudity for two at once; "nudity, then church" for one after the other."""
        concept = self.log["config"]["concept"]
        return ", then ".join(concept["of"]) if concept.get("continual") else concept["name"]


def _cells(value: Value) -> list[str]:
    """A value's row in a notebook."""
    interval = interval_text(value.low, value.high)
    unlearned = f"{value.unlearned:.0f}" if value.metric in COUNTS else format_number(value.unlearned)
    numbers = [format_number(value.original), unlearned]
    return [value.metric, value.split, *numbers, interval, str(value.n or "")]


def load_run(folder: str | Path) -> Run:
    """Read a run's folder.

    Raises:
        UserError: the folder holds no run, or run.json or metrics.json is damaged.
    """
    folder = Path(folder)
    _refuse_file(folder)
    path = folder / "run.json"
    if not path.is_file():
        raise UserError(f"{folder}: not a run (no run.json there)")
    try:
        log = json.loads(path.read_text(encoding="utf-8"))
        metrics = folder / "metrics.json"
        rows = json.loads(metrics.read_text(encoding="utf-8")) if metrics.is_file() else []
        values = [_read_value(row) for row in rows]
        if not {"status", "algo", "config"} <= set(log):
            raise ValueError("status, algo or config is missing")
        if not isinstance(log["config"], dict):
            raise ValueError("config holds no settings")
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder}: run.json or metrics.json is damaged ({error})") from error
    return Run(folder, log, values)


def _read_value(row: dict[str, Any]) -> Value:
    """A value of metrics.json.

    Version 0.1.0 wrote no extras: a note held the number ("D_reseed: 0.253") or began with the metric ("ira: subject").
    """
    if "extras" not in row:
        note = row.get("note", "").removeprefix(f"{row['metric']}: ")
        name, separator, number = note.partition(": ")
        if separator and re.fullmatch(r"-?\d+\.\d+", number):
            return Value(**{**row, "note": "", "extras": {name: float(number)}})
        return Value(**{**row, "note": note})
    return Value(**row)


def find_runs(folders: Sequence[str]) -> list[Run]:
    """The runs at these folders, or anywhere below them: 2-ga-church before 10-ga-church.

    Raises:
        UserError: there is none, or one is damaged.
    """
    runs = []
    for folder in folders:
        root = Path(folder)
        _refuse_file(root)
        paths = [root] if (root / "run.json").is_file() else sorted((p.parent for p in root.rglob("run.json")), key=natural_order)
        if not paths:
            raise UserError(f"{folder}: no run there")
        runs += [load_run(path) for path in paths]
    return runs


def _refuse_file(path: Path) -> None:
    """Refuse a file, such as run.json, in place of its run's folder."""
    if path.is_file():
        raise UserError(f"{path}: a file; name the run's folder, {path.parent}")


def natural_order(path: Path) -> list[list[str | int]]:
    """A key that sorts paths by name, numbers in them as numbers."""
    return [[int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))] for name in path.parts]
