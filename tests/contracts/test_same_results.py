"""Every algorithm runs from end to end, and gives the weights and images that it gave when its numbers were stored.

For each changed tensor fixtures/tiny_results.json has the norm and the sum of its change, and for the first two images of the
unlearned model their mean. Other processors round otherwise, and Adam makes as large a step of a tiny gradient as of any
other. So numbers are compared within a tolerance, and one tensor in ten within a wider one. The gradient of a key's bias is 0
but for rounding, for softmax takes no notice of it: it is not compared. A new algorithm has none until they are stored:
WRITE_RESULTS=1 python -m pytest tests/contracts/test_same_results.py -k NAME -n 0. So are those
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


def within(tolerance, numbers, size):
    """The norm and the sum of a tensor's change as they may be if each of its elements is off by this share."""
    norm, total = numbers
    return [pytest.approx(norm, rel=tolerance, abs=1e-9), pytest.approx(total, abs=tolerance * norm * size**0.5 + 1e-9)]


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
    compared = {tensor: numbers for tensor, numbers in then["tensors"].items() if not tensor.endswith("k_proj.bias")}
    rounded = []
    for tensor, numbers in compared.items():
        size = saved[tensor].numel()
        assert now["tensors"][tensor] == within(2e-2, numbers, size), tensor
        if now["tensors"][tensor] != within(1e-3, numbers, size):
            rounded.append(tensor)
    assert len(rounded) <= len(compared) // 10, rounded


def test_numbers_are_stored_of_algorithms_that_are_there():
    assert json.loads(STORED.read_text()).keys() <= set(choices("algo"))
