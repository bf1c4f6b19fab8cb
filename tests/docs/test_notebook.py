"""docs/quickstart.ipynb: its code, as it stands, runs from the first cell to the last."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

import unlearnbench

NOTEBOOK = Path(__file__).parents[2] / "docs" / "quickstart.ipynb"
SMALL = ["experiment=smoke", "sample.prompts=1", "retain.splits=[far]"]


def code_cells():
    """The code of each cell, without those that install."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    return ["".join(cell["source"]) for cell in code if "install" not in cell["metadata"].get("tags", [])]


@pytest.mark.thorough
def test_the_notebook_runs_with_the_settings_of_a_smoke_run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    run = unlearnbench.run
    monkeypatch.setattr(unlearnbench, "run", lambda *words, **more: run(*SMALL, *words, **more), raising=False)
    names = {"__name__": "__main__"}
    for code in code_cells():
        exec(compile(code, str(NOTEBOOK), "exec"), names)
    assert [names[run].status for run in ("redirect", "mine")] == ["done", "done"]
    assert (names["redirect"].log["algo"], names["mine"].log["algo"]) == ("redirect", "mine")
    assert Image.open("plane.png").width > 400
    sys.modules.pop("mine", None)


def test_the_notebook_installs_the_package_and_shows_images_and_plot():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    [install] = [cell for cell in cells if "install" in cell["metadata"].get("tags", [])]
    assert "%pip install" in "".join(install["source"])
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert len([output for output in outputs if "image/png" in output.get("data", {})]) == 3
    assert not [output for output in outputs if output["output_type"] == "error"]


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_the_notebook_is_linked(page):
    assert "quickstart.ipynb)" in (NOTEBOOK.parents[1] / page).read_text(encoding="utf-8")
