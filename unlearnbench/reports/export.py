"""Comparisons as csv, json, markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from unlearnbench.reports.comparison import compare
from unlearnbench.results.run import Run


def records_csv(records: Sequence[dict[str, Any]]) -> str:
    """Records as csv."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table as markdown."""
    lines = [[cell.replace("|", "\\|") for cell in row] for row in [head, ["---"] * len(head), *body]]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


WORDS = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
TEX = str.maketrans({**{sign: f"\\{sign}" for sign in "&%$#_{}"}, **WORDS})


def latex_table(head: Sequence[str], body: Sequence[Sequence[str]], text_columns: int) -> str:
    """A tabular for LaTeX with booktabs; a star becomes bold.

    Args:
        head: the columns' names.
        body: rows of cells.
        text_columns: so many first columns are text, set to the left; the others are numbers.
    """

    def cell(text: str, column: int) -> str:
        starred, rest = text.partition("*")[::2] if column >= text_columns and "*" in text else ("", text)
        return (f"\\textbf{{{starred.translate(TEX)}}}" if starred else "") + rest.translate(TEX)

    lines = ["\\begin{tabular}{" + "l" * text_columns + "r" * (len(head) - text_columns) + "}", "\\toprule"]
    lines += [" & ".join(name.translate(TEX) for name in head) + r" \\", "\\midrule"]
    lines += [" & ".join(cell(text, i) for i, text in enumerate(row)) + r" \\" for row in body]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def export_comparison(form: str, runs: Sequence[Run], over: Sequence[str] = (), pair: bool = False) -> str:
    """A comparison in one of the forms md, csv, tex, json: csv and json of all that was measured (see `compare.columns`).

    Raises:
        UserError: see `compare.compare` and `paired.paired`.
    """
    if pair:
        from unlearnbench.reports.paired_test import PAIRED_HEAD, paired_tests

        tests = paired_tests(*runs)
        head, body, records, text_columns = PAIRED_HEAD, [test.cells for test in tests], [asdict(test) for test in tests], 2
    else:
        made = compare(runs, over, whole=form in ("csv", "json"))
        head, body, records, text_columns = made.head, made.body, made.records(), len(made.settings) + 1
    if form == "csv":
        return records_csv(records)
    if form == "json":
        return json.dumps(records, indent=1) + "\n"
    return latex_table(head, body, text_columns) if form == "tex" else markdown_table(head, body)
