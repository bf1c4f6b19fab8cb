"""From a node of the configuration to a checked object: `locate`, `build`."""

from __future__ import annotations

import importlib
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unlearnbench.config.errors import UserError, suggest
from unlearnbench.config.renamed import current_path

T = TypeVar("T")


def locate(path: Any, base: type[T]) -> type[T]:
    """The class at a dotted path; a configuration can name only a subclass of `base`.

    Raises:
        UserError: there is no such class, or it is not a subclass.
    """
    module, _, name = current_path(str(path)).rpartition(".")
    if not module:
        raise UserError(f"_target_: {path}: not a dotted path, such as {base.__module__}.{base.__name__}")
    try:
        cls = getattr(importlib.import_module(module), name)
    except Exception as error:  # the user's own file may raise anything when it is imported
        raise UserError(f"_target_: {path}: cannot be imported ({error})") from error
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise UserError(f"_target_: {path} is not a subclass of {base.__module__}.{base.__name__}")
    return cls


def build(node: Any, base: type[T], where: str) -> T:
    """An object of the class that `node._target_` names, its settings checked against the fields of the class and their types.

    Args:
        node: a mapping with `_target_` and the settings.
        base: the class it must derive from.
        where: the place in the configuration, for error messages, such as "algo".

    Raises:
        UserError: the class or a setting is unknown, or a value is wrong.
    """
    settings = settings_of(OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node, where)
    target = settings.pop("_target_", None)
    if not target:
        kind = f"{base.__module__}.{base.__name__}"
        raise UserError(f"{where}._target_: must be given, as the dotted path of {kind} or of a subclass")
    cls = locate(target, base)
    names = _field_names(cls)
    for key in settings:
        if key not in names:
            raise UserError(f"{where}.{key}: no such setting of {cls.__name__}; {suggest(key, names)}")
    return checked(cls, settings, f"{where}.")


def settings_of(node: Any, where: str) -> dict[str, Any]:
    """The node as a dict.

    Raises:
        UserError: it is a single value.
    """
    if not isinstance(node, dict):
        raise UserError(f"{where}: {node!r} is not a group of settings; keep the one in conf/, or choose one: {where}=NAME")
    return {str(key): value for key, value in node.items()}


def checked(cls: type[T], settings: dict[str, Any], where: str) -> T:
    """An instance of `cls`, each setting converted to the type of its field; error messages begin with `where`.

    Raises:
        UserError: a setting is missing, has the wrong type, or is refused by the class.
    """
    names = _field_names(cls)
    try:
        merged: Any = OmegaConf.merge(_schema(cls), settings)  # type: ignore[arg-type]  # to mypy a type[T] has no hash
        missing = [name for name in names if OmegaConf.is_missing(merged, name)]
        if missing:
            raise UserError(f"{where}{missing[0]}: must be given")
        return cls(**{name: OmegaConf.to_container(v) if OmegaConf.is_config(v := merged[name]) else v for name in names})
    except OmegaConfBaseException as error:
        raise UserError(f"{where}{error.full_key or ''}: {str(error).splitlines()[0]}") from error
    except ValueError as error:
        raise UserError(f"{where}{error}") from error


@cache
def _schema(cls: type) -> DictConfig:
    """The fields of a class and their types, not to be changed; computing it takes as long as all the rest of a check."""
    schema: DictConfig = OmegaConf.structured(cls)
    return schema


def _field_names(cls: type) -> list[str]:
    return [field.name for field in fields(cls) if field.init]
