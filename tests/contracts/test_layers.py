"""An import goes down only: to a lower level or within one package, also inside functions and under TYPE_CHECKING."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEVELS = [  # from the top; two packages of one level do not import each other
    ("scripts", "unlearnbench.__main__"),
    ("unlearnbench.cli", "unlearnbench.__init__"),
    ("unlearnbench.experiment", "unlearnbench.recipes"),
    ("unlearnbench.algos", "unlearnbench.attacks", "unlearnbench.sampling", "hydra_plugins"),
    ("unlearnbench.models", "unlearnbench.metrics", "unlearnbench.reports", "unlearnbench.sweeps"),
    ("unlearnbench.data", "unlearnbench.results", "unlearnbench.worlds"),
    ("unlearnbench.storage", "unlearnbench.pictoscenes"),
    ("unlearnbench.config", "unlearnbench.console", "unlearnbench.pictoworld", "unlearnbench.__about__"),
]

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for folder in ("unlearnbench", "hydra_plugins", "scripts")
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def module(name: str) -> str | None:
    """The module of ours that this name is or lies in; scripts import each other by their bare names."""
    names = (name, f"{name}.__init__", f"scripts.{name}")
    return next((x for x in names if x in FILES), None) or (module(name.rpartition(".")[0]) if "." in name else None)


def imports(path: Path) -> set[str]:
    """The modules of ours that a file imports, anywhere in it."""
    actual: set[str | None] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            actual |= {module(f"{node.module}.{name.name}") for name in node.names}
        elif isinstance(node, ast.Import):
            actual |= {module(name.name) for name in node.names}
    return {name for name in actual if name}


def place(name: str) -> tuple[int, str]:
    """The level of a module, counted from the top, and its package."""
    return next((i, x) for i, level in enumerate(LEVELS) for x in level if name == x or name.startswith(f"{x}."))


def test_every_import_goes_down_and_none_in_a_circle():
    edges = {name: imports(path) - {name} for name, path in FILES.items()}
    wrong = {
        f"{name} -> {other}"
        for name, others in edges.items()
        for other in others
        if place(name)[1] != place(other)[1] and place(name)[0] >= place(other)[0]
    }
    assert wrong == set()
    TopologicalSorter(edges).prepare()  # which raises CycleError
