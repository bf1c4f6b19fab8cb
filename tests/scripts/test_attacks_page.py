"""The page of attacks: every row has a cell for each column."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from attacks import page

from unlearnbench.reports.attack_report import SuccessRate
from unlearnbench.results.run import Run


def test_a_page_with_first_successes_has_a_column_for_them_in_every_row():
    run = Run(Path("r"), {"algo": "uce", "config": {"seed": 0, "concept": {"name": "church"}}})
    rates = {"paraphrases": SuccessRate("typo", 4, 4, 0, 2, 2), "p4d": SuccessRate("", 4, 4, 0, 1, 1, any_found=3)}
    reports = [(run, {"attack": name, "shares": [asdict(rate)]}) for name, rate in rates.items()]
    rows = [line.split("|")[1:-1] for line in page(reports, [], "make").splitlines() if line.startswith("|")]
    assert {len(row) for row in rows} == {11}
    assert rows[0][-1].strip() == "first success"
    assert [row[-1].strip() for row in rows[2:]] == ["", "0.750"]
    assert "first success" not in page(reports[:1], [], "make")
