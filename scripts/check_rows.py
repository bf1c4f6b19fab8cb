"""List the stale rows of the leaderboards and trials of the tuning: those of other settings or weights than today's.

python scripts/check_rows.py        # exit 1 if any is stale
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from leaderboard import DEPTH_NUMBERS, NUMBERS
from stored_runs import read_csv, run_overrides, settings_digest
from tune import Search

from unlearnbench.config.compose import compose
from unlearnbench.console import progress_bar
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.recipes.pictoworld_quality import weights_hash

DOCS = Path(__file__).parent.parent / "docs"


def check_leaderboard(name: str, quick: bool) -> Iterator[tuple[str, bool]]:
    """Every row of a leaderboard's csv, and whether it is stale."""
    weights = weights_hash()[:16]
    for row in read_csv(DOCS / name):
        overrides = run_overrides(row["algo"], row["concept"], row["seed"], quick)
        complete = {*NUMBERS} - {*DEPTH_NUMBERS} <= row.keys() and row["weights"] == weights
        yield " ".join(overrides), not complete or row["settings"] != settings_digest(RunSpec.of(compose(*overrides)))


def check_trials(name: str) -> Iterator[tuple[str, bool]]:
    """Every trial of the tuning's csv, and whether it is stale."""
    search = Search(["fish", "dotted"], 100, 8, Path("outputs/tune"), DOCS / name)
    for row in read_csv(DOCS / name):
        digest = search.trial_digest(row["algo"], row["settings"].split())
        yield f"{row['algo']} trial {row['trial']}", row["made"] != digest


def main() -> int:
    """Check, print."""
    count = 0
    for name, verdicts in (
        ("leaderboard.csv", check_leaderboard("leaderboard.csv", False)),
        ("leaderboard-quick.csv", check_leaderboard("leaderboard-quick.csv", True)),
        ("tuning.csv", check_trials("tuning.csv")),
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
