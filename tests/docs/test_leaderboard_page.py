"""The script of the leaderboard's page: heads sort by mouse and keyboard, and each table has a plot that shows a row."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "assets" / "leaderboard.js"
PAGE = """<!doctype html><article><table><thead>
<tr><th>algorithm</th><th>UA</th><th>integrity</th><th>FID</th></tr></thead><tbody>
<tr><td>b</td><td>1.000 (0.9..1.0)</td><td>-2.500</td><td>1,203.7</td></tr>
<tr><td>a</td><td>0.500</td><td>0.900</td><td></td></tr>
<tr><td>c</td><td>0.750</td><td>0.800</td><td>38.2</td></tr></tbody></table>
<table><thead><tr><th>setting</th><th>UA</th></tr></thead><tbody><tr><td>x</td><td>1</td></tr></tbody></table></article><pre></pre>
<script>SCRIPT</script><script>
  const seen = {}, rows = () => [...document.querySelectorAll("table[data-leaderboard] tbody tr")];
  const names = () => rows().map((row) => row.cells[0].textContent).join("");
  const head = (i) => document.querySelectorAll("table[data-leaderboard] th button")[i];
  const order = (i) => [head(i).click(), names(), head(i).closest("th").getAttribute("aria-sort")].slice(1);
  seen.ua = order(1); seen.again = order(1); seen.fid = order(3); seen.name = order(0);
  head(2).focus(); seen.focus = document.activeElement === head(2);
  seen.tables = document.querySelectorAll("table[data-leaderboard]").length;
  seen.circles = [...document.querySelectorAll("circle")].map((one) => one.getAttribute("aria-label"));
  document.querySelector("circle").focus(); seen.said = document.querySelector("output").value;
  seen.lit = document.querySelectorAll("tr.on, g.on").length;
  document.querySelector("pre").textContent = JSON.stringify(seen);
</script>"""


def test_the_page_of_the_leaderboard_sorts_and_shows_rows(tmp_path):
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if chromium is None:
        pytest.skip("no chromium here")
    (tmp_path / "page.html").write_text(PAGE.replace("SCRIPT", SCRIPT.read_text(encoding="utf-8")), encoding="utf-8")
    words = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    outcome = subprocess.run(
        [*words, "--virtual-time-budget=2000", "--dump-dom", (tmp_path / "page.html").as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    seen = json.loads(html.unescape(re.search(r"<pre>(\{.*?\})</pre>", outcome.stdout, re.DOTALL)[1]))
    assert seen["ua"] == ["bca", "descending"]
    assert seen["again"] == ["acb", "ascending"]
    assert seen["fid"] == ["cba", "ascending"], "lower is better; what is empty stands last"
    assert seen["name"] == ["abc", "ascending"]
    assert (seen["focus"], seen["tables"]) == (True, 1)
    assert seen["circles"][0] == "b: UA 1.000 (0.9..1.0), integrity -2.500"
    assert seen["said"].startswith("b · UA 1.000 (0.9..1.0) · integrity -2.500")
    assert seen["lit"] == 2
