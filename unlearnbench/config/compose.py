"""From overrides on the command line to a composed configuration."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from unlearnbench.config.errors import UserError, disk_is_full, first_line, similar, suggest
from unlearnbench.config.overrides import override_texts
from unlearnbench.config.paths import CONF, GROUPS, at_home, choices, exists, find_file, read_yaml, yaml_problem
from unlearnbench.config.quoting import quoted_override

if TYPE_CHECKING:
    from hydra.errors import MissingConfigException

ALL_SETTINGS = "`unlearnbench run --cfg job` shows them all"
HYDRA_SETTINGS = "`unlearnbench run --cfg hydra` shows Hydra's, with hydra/launcher=NAME those of a launcher"
PARSERS = ("hydra", "omegaconf", "yaml", "antlr4")
PLUGINS = {"joblib": "sweep", "submitit_slurm": "sweep", "submitit_local": "sweep", "ray": "ray"}  # launchers, by our extras
# Hydra's exception carries nothing but its text where a value does not fit its setting, where a group is not in the defaults
# list, where another was raised within it, and for a sweep without -m.
NOT_MERGED = "Error merging override "
NOT_IN_DEFAULTS = re.compile(r"Could not override '([\w.@/]+)'")
RAISED_WITHIN = re.compile(r"(In '.+'): \w+ raised while composing config:\n(.+)")
SEVERAL_VALUES = re.compile(r"Ambiguous value for argument '([^=]+)=(.+)'")


def catalog_names(things: str | None) -> str:
    """The names of all entries of a concept's list, with commas between them: what a sweep over the list varies.

    Raises:
        UserError: the concept has no list.
    """
    if things is None:
        raise UserError("experiment=interference takes a concept out of a list, such as concept=imagenette")
    return ",".join(read_yaml(find_file(things)))


OmegaConf.register_new_resolver("catalog", catalog_names, replace=True)


def compose(*overrides: str, config_dir: str | Path | None = None, **settings: Any) -> DictConfig:
    """The configuration that the overrides select, as on the command line.

    Args:
        overrides: such as "algo.lr=1e-4".
        config_dir: also use the yaml files in this folder, in groups as in conf/.
        settings: the same as overrides, such as `algo="uce"` or `sample={"prompts": 8}`.

    Raises:
        UserError: an unknown group, choice or key, or a malformed override.
    """
    joined = tuple(join_concepts(override_texts(overrides, config_dir, settings)))
    try:
        if any(override.lstrip("+~").startswith("hydra") for override in joined):
            return _composed(joined)  # with files of the user, maybe
        return deepcopy(_composed_from_conf(joined, _newest_change(CONF)))
    except Exception as error:
        raise translate(error, "give one of them") from error


@lru_cache(maxsize=512)
def _composed_from_conf(overrides: tuple[str, ...], changed: int) -> DictConfig:
    """The composed configuration, remembered as long as nothing in conf/ changes: composing takes 0.1 seconds."""
    return _composed(overrides)


def _composed(overrides: Sequence[str]) -> DictConfig:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        return hydra_compose("config", list(overrides))


def _newest_change(folder: Path | os.DirEntry[str]) -> int:
    """When this folder, or a file or folder in it, changed last, in nanoseconds."""
    newest = folder.stat().st_mtime_ns
    with os.scandir(folder) as entries:
        for entry in entries:
            newest = max(newest, _newest_change(entry) if entry.is_dir() else entry.stat().st_mtime_ns)
    return newest


def join_concepts(overrides: Sequence[str]) -> list[str]:
    """The overrides, with `concept=[a,b]` as the choice `a+b`, which is registered with Hydra: both concepts, in `concept.of`.

    A yaml file with the defaults `a@of.a` and `b@of.b` and the class
    `unlearnbench.data.concept_group.ConceptGroup` does the same.

    Raises:
        UserError: a concept is named twice, or not at all.
    """
    pattern = re.compile(r"\[([^\]]*)\]|[\w-]+(\+[\w-]+)+")
    return [pattern.sub(_joined, override) if override.startswith("concept=") else override for override in overrides]


def _joined(match: re.Match[str]) -> str:
    from hydra.core.config_store import ConfigStore

    names = [name.strip() for name in re.split(r"[,+]", match.group(1) or match.group())]
    if "" in names or "[]" in names or len(set(names)) < len(names):
        raise UserError(f"concept={match.group()}: name each concept once, as in concept=[church,nudity]")
    if len(names) > 1:
        settings = {
            "_target_": "unlearnbench.data.concept_group.ConceptGroup",
            "name": "+".join(sorted(names)),
            "continual": False,
            "l2_to_start": 0.0,
            "selective": 1.0,
            "merge": "",
            "density": 0.3,
            "scale": 1.0,
        }
        parts = {"defaults": [*(f"{name}@of.{name}" for name in names), "_self_"]}
        ConfigStore.instance().store(group="concept", name="+".join(names), node=parts | settings)
    return "+".join(names)


def translate(error: BaseException, advice: str = "add -m to run each of them") -> BaseException:
    """A mistake of the user that Hydra or OmegaConf reports, as a UserError of one line; any other error unchanged.

    Args:
        error: what was raised.
        advice: what to do with several values of one setting.
    """
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException

    if isinstance(error, MissingConfigException) and "/" in (error.missing_cfg_file or ""):
        return _unknown_choice(error)
    unknown = next((e for e in (error, error.__cause__) if isinstance(e, ConfigAttributeError | ConfigKeyError)), None)
    if unknown is not None:
        return _unknown_setting(unknown.full_key or str(unknown.key))
    if isinstance(error, OverrideParseException):
        return _malformed_override(error.override)
    if isinstance(error, HydraException):
        if str(error).startswith(NOT_MERGED):
            return UserError(f"{_first_line(error).removeprefix(NOT_MERGED)}: {_first_line(error.__cause__)}")
        if match := NOT_IN_DEFAULTS.search(str(error)):
            return _unknown_setting(match.group(1))
        if match := RAISED_WITHIN.match(str(error)):
            return UserError(": ".join(match.groups()))
        if match := SEVERAL_VALUES.search(str(error)):
            key, values = match.groups()
            if exists(Path(at_home(values))):
                return UserError(f"{key}={values}: a name with a comma; quote it: {quoted_override(key, values)}")
            quote = f"; a text with a comma is quoted: {quoted_override(key, values)}" if "." in key else ""
            return UserError(f"{key}={values}: several values; {advice}, or write {key}=[{values}] for a list{quote}")
    if isinstance(error, OSError) and error.filename:
        action = "opened" if exists(Path(error.filename)) else "written"
        return UserError(f"{error.filename}: cannot be {action} ({error.strerror})")
    if isinstance(error, yaml.YAMLError):
        return UserError(yaml_problem(error))
    if disk_is_full(error):
        return UserError(f"no space is left on the disk; free some ({first_line(error)})")
    if isinstance(error, HydraException | OmegaConfBaseException) or _raising_package(error) in PARSERS:
        return UserError(_first_line(error) or _first_line(error.__cause__) or type(error).__name__)
    return error


def _unknown_choice(error: MissingConfigException) -> UserError:
    parts = str(error.missing_cfg_file).split("/")
    depth = 2 if parts[0] == "hydra" else 1
    group, name = "/".join(parts[:depth]), "/".join(parts[depth:])
    if group == "hydra/launcher" and name in PLUGINS:
        return UserError(f"hydra/launcher={name}: its plugin is not installed; pip install 'unlearnbench[{PLUGINS[name]}]'")
    return UserError(f"{group}={name}: no such choice; {suggest(name, error.options or choices(group))}")


def _unknown_setting(key: str) -> UserError:
    if key.startswith("hydra."):
        return UserError(f"{key}: no such setting; {HYDRA_SETTINGS}")
    where = "`unlearnbench list NAME` shows those of an attack" if key.startswith("attack.") else ALL_SETTINGS
    return UserError(f"{key}: no such setting; {similar_setting(key)}{where}")


def similar_setting(key: str) -> str:
    """ "did you mean ...? " if there is a setting of that name in a group, or of a similar name, else an empty text."""
    names = setting_names()
    match = full_name(key, names)
    equally_deep = [name for name in names if name.count(".") == key.count(".")]
    return f"did you mean {match!r}? " if match else similar(key, equally_deep) or similar(key, names)


def full_name(key: str, names: Sequence[str]) -> str | None:
    """The dotted name that a setting has, for its last part; first among the algorithms' settings. None if there is none."""
    matches = [name for name in names if name == key or name.endswith(f".{key}")]
    return min(matches, key=lambda name: (name != key, not name.startswith("algo."), len(name)), default=None)


def setting_names() -> list[str]:
    """The dotted names of all settings of conf/, and the names of the groups."""
    groups = [group for group in GROUPS if group != "prompts"]  # whose choices are named by other settings
    names = list(groups)
    for path in (CONF / "config.yaml", *(path for group in groups for path in (CONF / group).glob("*.yaml"))):
        prefix = [] if path.parent == CONF else [path.parent.name]
        names += _dotted(yaml.safe_load(path.read_text(encoding="utf-8")), prefix)
    return list(dict.fromkeys(names))


def _dotted(node: Any, prefix: list[str]) -> list[str]:
    """The dotted names of a node's settings, without what only Hydra reads."""
    if not isinstance(node, dict):
        return []
    own = {str(key): value for key, value in node.items() if key not in ("defaults", "hydra", "_target_")}
    return [name for key, value in own.items() for name in (".".join([*prefix, key]), *_dotted(value, [*prefix, key]))]


def _malformed_override(override: str) -> UserError:
    text = override if override.isprintable() else repr(override)
    key, _, value = text.partition("=")
    is_text = value and value.isprintable() and value[0] not in "'\"" and value[0] + value[-1] not in ("{}", "[]")
    example = f", such as {quoted_override(key, value)}" if is_text else ""
    return UserError(f"{text}: not understood; write key=value, and quote special characters: \"key='value'\"{example}")


def _first_line(error: BaseException | None) -> str:
    return next((line for line in str(error or "").splitlines() if line.strip()), "")


def _raising_package(error: BaseException) -> str:
    """The package whose code raised the error."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last.tb_frame.f_globals.get("__name__", "").partition(".")[0] if last else ""
