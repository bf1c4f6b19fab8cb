"""From words on the command line to checked objects: where conf/ is, `compose`, and `build`."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

_packaged, _beside = Path(__file__).parent / "conf", Path(__file__).parent.parent / "conf"
CONF = _packaged if _packaged.is_dir() else _beside
PARSERS = ("hydra", "omegaconf", "yaml", "antlr4")
GROUPS = ("model", "concept", "retain", "prompts", "algo", "metrics", "attack", "experiment")
PLUGINS = {"joblib": "sweep", "submitit_slurm": "sweep", "submitit_local": "sweep", "ray": "ray"}  # launchers, by our extras
T = TypeVar("T")


class UserError(Exception):
    """Something the user can mend. The text says what is wrong and what repairs it; no traceback is shown."""


class RunError(Exception):
    """A run that failed under way; what it had made so far is kept."""


def suggest(word: str, known: Iterable[str]) -> str:
    """The known choices, led by "did you mean ...?" where one of them is close."""
    choices = sorted(known)
    close = difflib.get_close_matches(word, choices, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + "known: " + ", ".join(choices)


def choices(group: str) -> list[str]:
    """The names that a config group offers."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def at_home(path: str) -> str:
    """The path with the user's home in place of a leading ~; as it is where there is no such home."""
    if path.startswith("~"):
        with suppress(RuntimeError):
            return str(Path(path).expanduser())
    return path


def is_hub_id(path: str) -> bool:
    """Could the hub know a repository of this name?"""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return True


def find_file(name: str) -> Path:
    """A file of the user's (relative to the working folder), else one shipped in conf/."""
    for path in (Path(at_home(name)), CONF / name):
        if path.is_file():
            return path
    raise UserError(f"{name}: no such file, neither here nor in {CONF}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The entries of a yaml of the user's, by name.

    Raises:
        UserError: it is no yaml, or holds something else than entries.
    """
    try:
        found: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else f"{path}"
        raise UserError(f"{where}: no yaml ({getattr(error, 'problem', None) or error})") from error
    except (OmegaConfBaseException, OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: a list; it must hold entries, name: value")
    return {str(name): value for name, value in found.items()}


def compose(*overrides: str) -> DictConfig:
    """The configuration that these words select, as on the command line.

    Raises:
        UserError: an unknown group, choice or key, or a malformed word.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    words = join_concepts(overrides)
    try:
        with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
            return hydra_compose("config", words)
    except Exception as error:
        raise translate(error, "give one of them") from error


def join_concepts(words: Sequence[str]) -> list[str]:
    """The words, with `concept=[a,b]` as the choice `a+b`, of which Hydra is told: both concepts, under `concept.of`.

    A yaml of the user's does the same with the defaults `a@of.a` and `b@of.b` and the class `unlearnbench.several.Several`.

    Raises:
        UserError: a concept twice, or none.
    """
    return [re.sub(r"\[([^\]]*)\]|[\w-]+(\+[\w-]+)+", _joined, word) if word.startswith("concept=") else word for word in words]


def _joined(found: re.Match[str]) -> str:
    from hydra.core.config_store import ConfigStore

    names = [name.strip() for name in re.split(r"[,+]", found.group(1) or found.group())]
    if "" in names or "[]" in names or len(set(names)) < len(names):
        raise UserError(f"concept={found.group()}: name each concept once, as in concept=[church,nudity]")
    if len(names) > 1:
        settings = {"_target_": "unlearnbench.several.Several", "name": "+".join(sorted(names)), "continual": False}
        parts = {"defaults": [*(f"{name}@of.{name}" for name in names), "_self_"]}
        ConfigStore.instance().store(group="concept", name="+".join(names), node=parts | settings)
    return "+".join(names)


def translate(error: BaseException, of_several: str = "add -m to run each of them") -> BaseException:
    """A user's mistake, as Hydra or OmegaConf reports it, in one line; any other error as it is.

    Args:
        error: what was raised.
        of_several: what to do with several values of one setting.
    """
    from hydra.errors import HydraException, OverrideParseException

    text = str(error)
    if match := re.search(r"Could not (?:find|load) '((?:hydra/)?\w+)/([^']+)'", text):
        group, name = match.groups()
        if group == "hydra/launcher" and name in PLUGINS:
            return UserError(f"hydra/launcher={name}: its plugin is not here; pip install 'unlearnbench[{PLUGINS[name]}]'")
        return UserError(f"{group}={name}: no such choice; {suggest(name, getattr(error, 'options', None) or choices(group))}")
    if match := re.search(r"Could not override '([\w.@/]+)'", text) or re.search(r"Key '(\w+)' is not in struct", text):
        full = re.search(r"full_key: ([\w.]+)", text)
        key = full.group(1) if full else match.group(1)
        return UserError(f"{key}: no such setting; `unlearnbench run --cfg job` shows them all")
    if match := re.search(r"Ambiguous value for argument '([^=]+)=(.+)'", text):
        key, values = match.groups()
        return UserError(f"{key}={values}: several values; {of_several}, or write {key}=[{values}] for a list")
    if isinstance(error, OverrideParseException):
        word = error.override if error.override.isprintable() else repr(error.override)
        key, _, value = word.partition("=")
        such = f", such as \"{key}='{value}'\"" if value and not set(value) & set("'\"\\") else ""
        return UserError(f"{word}: not understood; words are key=value, a value with signs in it \"key='value'\"{such}")
    if isinstance(error, OSError) and error.filename:
        deed = "opened" if Path(error.filename).exists() else "written"
        return UserError(f"{error.filename}: cannot be {deed} ({error.strerror})")
    if isinstance(error, (HydraException, OmegaConfBaseException)) or _raised_in(error) in PARSERS:
        return UserError(next((line for line in text.splitlines() if line.strip()), type(error).__name__))
    return error


def _raised_in(error: BaseException) -> str:
    """The package whose code raised it."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last.tb_frame.f_globals.get("__name__", "").partition(".")[0] if last else ""


def locate(path: Any, base: type[T]) -> type[T]:
    """The class at a dotted path, if it is a subclass of `base`; a config can name nothing else."""
    module, _, name = str(path).rpartition(".")
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
