"""Several runs beside each other: the settings in which they differ, the main numbers, means over seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from unlearnbench.config.errors import UserError, suggest
from unlearnbench.console import format_number
from unlearnbench.data.prompts import RETAIN_SPLITS
from unlearnbench.results.intervals import mean_interval
from unlearnbench.results.run import Run, Value
from unlearnbench.results.settings import differing_settings, flatten, original_hash

COMPARED = (
    ("forget_accuracy", "forget"), ("integrity_norm", "retain"), ("integrity", "retain"), ("retain_accuracy", "retain"),
    ("fid", "retain"), ("fid_original", "retain"), ("clipscore", "retain"),
)  # fmt: skip
ASIDE = ("kid",)  # of the standard suite, and in no table, where fid stands for it
GAPS = (("forget_accuracy", "forget"), ("retain_accuracy", "retain"), ("fid", "retain"), ("clipscore", "retain"))


class Cell(NamedTuple):
    """A number with its 95 % interval: a run's own, or the mean over a group's runs with the interval over the runs."""

    value: float
    low: float | None
    high: float | None
    best: bool

    def text(self, interval: bool = False) -> str:
        """As in tables; the best of a column has a star."""
        ends = f" ({format_number(self.low)}..{format_number(self.high)})" if interval and self.low is not None else ""
        return format_number(self.value) + "*" * self.best + ends


@dataclass(frozen=True)
class Row:
    """A run, or runs that differ only in what they are grouped over.

    Attributes:
        runs: the run, or the group's.
        settings: under `Comparison.settings`.
        cells: under `Comparison.measures`; None where it was not measured.
    """

    runs: list[Run]
    settings: list[str]
    cells: list[Cell | None]

    @property
    def status(self) -> str:
        """The run's, or how many of the group's are done."""
        done = sum(run.log["status"] == "done" for run in self.runs)
        if len(self.runs) == 1 or done == len(self.runs):
            return str(self.runs[0].log["status"])
        return f"{done} of {len(self.runs)} done"


@dataclass(frozen=True)
class Comparison:
    """Rows under the settings that tell them apart and the numbers that were measured.

    Attributes:
        settings: names of settings, dotted; "algo" is the method's name, "folder" tells rows apart that are equal else.
        measures: the first value found of each metric and split, for its name and its better side.
        rows: one a run, or one a group.
        over: the settings that groups are made over.
    """

    settings: list[str]
    measures: list[Value]
    rows: list[Row]
    over: tuple[str, ...] = ()

    @property
    def head(self) -> list[str]:
        """The columns' names."""
        count = ["runs"] if self.over else []
        return [*self.settings, "status", *count, *(f"{v.metric} ({v.split})" for v in self.measures)]

    @property
    def body(self) -> list[list[str]]:
        """The cells as they are printed."""
        return [
            [
                *row.settings, row.status, *([str(len(row.runs))] if self.over else []),
                *("" if cell is None else cell.text(bool(self.over)) for cell in row.cells),
            ]
            for row in self.rows
        ]  # fmt: skip

    def labels(self) -> list[str]:
        """A short name for each row: its algorithm and up to three settings that tell it apart, or its folder."""
        names = []
        for row in self.rows:
            apart = [
                (k, v) for k, v in zip(self.settings, row.settings, strict=True) if k not in ("algo", "concept.name", "folder")
            ]
            told = [f"{key.rpartition('.')[2]}={value}" for key, value in apart] if len(apart) <= 3 else []
            names.append(" ".join([row.runs[0].log["algo"], *told]))
        keys = [(name, row.runs[0].concept) for name, row in zip(names, self.rows, strict=True)]
        return [
            f"{name} ({row.runs[0].folder.name})" if keys.count(key) > 1 else name
            for name, key, row in zip(names, keys, self.rows, strict=True)
        ]

    def records(self) -> list[dict[str, Any]]:
        """Every row by name, unrounded: each number with the ends of its interval, no stars."""
        found = []
        for row in self.rows:
            record: dict[str, Any] = {**dict(zip(self.settings, row.settings, strict=True)), "status": row.status}
            record |= {"runs": len(row.runs)} if self.over else {}
            for v, cell in zip(self.measures, row.cells, strict=True):
                name = f"{v.metric} ({v.split})"
                ends = ("", *((" low", " high") if self.over or v.low is not None else ()))
                record |= {name + end: None if cell is None else cell[i] for i, end in enumerate(ends)}
            found.append(record)
        return found


def compare(runs: Sequence[Run], over: Sequence[str] = (), whole: bool = False) -> Comparison:
    """Put runs beside each other, under the settings that tell them apart and what they measured (see `columns`).

    A setting of an algorithm or of a concept stands there if it differs among runs of that one algorithm or concept.

    Args:
        runs: in the order of the rows.
        over: settings, such as "seed": runs that agree in all else become one row, with means over them.
        whole: every metric on every split, for programs.

    Raises:
        UserError: no run has such a setting.
    """
    flat = [flatten(run.log["config"]) | {"concept.name": run.concept} | original_hash(run) for run in runs]
    keys = sorted({key for settings in flat for key in settings})
    for key in over:
        if key not in keys:
            raise UserError(f"--group {key}: no such setting in these runs; {suggest(key, keys)}")
    differing = [key for key in differing_settings(flat) if key not in over and not key.startswith("metrics.")]
    groups: dict[str, list[int]] = {}
    for i, (run, settings) in enumerate(zip(runs, flat, strict=True)):
        same = [run.log["algo"], *(settings.get(key) for key in differing)] if over else [i]
        groups.setdefault(json.dumps(same, default=str), []).append(i)
    named = [settings | {"algo": run.log["algo"], "folder": run.folder} for run, settings in zip(runs, flat, strict=True)]
    shown, told = _told([named[group[0]] for group in groups.values()], differing, flat)
    measures = [next(v for run in runs if (v := first_value(run, m, s))) for m, s in columns(runs, whole)]
    cells = [[_cell([runs[i] for i in group], v, bool(over)) for v in measures] for group in groups.values()]
    best = [_best([row[column] for row in cells], v.better) for column, v in enumerate(measures)]
    return Comparison(
        shown, measures,
        [
            Row(
                [runs[i] for i in group],
                settings,
                [cell and cell._replace(best=cell.value == top) for cell, top in zip(row, best, strict=True)],
            )
            for group, settings, row in zip(groups.values(), told, cells, strict=True)
        ],
        tuple(over),
    )  # fmt: skip


def _told(
    rows: Sequence[dict[str, Any]], differing: Sequence[str], flat: Sequence[dict[str, Any]]
) -> tuple[list[str], list[list[str]]]:
    """The settings that tell rows apart, and what they are in each; the folder, too, where rows are still equal."""
    own = _within(flat, "algo") | _within(flat, "concept") | {"concept.name"}
    shown = [key for key in differing if key in own or not key.startswith(("algo.", "concept."))]
    shown = [*(["algo"] if len({row["algo"] for row in rows}) > 1 else []), *(k for k in shown if not k.endswith("_target_"))]
    told = [[str(row.get(key, "")) for key in shown] for row in rows]
    if len(set(map(tuple, told))) < len(told):
        return [*shown, "folder"], [[*line, str(row["folder"])] for line, row in zip(told, rows, strict=True)]
    return shown, told


def _within(flat: Sequence[dict[str, Any]], group: str) -> set[str]:
    """The settings that differ among those of one name: of one algorithm, or of one concept."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for settings in flat:
        by_name.setdefault(str(settings.get(f"{group}.name")), []).append(settings)
    return {key for some in by_name.values() for key in differing_settings(some) if key.startswith(f"{group}.")}


def columns(runs: Sequence[Run], whole: bool = False) -> list[tuple[str, str]]:
    """What of the runs' values a comparison has, as (metric, split): `COMPARED` first, then `oracle_gap`, then others.

    The whole has all others. A table has those that the standard suite lacks: other metrics than its own, and the rows of
    each concept where several are forgotten ("forget: church"). It leaves out costs, paraphrases, the parts of the retain
    prompts, and what is a part by its name, as binding_subject_color is of binding.
    """
    there = {(v.metric, v.split): v.table for run in runs for v in run.values}
    main = [c for c in (*COMPARED, *(("oracle_gap", metric) for metric, _ in GAPS)) if c in there]
    others = [c for c in there if c not in main]
    if whole:
        return main + others
    known = {*ASIDE, *(metric for metric, _ in COMPARED)}
    wholes = [f"{metric}_" for metric, _ in others if metric not in known]
    return main + [
        (metric, split) for metric, split in others
        if (metric not in known or ": " in split) and there[metric, split] != "Cost"
        and split.partition(": ")[0] not in ("paraphrase", *RETAIN_SPLITS) and not metric.startswith(tuple(wholes))
    ]  # fmt: skip


def with_gaps(runs: Sequence[Run]) -> list[Run]:
    """The same runs, each with its distance to the oracle that is among them: |x - x of the model retrained without the concept|.

    `oracle_gap (fid)` and so on, for the metrics in `GAPS`, lower is better, 0 for the oracle itself. There is none for
    integrity: an oracle paints other pictures for the same seed, and a good method lies above it.

    Raises:
        UserError: no oracle of a run's concept, or more than one, with the same sampling.
    """
    found = []
    for run in runs:
        like = [other for other in runs if other.log["algo"] == "oracle" and _measured_as(other) == _measured_as(run)]
        if len(like) != 1:
            count = len(like) or "no"
            raise UserError(f"--gap: {run.folder}: takes one run of algo=oracle with its concept and sampling; {count} given")
        gaps = []
        for metric, split in GAPS:
            here, there = first_value(run, metric, split), first_value(like[0], metric, split)
            if here and there:
                gap = abs(here.unlearned - there.unlearned)
                gaps.append(Value(table="Retention", metric="oracle_gap", split=metric, unlearned=gap, better="lower", n=here.n))
        found.append(replace(run, values=[*run.values, *gaps]))
    return found


def _measured_as(run: Run) -> tuple[Any, ...]:
    """What two runs must share for their numbers to be about the same images."""
    config = run.log["config"]
    return run.concept, config.get("sample"), config.get("retain"), original_hash(run)


def comparison(runs: Sequence[Run], over: Sequence[str] = ()) -> tuple[list[str], list[list[str]]]:
    """The same as a head and rows of text; the best of each column has a star."""
    made = compare(runs, over)
    return made.head, made.body


def first_value(run: Run, metric: str, split: str) -> Value | None:
    """The first value of a metric on a split, of whatever backbone."""
    return next((v for v in run.values if (v.metric, v.split) == (metric, split)), None)


def _cell(runs: Sequence[Run], measure: Value, grouped: bool) -> Cell | None:
    found = [v for run in runs if (v := first_value(run, measure.metric, measure.split))]
    if not found:
        return None
    if grouped:
        return Cell(*mean_interval([v.unlearned for v in found]), False)
    return Cell(found[0].unlearned, found[0].low, found[0].high, False)


def _best(cells: Sequence[Cell | None], better: str) -> float | None:
    values = [cell.value for cell in cells if cell is not None]
    return None if better == "" else max(values) if better == "higher" else min(values)
