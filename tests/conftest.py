"""Settings of every test, and the fixtures of fakes/shared_fixtures.py.

The process of pytest-xdist that only hands tests out loads no fixtures: they import torch, and its workers would wait for it.
"""

from __future__ import annotations

import os

from hypothesis import settings

os.environ |= {"HF_HUB_OFFLINE": "1", "DIFFUSERS_VERBOSITY": "error", "TRANSFORMERS_VERBOSITY": "error"}
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # the workers share the cores, and so do the processes they start
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // int(workers)))

settings.register_profile("few", max_examples=25, derandomize=True)
settings.register_profile("fuzz", max_examples=300, print_blob=True)
settings.load_profile("few")


def pytest_configure(config):
    if hasattr(config, "workerinput") or config.getoption("dist", "no") == "no":
        config.pluginmanager.import_plugin("shared_fixtures")


def pytest_collection_modifyitems(items):
    """What starts processes comes first: it takes longest, and would keep one worker alone at the end."""
    items.sort(key=lambda item: "processes" not in item.path.parts)
