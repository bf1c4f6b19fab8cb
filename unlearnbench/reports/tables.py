"""The tables of one run: on the terminal, as markdown and as csv."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console

from unlearnbench.config.quoting import command_text
from unlearnbench.console.tables import format_number, print_columns, print_remark, table_console
from unlearnbench.data.prompts import FORGET_SPLITS, RETAIN_SPLITS
from unlearnbench.data.protocol import numbers_of
from unlearnbench.reports.export import markdown_table, records_csv
from unlearnbench.results.intervals import interval_text
from unlearnbench.results.metric_names import NAMES, distinct_names, headline
from unlearnbench.results.run import COUNTS, Run, Value

CLOSING_ROWS = 13
HEADLINE_TABLE = "Headline"
TABLES = ("Forgetting", "Retention", "Depth", "FID", "CLIPScore", "Cost")
TABLE_HEAD = ("metric", "on", "original", "unlearned", "change", "95 % interval", "n")
TEXT_COLUMNS = ("metric", "on", "95 % interval")
ARROWS = {"higher": " ↑", "lower": " ↓", "": ""}


def table_names(run: Run) -> list[str]:
    """The headline, `TABLES`, then one for each concept but the last if several were unlearned in sequence."""
    return list(dict.fromkeys([HEADLINE_TABLE, *TABLES, *(value.table for value in run.values)]))


def table_rows(run: Run, table: str) -> list[list[str]]:
    """The rows of one table, under `TABLE_HEAD`; the arrow after a metric's name points to the better side."""
    return _rows(table_values(run, table))


def table_values(run: Run, table: str) -> list[Value]:
    """The values of one table; those of the headline stand in the other tables, too."""
    return headline(run.values, TABLES) if table == HEADLINE_TABLE else [v for v in run.values if v.table == table]


def _rows(values: Sequence[Value]) -> list[list[str]]:
    return [_row(v, name) for v, name in zip(values, distinct_names(values), strict=True)]


def _row(v: Value, name: str) -> list[str]:
    """One value as cells, all with the decimals of the largest number among them; a count is a whole number."""
    numbers = v.original, v.unlearned
    return [
        name + ARROWS[v.better], v.split, format_number(v.original, *numbers),
        f"{v.unlearned:.0f}" if v.metric in COUNTS else format_number(v.unlearned, *numbers),
        format_number(v.difference, *numbers, sign="+"), interval_text(v.low, v.high, *numbers), str(v.n or ""),
    ]  # fmt: skip


def table_remarks(run: Run, table: str) -> str:
    """The backbones that measured a table, each with the notes and extra numbers of its values, in one line."""
    if table == HEADLINE_TABLE:
        return ""
    by_backbone: dict[str, list[Value]] = {}
    for v in run.values:
        if v.table == table:
            by_backbone.setdefault(v.backbone, []).append(v)
    remarks = {backbone: _remarks(values) for backbone, values in by_backbone.items()}
    own = [remark for backbone, remark in remarks.items() if remark and not backbone]
    named = {backbone: remark for backbone, remark in remarks.items() if backbone}
    return "; ".join([*(f"by {name}" + (f" ({remark})" if remark else "") for name, remark in named.items()), *own])


def _remarks(values: Sequence[Value]) -> str:
    """Each remark once, behind the metrics that it belongs to."""
    names_by_text: dict[str, list[str]] = {}
    for metric in dict.fromkeys(v.metric for v in values):
        rows = [v for v in values if v.metric == metric]
        for extra in dict.fromkeys(name for v in rows for name in v.extras):
            name, text = _extra_remark(extra, rows)
            names_by_text.setdefault(text, []).append(name)
        if any(v.note for v in rows):
            names_by_text.setdefault(_note_remark(rows), []).append(NAMES.get(metric, metric))
        if any(v.interval.startswith("Wilson") for v in rows):
            names_by_text.setdefault(_interval_remark(rows), []).append(NAMES.get(metric, metric))
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in names_by_text.items())


def _extra_remark(extra: str, values: Sequence[Value]) -> tuple[str, str]:
    """The name and text of an extra number of one metric: split by split, if there are several."""
    texts = {v.split: f"{v.extras[extra]:.3f}" for v in values if extra in v.extras}
    if len(values) == 1:
        return NAMES.get(values[0].metric, values[0].metric), f"{extra}: {texts[values[0].split]}"
    return extra, ", ".join(f"{split} {text}" for split, text in texts.items())


def _note_remark(values: Sequence[Value]) -> str:
    """The notes of one metric: split by split, unless all values have the same."""
    if len({v.note for v in values}) == 1:
        return values[0].note
    return ", ".join(f"{v.split} {v.note}" for v in values if v.note)


def _interval_remark(values: Sequence[Value]) -> str:
    """The splits of one metric whose interval is Wilson's and not a bootstrap, with the number of prompts."""
    exceptions = [v for v in values if v.interval.startswith("Wilson")]
    if len(exceptions) == len(values) and len({v.interval for v in values}) == 1:
        return f"interval {values[0].interval}"
    return "interval " + ", ".join(f"{v.split} {v.interval}" for v in exceptions)


def provenance_line(run: Run) -> str:
    """One line with the model, sampling, seeds, device and version of a run; of images made elsewhere, where they are from."""
    log = run.log
    if sources := log.get("images_from"):
        folders = f"unlearned {sources['unlearned']}, original {sources['original']}, prompts {sources['prompts']}"
        size, version = log["config"]["model"]["size"], log["versions"]["unlearnbench"]
        return f"{run.name}; images made elsewhere: {folders}, {size} px; {log['device']}, unlearnbench {version}"
    sample, model = log["config"]["sample"], log["config"]["model"]
    revision = f"@{model['revision']}" if model.get("revision") else ""
    return (
        f"{run.name}; model {model['path']}{revision} ({log['fingerprint'][:12]}), {log['scheduler']}, {sample['steps']} steps, "
        f"guidance {sample['guidance']}, {model['size']} px, sampling seed {sample['seed']}, "
        f"unlearning seed {log['config']['seed']}, {log['device']}, unlearnbench {log['versions']['unlearnbench']}"
    )


def protocol_lines(run: Run) -> list[str]:
    """The protocol that a run follows, the published numbers of the same method and concept, and what still differs."""
    if (protocol := run.protocol) is None:
        return []
    lines = [f"protocol {protocol['name']}: {protocol['paper']}, {protocol['code']} at {protocol['commit'][:12]}"]
    concept = run.log["config"]["concept"]
    numbers = numbers_of(protocol["name"], {str(concept["name"]), str(concept.get("column"))} - {""}, run.log["algo"])
    for method in dict.fromkeys(number.method for number in numbers):
        values = ", ".join(f"{number.metric} {number.value}" for number in numbers if number.method == method)
        lines.append(f"published for {method}: {values}")
    if protocol["differs"]:
        lines.append(f"what differs: {'; '.join(protocol['differs'])}")
    return lines


def print_run(run: Run, console: Console | None = None) -> None:
    """Print a run's tables; a column that is empty in a table is left out of it."""
    console = console or table_console()
    for name in table_names(run):
        if rows := table_rows(run, name):
            _print_metrics(console, name, rows)
            if remark := table_remarks(run, name):
                print_remark(console, remark)
            console.print()
    for line in protocol_lines(run):
        print_remark(console, line)
    if run.status != "done":
        console.print(f"status: {run.status_text}", style="red", markup=False, highlight=False, soft_wrap=True)
    if "fingerprint" in run.log:
        print_remark(console, provenance_line(run))
    files = [name for name in ("grid.png", "images/", "metrics.json", "tables.md") if (run.folder / name).exists()]
    print_remark(console, f"{run.folder}: {', '.join(files) or 'nothing yet'}")


def print_closing(run: Run) -> None:
    """Print the last lines of a run: its main values, warnings, its files and the next step; they fit a small terminal."""
    console = table_console()
    rows = summary_rows(run)
    _print_metrics(console, run.name, rows[:CLOSING_ROWS])
    if len(rows) > CLOSING_ROWS:
        print_remark(console, f"{len(rows) - CLOSING_ROWS} more rows: {command_text('show', run.folder)}")
    for warning in unshown_paraphrases(run):
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False)
    commands = " or ".join(command_text(command, run.folder) for command in ("show", "report"))
    print_remark(console, f"images: {run.folder}/grid.png; next: {commands}")


def summary_rows(run: Run) -> list[list[str]]:
    """The main values of a run, under `TABLE_HEAD`: the headline, forgetting, those on all retain prompts, the seconds.

    Of FID and CLIPScore the headline is enough, where it has them.
    """
    main = table_values(run, HEADLINE_TABLE)
    left_out = {"Cost"} | {v.table for v in main if v.table in ("FID", "CLIPScore")}
    names = [name for name in table_names(run)[1:] if name not in left_out]
    values = [*main, *(v for name in names for v in table_values(run, name) if v.split.partition(":")[0] not in RETAIN_SPLITS)]
    costs = [v for v in table_values(run, "Cost") if v.metric == "total_seconds"]
    return _rows([*dict.fromkeys([*values, *costs])])


def unshown_paraphrases(run: Run) -> list[str]:
    """A warning for each group of paraphrases that the original model's images do not show either."""
    return [
        f"{v.split}: the original model shows the concept in none of the {v.n} images; its prompts measure no forgetting"
        for v in run.values
        if v.metric == "forget_accuracy" and v.split.startswith(FORGET_SPLITS[1:]) and v.original == 0
    ]


def _print_metrics(console: Console, title: str, rows: Sequence[Sequence[str]]) -> None:
    """Print the rows of one table under those columns of `TABLE_HEAD` that are not empty."""
    columns = [i for i in range(len(TABLE_HEAD)) if any(row[i] for row in rows)]
    head, body = [TABLE_HEAD[i] for i in columns], [[row[i] for i in columns] for row in rows]
    print_columns(console, head, body, TEXT_COLUMNS, 2, title)


def run_markdown(run: Run) -> str:
    """The tables as markdown."""
    parts = [f"# {run.name}\n"]
    for name in table_names(run):
        if rows := table_rows(run, name):
            parts += [f"## {name}\n", markdown_table(TABLE_HEAD, rows)]
            parts += [f"{remark}\n"] if (remark := table_remarks(run, name)) else []
    parts += [f"{line}\n" for line in protocol_lines(run)]
    if run.status != "done":
        parts.append(f"status: {run.status_text}\n")
    if "fingerprint" in run.log:
        parts.append(f"{provenance_line(run)}\n")
    return "\n".join(parts)


def run_csv(run: Run) -> str:
    """Every value of the run, one a line, unrounded; extra numbers stand in the note."""
    columns = [name for name in Value.__dataclass_fields__ if name not in ("extras", "interval", "lowest", "highest")]
    records = [{**asdict(v), "note": _csv_note(v), "difference": v.difference} for v in run.values]
    methods = ["interval"] if any(v.interval for v in run.values) else []  # older runs do not say how intervals were computed
    return records_csv(records, [*columns, "difference", *methods])


def _csv_note(value: Value) -> str:
    return ", ".join(filter(None, (*(f"{name}: {number:.3f}" for name, number in value.extras.items()), value.note)))
