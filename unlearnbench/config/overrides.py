"""Settings as Python values, written as overrides of the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearnbench.config.quoting import quoted
from unlearnbench.config.search_path import searchpath_overrides

PLAIN = re.compile(r"[A-Za-z_./][\w./:@+-]*")
WORDS_OF_OTHER_TYPES = ("true", "false", "null", "yes", "no", "on", "off", "nan", "inf")


def override_texts(overrides: Sequence[str], config_dir: str | Path | None, settings: Mapping[str, Any]) -> list[str]:
    """All overrides as text.

    Args:
        overrides: as on the command line.
        config_dir: a folder of yaml files, or None.
        settings: values by name; a mapping holds settings of a group.

    Examples:
        >>> override_texts(["seed=3"], None, {"algo": "uce", "sample": {"prompts": 8, "seed": None}, "x": ["a", "b"]})
        ['seed=3', 'algo=uce', 'sample.prompts=8', 'sample.seed=null', 'x=[a,b]']

    Raises:
        UserError: the folder is absent, or one of its files has the name of a file in conf/.
    """
    return [*searchpath_overrides(config_dir), *overrides, *_texts(settings, "")]


def _texts(settings: Mapping[str, Any], prefix: str) -> list[str]:
    texts = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            texts += _texts(value, f"{prefix}{key}.")
        else:
            texts.append(f"{prefix}{key}={value_text(value)}")
    return texts


def value_text(value: Any) -> str:
    """A value in Hydra's syntax; text is quoted where it would be read as something else.

    Examples:
        >>> value_text("uce"), value_text("8"), value_text("it's"), value_text([1e-05, True])
        ('uce', "'8'", "'it\\\\'s'", '[1e-05,true]')
    """
    if isinstance(value, list | tuple):
        return f"[{','.join(map(value_text, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if not isinstance(value, str | Path):
        return str(value)
    text = str(value)
    if PLAIN.fullmatch(text) and text.lower() not in WORDS_OF_OTHER_TYPES:
        return text
    return quoted(text)
