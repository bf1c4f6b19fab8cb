"""Is any row of the leaderboards or trial of the tuning stale, that is, of other settings or weights than those of today?

python scripts/check_rows.py        # exit 1 if one is
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from leaderboard import NUMBERS, settings_of, words_of
from tune import Search

from unlearnbench.config.compose import compose
from unlearnbench.console import progress_bar
from unlearnbench.experiment.run_spec import RunSpec
from unlearnbench.recipes.pictoworld_quality import weights_hash

DOCS = Path(__file__).parent.parent / "docs"


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a csv."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def stale_rows(name: str, quick: bool) -> Iterator[tuple[str, bool]]:
    """Every row of a leaderboard's csv, and whether it is stale."""
    weights = weights_hash()[:16]
    for row in rows_of(DOCS / name):
        words = words_of(row["algo"], row["concept"], row["seed"], quick)
        fresh = set(NUMBERS) <= row.keys() and row["weights"] == weights
        yield " ".join(words), not fresh or row["settings"] != settings_of(RunSpec.of(compose(*words)))


def stale_trials(name: str) -> Iterator[tuple[str, bool]]:
    """Every trial of the tuning's csv, and whether it is stale."""
    search = Search(["fish", "dotted"], 100, 8, Path("outputs/tune"), DOCS / name)
    for row in rows_of(DOCS / name):
        yield f"{row['algo']} trial {row['trial']}", row["made"] != search.made(row["algo"], row["settings"].split())


def main() -> int:
    """Check, print."""
    found = 0
    for name, verdicts in (
        ("leaderboard.csv", stale_rows("leaderboard.csv", False)),
        ("leaderboard-quick.csv", stale_rows("leaderboard-quick.csv", True)),
        ("tuning.csv", stale_trials("tuning.csv")),
    ):
        total, stale = len(rows_of(DOCS / name)), []
        with progress_bar(name, total) as shown:
            for what, is_stale in verdicts:
                stale += [what] if is_stale else []
                shown.advance()
        print(f"{name}: {len(stale)} of {total} stale" + "".join(f"\n  {what}" for what in stale[:10]))
        found += len(stale)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
