"""Short runs of any algorithm: every count in its settings is cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.utils import get_class

COUNT = 3


def reduced_counts(settings: Mapping[Any, Any]) -> list[str]:
    """Overrides that set each integer setting of an algorithm above `COUNT` (steps, batch, ...) to `COUNT`, if it is read."""
    method: Any = get_class(settings["_target_"])
    counts = {key for key, value in settings.items() if type(value) is int and value > COUNT}
    return [f"algo.{key}={COUNT}" for key in settings if key in counts - method.unread_settings]
