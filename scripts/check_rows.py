"""List the stale rows of the leaderboards and trials of the tuning: those of other settings or weights than today's.

python scripts/check_rows.py        # exit 1 if any is stale
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from boards import BOARDS, PICTOSCENES, PICTOWORLD, Board
from leaderboard import spec_of
from stored_runs import read_csv, settings_digest
from tune import Search

from unlearnbench.console import progress_bar

DOCS = Path(__file__).parent.parent / "docs"


def check_leaderboard(board: Board) -> Iterator[tuple[str, bool]]:
    """Every row of a leaderboard's csv, and whether it is stale; nothing if there is none yet."""
    weights = board.weights
    for row in read_csv(DOCS / f"{board.name}.csv"):
        complete = {*board.measured} <= row.keys() and row["weights"] == weights
        name = " ".join(board.overrides(row["algo"], row["concept"], row["seed"]))
        yield name, not complete or row["settings"] != settings_digest(spec_of(row, board))


def check_trials(board: Board) -> Iterator[tuple[str, bool]]:
    """Every trial of a world's csv of trials, and whether it is stale."""
    search = Search(board, [*board.tuned_on], 100, 8, Path("outputs/tune"), DOCS / board.trials)
    for row in read_csv(search.csv):
        digest = search.trial_digest(row["algo"], row["settings"].split())
        yield f"{row['algo']} trial {row['trial']}", row["made"] != digest


def main() -> int:
    """Check, print."""
    count = 0
    for name, verdicts in (
        *((f"{board.name}.csv", check_leaderboard(board)) for board in BOARDS),
        *((board.trials, check_trials(board)) for board in (PICTOWORLD, PICTOSCENES)),
    ):
        total, stale = len(read_csv(DOCS / name)), []
        with progress_bar(name, total) as bar:
            for row, is_stale in verdicts:
                stale += [row] if is_stale else []
                bar.advance()
        print(f"{name}: {len(stale)} of {total} stale" + "".join(f"\n  {row}" for row in stale[:10]))
        count += len(stale)
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
