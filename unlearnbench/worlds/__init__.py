"""The embedded worlds: what models, metrics and reports have to know of each; one file here adds a world."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path

from unlearnbench.worlds.base import World as World


@cache
def embedded_worlds() -> tuple[World, ...]:
    """The worlds of all files here, by name."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py"))
    modules = [import_module(f"{__name__}.{name}") for name in names if name not in ("__init__", "base")]
    return tuple(module.WORLD for module in modules)


def embedded_world(domain: str) -> World | None:
    """The world of a domain; None of photographs and of domains that are not embedded."""
    return next((world for world in embedded_worlds() if world.name == domain), None)
