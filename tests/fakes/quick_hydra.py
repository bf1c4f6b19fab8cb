"""Hydra in half the time for the tests: every yaml file is parsed once, and the mode of a command is composed once."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.types import RunMode


def install(patch: pytest.MonkeyPatch) -> None:
    """Put the memories in place."""
    Plugins.instance()  # which registers the sources; their modules, imported by name, are others
    for source in (SourcesRegistry.instance().resolve(scheme) for scheme in ("file", "pkg")):
        patch.setattr(source, "load_config", _parsed_once(source.load_config))
    patch.setattr(Hydra, "get_mode", _composed_once(Hydra.get_mode))


def _parsed_once(load: Callable[..., Any]) -> Callable[..., Any]:
    """`load_config`, whose results are kept in pickle's bytes until the file changes: parsing takes twenty times as long."""
    results: dict[Any, bytes] = {}

    def load_config(source: Any, config_path: str) -> Any:
        path = Path(source.path, source._normalize_file_name(config_path))
        state = path.stat() if path.exists() else None
        key = (source.provider, path, state and (state.st_mtime_ns, state.st_size))
        if key not in results:
            results[key] = pickle.dumps(load(source, config_path), pickle.HIGHEST_PROTOCOL)
        return pickle.loads(results[key])

    return load_config


def _composed_once(get_mode: Callable[..., Any]) -> Callable[..., Any]:
    """`get_mode`, for which Hydra composes the whole configuration of a command before it composes it to run.

    Only files and settings of Hydra decide the mode, so the other overrides are left out; a sweep is composed as ever.
    """
    modes: dict[Any, Any] = {}

    def mode(hydra: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        deciding = tuple(o for o in overrides if "hydra" in o or o.startswith(("experiment", "+", "~")))
        key = (str(hydra.config_loader.get_search_path()), config_name, deciding)
        if key not in modes:
            modes[key] = get_mode(hydra, config_name, list(deciding))
        return get_mode(hydra, config_name, overrides) if modes[key] == RunMode.MULTIRUN else modes[key]

    return mode
