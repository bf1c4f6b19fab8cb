"""Tables as csv, markdown and LaTeX, and comparisons of runs in these forms and json."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from unlearnbench.reports.comparison import compare
from unlearnbench.results.run import Run

TEX_WORDS = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
TEX_ESCAPES = str.maketrans({**{sign: f"\\{sign}" for sign in "&%$#_{}"}, **TEX_WORDS})


def records_csv(records: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """Records as csv.

    Args:
        records: a mapping for each line.
        columns: the columns, in order; by default the keys of the first record. Other keys are left out.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, columns or list(records[0]), lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table as markdown."""
    lines = [[cell.replace("|", "\\|") for cell in row] for row in [head, ["---"] * len(head), *body]]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def latex_table(head: Sequence[str], body: Sequence[Sequence[str]], text_columns: int) -> str:
    """A tabular for LaTeX with booktabs; a starred number becomes bold.

    Args:
        head: the columns' names.
        body: rows of cells.
        text_columns: the number of first columns that hold text and are aligned to the left; the others hold numbers.
    """

    def cell(text: str, column: int) -> str:
        starred, rest = text.partition("*")[::2] if column >= text_columns and "*" in text else ("", text)
        return (f"\\textbf{{{starred.translate(TEX_ESCAPES)}}}" if starred else "") + rest.translate(TEX_ESCAPES)

    lines = ["\\begin{tabular}{" + "l" * text_columns + "r" * (len(head) - text_columns) + "}", "\\toprule"]
    lines += [" & ".join(name.translate(TEX_ESCAPES) for name in head) + r" \\", "\\midrule"]
    lines += [" & ".join(cell(text, i) for i, text in enumerate(row)) + r" \\" for row in body]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def export_comparison(form: str, runs: Sequence[Run], over: Sequence[str] = (), pair: bool = False) -> str:
    """A comparison as md, csv, tex or json; csv and json have everything that was measured (see `comparison.columns`).

    Args:
        form: md, csv, tex or json.
        runs: the runs, two of them for `pair`.
        over: settings to group over (see `compare`).
        pair: compare the first run with the others image by image instead.

    Raises:
        UserError: see `comparison.compare` and `paired_test.paired_tests`.
    """
    if pair:
        from unlearnbench.reports.paired_test import PAIRED_HEAD, paired_tests

        tests = paired_tests(*runs)
        head, body, records, text_columns = PAIRED_HEAD, [test.cells for test in tests], [asdict(test) for test in tests], 3
    else:
        is_data = form in ("csv", "json")
        comparison = compare(runs, over, whole=is_data) if is_data else compare(runs, over).for_readers()
        head, body, records = comparison.head, comparison.body, comparison.records()
        text_columns = len(comparison.settings) + 1
    if form == "csv":
        return records_csv(records)
    if form == "json":
        return json.dumps(records, indent=1) + "\n"
    return latex_table(head, body, text_columns) if form == "tex" else markdown_table(head, body)
