"""Every algorithm runs from end to end, and gives the weights and images that it gave when its numbers were stored.

For each changed tensor fixtures/tiny_results.json has the norm and the sum of its change, and for the first two images of the
unlearned model their mean. Other processors round otherwise, so numbers are compared within a tolerance. A new algorithm has
none until they are stored: WRITE_RESULTS=1 python -m pytest tests/contracts/test_same_results.py -k NAME -n 0. So are those
of one that is meant to change.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from shared_examples import by_kind

from unlearnbench.config.paths import choices
from unlearnbench.experiment.run import execute

STORED = Path(__file__).parents[1] / "fixtures/tiny_results.json"


def results_of(folder, original):
    """The norm and the sum of each saved tensor's change, and the means of two images."""
    tensors = {}
    for name, value in sorted(load_file(folder / "weights.safetensors").items()):
        change = value.double() - (original[name].double() if name in original else 0)
        tensors[name] = [float(f"{float(x):.5g}") for x in (change.norm(), change.sum())]
    images = sorted((folder / "images/after").glob("*.png"))[:2]
    return {"tensors": tensors, "images": [round(float(np.array(Image.open(path)).mean()), 2) for path in images]}


@pytest.mark.parametrize("name", by_kind(choices("algo")))
def test_every_algorithm_runs_from_end_to_end_to_the_results_it_had(name, loaded, algo_spec, tmp_path):
    overrides = ["metrics=integrity", "sample.prompts=1", "retain.splits=[far]"]
    done = execute(algo_spec(name, *overrides, steps=2, batch=2, lr=1e-3), tmp_path / "run", overrides)
    assert done.log["status"] == "done"
    saved = load_file(done.folder / "weights.safetensors")
    adapter = done.folder / "lora.safetensors"
    trained = load_file(adapter) if adapter.is_file() else saved
    assert done.find("trained_parameters", "unlearning").unlearned == sum(value.numel() for value in trained.values())
    now, stored = results_of(done.folder, dict(loaded.named_parameters())), json.loads(STORED.read_text())
    if os.environ.get("WRITE_RESULTS"):
        lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in sorted((stored | {name: now}).items()))
        STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    if os.environ.get("WRITE_RESULTS") or name not in stored:
        return
    then = stored[name]
    assert now["images"] == pytest.approx(then["images"], abs=1)
    assert now["tensors"].keys() == then["tensors"].keys()
    for tensor, (norm, total) in then["tensors"].items():
        spread = 1e-3 * norm * saved[tensor].numel() ** 0.5 + 1e-9  # what the sum moves by if each element moves by a thousandth
        assert now["tensors"][tensor] == [pytest.approx(norm, rel=1e-3, abs=1e-9), pytest.approx(total, abs=spread)], tensor


def test_numbers_are_stored_of_algorithms_that_are_there():
    assert json.loads(STORED.read_text()).keys() <= set(choices("algo"))
