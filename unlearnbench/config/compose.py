"""From overrides on the command line to a composed configuration."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from unlearnbench.config.errors import UserError, suggest
from unlearnbench.config.paths import CONF, choices

PARSERS = ("hydra", "omegaconf", "yaml", "antlr4")
PLUGINS = {"joblib": "sweep", "submitit_slurm": "sweep", "submitit_local": "sweep", "ray": "ray"}  # launchers, by our extras


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

    A yaml file with the defaults `a@of.a` and `b@of.b` and the class
    `unlearnbench.data.concept_group.ConceptGroup` does the same.

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
        settings = {
            "_target_": "unlearnbench.data.concept_group.ConceptGroup",
            "name": "+".join(sorted(names)),
            "continual": False,
        }
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
