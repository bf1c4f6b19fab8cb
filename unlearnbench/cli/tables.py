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
    mean = f"; mean over {', '.join(over)}, with the 95 % interval of the mean (Student's t)" if over else ""
    print_table(comparison.head, comparison.body, f"* best of the column{mean}", len(comparison.settings) + 1)


def print_table(head: Sequence[str], body: Sequence[Sequence[str]], remark: str, text_columns: int) -> None:
    """Print a table and a remark below it; the first `text_columns` columns are aligned to the left."""
    from rich.table import Table
    from rich.text import Text

    from unlearnbench.console import table_console

    table = Table(box=None, pad_edge=False)
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i < text_columns else "right", overflow="fold")
    for row in body:
        table.add_row(*(Text(cell) for cell in row))
    console = table_console()
    if body:
        console.print(table)
    console.print(remark, style="dim", highlight=False, markup=False, soft_wrap=True)
