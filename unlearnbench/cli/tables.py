"""Tables on stdout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unlearnbench.reports.interference import Matrix
    from unlearnbench.results.run import Run


def print_comparison(runs: Sequence[Run], over: Sequence[str] = ()) -> None:
    """Print runs side by side; one row for all runs that differ in the settings `over` alone."""
    from unlearnbench.reports.comparison import compare

    comparison = compare(runs, over).for_readers()
    student = "with the 95 % interval of the mean (Student's t; at least the runs' own)"
    remark = "* best of the column for one concept and n" + (f"; mean over {', '.join(over)}, {student}" if over else "")
    settings = len(comparison.settings)
    print_table(comparison.head, comparison.body, remark, settings + 1, max(settings, 1))


def print_table(head: Sequence[str], body: Sequence[Sequence[str]], remark: str, text_columns: int, keys: int = 1) -> None:
    """Print a table and a remark below it.

    Args:
        head: the names of the columns.
        body: the cells.
        remark: the line below.
        text_columns: the number of first columns that are aligned to the left.
        keys: the number of first columns that are repeated where the table is too wide for one block.
    """
    from unlearnbench.console.tables import print_columns, print_remark, table_console

    console = table_console()
    if body:
        print_columns(console, head, body, head[:text_columns], keys, starred_bold=True)
    print_remark(console, remark)


def print_matrices(matrices: Sequence[Matrix]) -> None:
    """Print what forgetting each concept did to every other one: a table for each method and metric."""
    from unlearnbench.console.tables import print_columns, print_remark, table_console
    from unlearnbench.reports.interference import REMARK

    console = table_console()
    for matrix in matrices:
        print_columns(console, matrix.head, matrix.body, ("forgotten",), 1, matrix.title)
        console.print()
    print_remark(console, REMARK)
