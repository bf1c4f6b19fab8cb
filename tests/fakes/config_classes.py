"""Choices of a group by the class that they build, for what costs much and holds of the class."""

from __future__ import annotations

from omegaconf import OmegaConf

from unlearnbench.config.paths import CONF, choices


def target_of(group: str, name: str) -> str:
    """The class that a choice builds; a preset that names none has that of the choice it builds on."""
    settings = OmegaConf.load(CONF / group / f"{name}.yaml")
    if "_target_" in settings:
        return settings["_target_"]
    [base] = [word for word in settings["defaults"] if word != "_self_"]
    return target_of(group, base)


def classes_of(group: str) -> list[str]:
    """One choice for each class, the first of its presets."""
    first: dict[str, str] = {}
    for name in choices(group):
        first.setdefault(target_of(group, name), name)
    return list(first.values())
