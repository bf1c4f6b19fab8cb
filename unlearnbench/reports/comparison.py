"""Several runs side by side: the settings in which they differ, the main metrics, means over seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from unlearnbench.config.errors import UserError, similar
from unlearnbench.console.tables import format_number
from unlearnbench.data.prompts import RETAIN_SPLITS
from unlearnbench.results.intervals import group_interval, interval_text
from unlearnbench.results.metric_names import HEADLINE, distinct_names, unlearning_accuracy, with_split
from unlearnbench.results.run import Run, Value
from unlearnbench.results.settings import differing_settings, flatten, original_hash

COMPARED = (
    ("forget_accuracy", "forget"), ("integrity_norm", "retain"), ("integrity", "retain"), ("retain_accuracy", "retain"),
    ("fid", "retain"), ("fid_original", "retain"), ("clipscore", "retain"),
)  # fmt: skip
ASIDE = ("kid",)  # in the standard suite, but in no table: fid stands for it
GAPS = (("forget_accuracy", "forget"), ("retain_accuracy", "retain"), ("fid", "retain"), ("clipscore", "retain"))
FlatSettings = dict[str, Any]  # a run's settings by dotted name


class Measure(NamedTuple):
    """A column: a metric on a split, by any network, or by one of several that measured runs of one concept."""

    metric: str
    split: str
    backbone: str | None = None

    @property
    def name(self) -> str:
        """Its name in files."""
        return f"{self.metric} ({', '.join(filter(None, (self.split, self.backbone)))})"

    def covers(self, value: Value) -> bool:
        """Whether it is the column of a value."""
        return (value.metric, value.split) == (self.metric, self.split) and self.backbone in (None, value.backbone)

    def value(self, run: Run) -> Value | None:
        """The run's first value of it."""
        return next(filter(self.covers, run.values), None)


class Cell(NamedTuple):
    """A number with its 95 % interval: a run's own, or the mean over a group of runs with the interval of that mean.

    Attributes:
        value: the number.
        low: the lower end of the interval; None if there is none.
        high: the upper end.
        best: whether it is the best of its column among the runs of its concept and n.
        n: how many images, of each run; differing numbers of a group in order.
    """

    value: float
    low: float | None
    high: float | None
    best: bool
    n: tuple[int, ...] = ()

    def text(self, interval: bool = False, beside: float = 0.0) -> str:
        """The cell as tables show it, with the decimals of the column's largest number; the best of a column has a star."""
        ends = interval_text(self.low, self.high, self.value, beside) if interval else ""
        return format_number(self.value, beside) + "*" * self.best + (f" ({ends})" if ends else "")

    def complement(self) -> Cell:
        """The cell of 1 - value."""
        low, high = (None if end is None else 1 - end for end in (self.high, self.low))
        return self._replace(value=1 - self.value, low=low, high=high)


@dataclass(frozen=True)
class Row:
    """A run, or a group of runs that differ only in the settings that are grouped over.

    Attributes:
        runs: the run, or those of the group.
        settings: values of `Comparison.settings`.
        cells: values of `Comparison.measures`; None for what was not measured.
    """

    runs: list[Run]
    settings: list[str]
    cells: list[Cell | None]

    @property
    def status(self) -> str:
        """The run's status, or how many runs of the group are done."""
        done = sum(run.log["status"] == "done" for run in self.runs)
        if len(self.runs) == 1 or done == len(self.runs):
            return self.runs[0].status
        return f"{done} of {len(self.runs)} done"


@dataclass(frozen=True)
class Comparison:
    """A table of runs: the settings that distinguish the rows, and the metrics.

    Attributes:
        settings: dotted names of settings; "algo" is the method's name, and "folder" distinguishes rows with equal settings.
        measures: a value of each metric and split, which gives its name and its better side.
        rows: one for each run, or for each group.
        over: the settings that are grouped over.
        originals: the original model's value of each measure; None where the runs differ in it.
        names: the names of the measures: metric and split, as in files, and the network where several measured.
    """

    settings: list[str]
    measures: list[Value]
    rows: list[Row]
    over: tuple[str, ...] = ()
    originals: tuple[float | None, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def head(self) -> list[str]:
        """The names of the columns."""
        count = ["runs"] if self.over else []
        return [*self.settings, "status", *count, *self.names]

    @property
    def scales(self) -> list[float]:
        """The largest number of each measure, which decides the decimals of its column."""
        columns = [[row.cells[i] for row in self.rows] for i in range(len(self.measures))]
        return [max((abs(cell.value) for cell in column if cell is not None), default=0.0) for column in columns]

    def for_readers(self) -> Comparison:
        """The same table as it is printed: the headline first, detection rates as UA, metrics by their printed names."""
        columns = [(v.metric, v.split) for v in self.measures]
        first = [c for c in HEADLINE if c[0] != "integrity" or ("integrity_norm", "retain") not in columns]
        order = sorted(range(len(columns)), key=lambda i: first.index(columns[i]) if columns[i] in first else len(first))
        flipped = [v.metric == "forget_accuracy" for v in self.measures]
        shown = [unlearning_accuracy(v) if flip else v for v, flip in zip(self.measures, flipped, strict=True)]
        rows = []
        for row in self.rows:
            cells = [cell.complement() if cell and flip else cell for cell, flip in zip(row.cells, flipped, strict=True)]
            rows.append(replace(row, cells=[cells[i] for i in order]))
        originals = [1 - x if x is not None and flip else x for x, flip in zip(self.originals, flipped, strict=True)]
        printed = distinct_names([shown[i] for i in order])
        measures = [replace(shown[i], metric=name) for i, name in zip(order, printed, strict=True)]
        names = tuple(
            v.metric if columns[i] in COMPARED else with_split(v.metric, v.split) for v, i in zip(measures, order, strict=True)
        )
        return replace(self, measures=measures, rows=rows, names=names, originals=tuple(originals[i] for i in order))

    @property
    def body(self) -> list[list[str]]:
        """The cells as text, under `head`."""
        return [
            [
                *row.settings, row.status, *([str(len(row.runs))] if self.over else []),
                *("" if c is None else c.text(bool(self.over), scale) for c, scale in zip(row.cells, self.scales, strict=True)),
            ]
            for row in self.rows
        ]  # fmt: skip

    def labels(self) -> list[str]:
        """A short name for each row: its algorithm and up to three settings that distinguish it, or else its folder."""
        names = [self._label(row) for row in self.rows]
        keys = [(name, row.runs[0].concept) for name, row in zip(names, self.rows, strict=True)]
        return [
            f"{name} ({row.runs[0].folder.name})" if keys.count(key) > 1 else name
            for name, key, row in zip(names, keys, self.rows, strict=True)
        ]

    def _label(self, row: Row) -> str:
        settings = [
            f"{name.rpartition('.')[2]}={value}"
            for name, value in zip(self.settings, row.settings, strict=True)
            if name not in ("algo", "concept.name", "folder")
        ]
        return " ".join([row.runs[0].log["algo"], *(settings if len(settings) <= 3 else [])])

    def records(self) -> list[dict[str, Any]]:
        """Each row by column name, unrounded and without stars; each number with the ends of its interval.

        Of several rows each also has, at the end, the n of each number and the folders of its runs.
        """
        with_ends = [
            any(cell is not None and cell.low is not None for cell in column)
            for column in zip(*(row.cells for row in self.rows), strict=True)
        ]
        records = []
        for row in self.rows:
            record: dict[str, Any] = {**dict(zip(self.settings, row.settings, strict=True)), "status": row.status}
            record |= {"runs": len(row.runs)} if self.over else {}
            for name, cell, has_ends in zip(self.names, row.cells, with_ends, strict=True):
                ends = ("", *((" low", " high") if self.over or has_ends else ()))
                record |= {name + end: None if cell is None else cell[i] for i, end in enumerate(ends)}
            records.append(record | (self._samples(row) if len(self.rows) > 1 else {}))
        return records

    def _samples(self, row: Row) -> dict[str, str]:
        """The n of each number of a row, and the folders of its runs."""
        counts = {
            f"{name} n": "" if cell is None else "; ".join(map(str, cell.n))
            for name, cell in zip(self.names, row.cells, strict=True)
        }
        return {**counts, "folder": "; ".join(str(run.folder) for run in row.runs)}


def compare(runs: Sequence[Run], over: Sequence[str] = (), whole: bool = False) -> Comparison:
    """Put runs side by side, with the settings that distinguish them and their metrics (see `columns`).

    A setting of an algorithm (or concept) is a column if it differs among the runs of that one algorithm (or concept).

    Args:
        runs: in the order of the rows.
        over: settings, such as "seed"; runs that agree in all others become one row with means over them.
        whole: include every metric on every split, for programs.

    Raises:
        UserError: no run has a setting of `over`.
    """
    flat = [flatten(run.log["config"]) | {"concept.name": run.concept} | original_hash(run) for run in runs]
    _check_settings(over, flat)
    differing = [key for key in differing_settings(flat) if key not in over and not key.startswith("metrics.")]
    groups = _groups(runs, flat, differing) if over else [[i] for i in range(len(runs))]
    names, settings = _distinguishing_settings(runs, flat, groups, differing)
    layout = [measure for column in columns(runs, whole) for measure in _measures(runs, *column)]
    measures = [next(v for run in runs if (v := measure.value(run))) for measure in layout]
    cells = [[_cell([runs[i] for i in group], measure, bool(over)) for measure in layout] for group in groups]
    marked = _with_best(cells, measures, [runs[group[0]].concept for group in groups])
    rows = [Row([runs[i] for i in group], values, row) for group, values, row in zip(groups, settings, marked, strict=True)]
    originals = tuple(_original(runs, measure) for measure in layout)
    return Comparison(names, measures, rows, tuple(over), originals, tuple(measure.name for measure in layout))


def _measures(runs: Sequence[Run], metric: str, split: str) -> list[Measure]:
    """The columns of a metric on a split: one, or one for each network if several measured it for one concept.

    The detectors of different concepts share a column.
    """
    networks: dict[str, list[str]] = {}
    for run in runs:
        own = [v.backbone for v in run.values if (v.metric, v.split) == (metric, split)]
        networks[run.concept] = list(dict.fromkeys([*networks.get(run.concept, []), *own]))
    if all(len({*own} - {""}) < 2 for own in networks.values()):
        return [Measure(metric, split)]
    return [Measure(metric, split, name) for name in dict.fromkeys(name for own in networks.values() for name in own)]


def _original(runs: Sequence[Run], measure: Measure) -> float | None:
    """The original model's value of a measure; None where the runs differ in it."""
    values = {v.original for run in runs for v in run.values if measure.covers(v)}
    return values.pop() if len(values) == 1 else None


def _check_settings(over: Sequence[str], flat: Sequence[FlatSettings]) -> None:
    keys = {key for settings in flat for key in settings}
    for key in over:
        if key not in keys:
            differing = [name for name in differing_settings(flat) if not name.startswith(("metrics.", "algo.name"))]
            problem = f"no such setting in these runs; {similar(key, keys)}".strip("; ")
            problem = "algorithms are never averaged" if key == "algo" else problem
            raise UserError(f"--group {key}: {problem}; these runs differ in: {', '.join(differing) or 'no other setting'}")


def _groups(runs: Sequence[Run], flat: Sequence[FlatSettings], differing: Sequence[str]) -> list[list[int]]:
    """Indices of the runs of one algorithm that agree in all these settings."""
    groups: dict[str, list[int]] = {}
    for i, (run, settings) in enumerate(zip(runs, flat, strict=True)):
        key = json.dumps([run.log["algo"], *(settings.get(key) for key in differing)], default=str)
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def _distinguishing_settings(
    runs: Sequence[Run], flat: Sequence[FlatSettings], groups: Sequence[Sequence[int]], differing: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """The names of the settings that distinguish the groups, and their values for each; the folder if some are still equal."""
    first = [group[0] for group in groups]
    own = _differing_within(flat, "algo") | _differing_within(flat, "concept") | {"concept.name"}
    names = [key for key in differing if key in own or not key.startswith(("algo.", "concept."))]
    if len({runs[i].log["algo"] for i in first}) > 1:
        names = ["algo", *names]
    values = [[str((flat[i] | {"algo": runs[i].log["algo"]}).get(name, "")) for name in names] for i in first]
    if len(set(map(tuple, values))) < len(values):
        return [*names, "folder"], [[*row, str(runs[i].folder)] for i, row in zip(first, values, strict=True)]
    return names, values


def _differing_within(flat: Sequence[FlatSettings], group: str) -> set[str]:
    """The settings of a group, algo or concept, that differ among the runs of one algorithm or of one concept."""
    by_name: dict[str, list[FlatSettings]] = {}
    for settings in flat:
        by_name.setdefault(str(settings.get(f"{group}.name")), []).append(settings)
    return {key for some in by_name.values() for key in differing_settings(some) if key.startswith(f"{group}.")}


def columns(runs: Sequence[Run], whole: bool = False) -> list[tuple[str, str]]:
    """The columns of a comparison, as (metric, split): `COMPARED` first, then `oracle_gap`, then others.

    With `whole` the others are all that was measured. Without it they are metrics outside the standard suite, descriptions
    ("implicit"), and the splits of each concept if several are forgotten ("forget: church"); costs, paraphrases, the single
    retain splits and parts of a metric by name (binding_subject_color of binding) are left out.
    """
    tables = {(v.metric, v.split): v.table for run in runs for v in run.values}
    main = [c for c in (*COMPARED, *(("oracle_gap", metric) for metric, _ in GAPS)) if c in tables]
    others = [c for c in tables if c not in main]
    if whole:
        return main + others
    standard = {*ASIDE, *(metric for metric, _ in COMPARED)}
    part_prefixes = tuple(f"{metric}_" for metric, _ in others if metric not in standard)
    return main + [
        (metric, split) for metric, split in others
        if (metric not in standard or ": " in split or split == "implicit") and tables[metric, split] != "Cost"
        and split.partition(": ")[0] not in ("paraphrase", *RETAIN_SPLITS)
        and (not metric.startswith(part_prefixes) or metric.endswith("_norm"))
    ]  # fmt: skip


def with_gaps(runs: Sequence[Run]) -> list[Run]:
    """The same runs, each with its distance to the oracle among them, the model retrained without the concept.

    `oracle_gap` is |x - x of the oracle| for the metrics in `GAPS`, both by the same network; lower is better, 0 for the oracle
    itself. Integrity has no gap: an oracle generates other images for the same seed, so a good method scores above it.

    Raises:
        UserError: there is no oracle with a run's concept and sampling, or more than one.
    """
    return [replace(run, values=[*run.values, *_gaps(run, _oracle_of(run, runs))]) for run in runs]


def _oracle_of(run: Run, runs: Sequence[Run]) -> Run:
    oracles = [other for other in runs if other.log["algo"] == "oracle" and _image_settings(other) == _image_settings(run)]
    if len(oracles) != 1:
        count = f"these are {len(oracles)}" if oracles else "there is none among these runs"
        raise UserError(f"--gap: {run.folder}: needs one run of algo=oracle with its concept and sampling; {count}")
    return oracles[0]


def _gaps(run: Run, oracle: Run) -> list[Value]:
    gaps = []
    for metric, split in GAPS:
        for measure in _measures([run, oracle], metric, split):
            value, reference = measure.value(run), measure.value(oracle)
            if value and reference:
                gap, network = abs(value.unlearned - reference.unlearned), value.backbone
                of_gap = Value(table="Retention", metric="oracle_gap", split=metric, unlearned=gap, better="lower", n=value.n)
                gaps.append(replace(of_gap, backbone=network))
    return gaps


def _image_settings(run: Run) -> tuple[Any, ...]:
    """What two runs must share for their numbers to be about the same images."""
    config = run.log["config"]
    return run.concept, config.get("sample"), config.get("retain"), original_hash(run)


def comparison(runs: Sequence[Run], over: Sequence[str] = ()) -> tuple[list[str], list[list[str]]]:
    """`compare` as a head and rows of text; the best of each column has a star."""
    table = compare(runs, over)
    return table.head, table.body


def first_value(run: Run, metric: str, split: str, backbone: str | None = None) -> Value | None:
    """The first value of a metric on a split, by this backbone, or by any."""
    return Measure(metric, split, backbone).value(run)


def _cell(runs: Sequence[Run], measure: Measure, grouped: bool) -> Cell | None:
    values = [v for run in runs if (v := measure.value(run))]
    if not values:
        return None
    n = tuple(sorted({v.n for v in values}))
    if grouped:
        own = [(v.low, v.high) for v in values]
        return Cell(*group_interval([v.unlearned for v in values], own, *values[0].bounds), False, n)
    return Cell(values[0].unlearned, values[0].low, values[0].high, False, n)


def _with_best(
    cells: Sequence[Sequence[Cell | None]], measures: Sequence[Value], concepts: Sequence[str]
) -> list[list[Cell | None]]:
    """The same rows of cells, with the best of each column marked among at least two of one concept and n."""
    marked = [list(row) for row in cells]
    for column, measure in enumerate(measures):
        rivals: dict[tuple[str, tuple[int, ...]], list[Cell]] = {}
        for row, concept in zip(cells, concepts, strict=True):
            if (cell := row[column]) is not None:
                rivals.setdefault((concept, cell.n), []).append(cell)
        for row, concept in zip(marked, concepts, strict=True):
            if (cell := row[column]) is not None:
                row[column] = cell._replace(best=cell.value == _best(rivals[concept, cell.n], measure.better))
    return marked


def _best(cells: Sequence[Cell], better: str) -> float | None:
    """The best value; None if neither side is better, or there is nothing to compare."""
    values = [cell.value for cell in cells]
    return None if better == "" or len(values) < 2 else max(values) if better == "higher" else min(values)
