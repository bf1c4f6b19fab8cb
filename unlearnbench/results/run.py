"""A run's folder on disk: its log and its values."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unlearnbench.config.errors import UserError
from unlearnbench.storage.atomic import write_text as write_text


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
        paths = [root] if (root / "run.json").is_file() else sorted((p.parent for p in root.rglob("run.json")), key=natural_order)
        if not paths:
            raise UserError(f"{folder}: no run there")
        found += [load_run(path) for path in paths]
    return found


def natural_order(path: Path) -> list[list[str | int]]:
    """A key that sorts paths by name, numbers in them as numbers."""
    return [[int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))] for name in path.parts]
