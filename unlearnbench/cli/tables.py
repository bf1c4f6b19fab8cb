"""Tables on stdout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unlearnbench.results.run import Run


def print_comparison(runs: Sequence[Run], over: Sequence[str] = ()) -> None:
    """Print runs side by side; one row for all runs that differ in the settings `over` alone."""
    from unlearnbench.reports.comparison import compare

    comparison = compare(runs, over)
    student = "with the 95 % interval of the mean (Student's t; at least the runs' own)"
    remark = "* best of the column for one concept and n" + (f"; mean over {', '.join(over)}, {student}" if over else "")
    print_table(comparison.head, comparison.body, remark, len(comparison.settings) + 1)


def print_table(head: Sequence[str], body: Sequence[Sequence[str]], remark: str, text_columns: int) -> None:
    """Print a table and a remark below it; the first `text_columns` columns are aligned to the left."""
    from unlearnbench.console import build_table, print_remark, table_console

    console = table_console()
    if body:
        console.print(build_table(head, body, head[:text_columns], wrapped=head))
    print_remark(console, remark, soft_wrap=True)
