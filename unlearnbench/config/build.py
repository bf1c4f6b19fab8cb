"""From a node of the configuration to a checked object: `locate`, `build`."""

from __future__ import annotations

import importlib
from dataclasses import fields
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unlearnbench.config.errors import UserError, suggest
from unlearnbench.config.renamed import current_path

T = TypeVar("T")


def locate(path: Any, base: type[T]) -> type[T]:
    """The class at a dotted path, if it is a subclass of `base`; a config can name nothing else."""
    module, _, name = current_path(str(path)).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the user's own file does when it is imported
        raise UserError(f"_target_: {path}: cannot be imported ({error})") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"_target_: {path} is not a subclass of {base.__module__}.{base.__name__}")
    return found


def build(node: Any, base: type[T], where: str) -> T:
    """Make the object that `node._target_` names, its settings checked against the class's own fields and types.

    Args:
        node: a mapping with `_target_` and the settings.
        base: the class it must derive from.
        where: the place in the config, for error messages, such as "algo".
    """
    settings = settings_of(OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node, where)
    cls = locate(settings.pop("_target_", ""), base)
    known = [field.name for field in fields(cls) if field.init]  # type: ignore[arg-type]
    for key in settings:
        if key not in known:
            raise UserError(f"{where}.{key}: no such setting of {cls.__name__}; {suggest(key, known)}")
    return checked(cls, settings, f"{where}.")


def settings_of(node: Any, where: str) -> dict[str, Any]:
    """The node, if it is a group of settings."""
    if not isinstance(node, dict):
        raise UserError(f"{where}: {node!r} is no group of settings; leave it as conf/ has it, or choose one: {where}=NAME")
    return {str(key): value for key, value in node.items()}


def checked(cls: type[T], settings: dict[str, Any], where: str) -> T:
    """An instance of `cls`, each setting of its field's type; `where` leads the names in error messages."""
    known = [field.name for field in fields(cls) if field.init]  # type: ignore[arg-type]
    try:
        settled: Any = OmegaConf.merge(OmegaConf.structured(cls), settings)
        missing = [key for key in known if OmegaConf.is_missing(settled, key)]
        if missing:
            raise UserError(f"{where}{missing[0]}: must be given")
        return cls(**{key: OmegaConf.to_container(v) if OmegaConf.is_config(v := settled[key]) else v for key in known})
    except OmegaConfBaseException as error:
        raise UserError(f"{where}{error.full_key or ''}: {str(error).splitlines()[0]}") from error
    except ValueError as error:
        raise UserError(f"{where}{error}") from error
