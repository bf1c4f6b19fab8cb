"""Checks of settings against their range: each raises ValueError with the setting's name; `build.checked` adds the group."""

from __future__ import annotations

from typing import Any


def at_least(settings: Any, bound: float, *names: str) -> None:
    """Refuse values less than the bound, and what is not a number (nan).

    Examples:
        >>> from types import SimpleNamespace
        >>> at_least(SimpleNamespace(steps=3, batch=0), 1, "steps", "batch")
        Traceback (most recent call last):
        ValueError: batch: 0 is less than 1
    """
    for name in names:
        if not (value := getattr(settings, name)) >= bound:
            raise ValueError(f"{name}: {value} is {'less than' if value < bound else 'not at least'} {bound}")


def above_zero(settings: Any, *names: str) -> None:
    """Refuse values that are not above 0."""
    for name in names:
        if not getattr(settings, name) > 0:
            raise ValueError(f"{name}: {getattr(settings, name)} is not above 0")


def share(settings: Any, *names: str) -> None:
    """Refuse values outside of [0, 1]."""
    for name in names:
        if not 0 <= getattr(settings, name) <= 1:
            raise ValueError(f"{name}: {getattr(settings, name)} is not between 0 and 1")


def share_above_zero(settings: Any, *names: str) -> None:
    """Refuse values outside of (0, 1]."""
    for name in names:
        if not 0 < getattr(settings, name) <= 1:
            raise ValueError(f"{name}: {getattr(settings, name)} is not above 0 and at most 1")


def between(settings: Any, low: float, high: float, *names: str) -> None:
    """Refuse values outside of [low, high]."""
    for name in names:
        if not low <= getattr(settings, name) <= high:
            raise ValueError(f"{name}: {getattr(settings, name)} is not between {low} and {high}")


def one_of(settings: Any, name: str, *choices: str) -> None:
    """Refuse a value that is not one of the choices."""
    if getattr(settings, name) not in choices:
        raise ValueError(f"{name}: {getattr(settings, name)!r}; known: {', '.join(choices)}")
