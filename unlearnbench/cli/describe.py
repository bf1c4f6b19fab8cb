"""One component as text: what it is, its paper and formula, its settings with defaults and meaning, what it costs."""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

from rich.console import Console

from unlearnbench.config.build import locate
from unlearnbench.config.paths import CONF, read_yaml
from unlearnbench.console.tables import print_columns, table_console

LONGEST_LINE = 110
SETTINGS_HEAD = ("setting", "default", "meaning")


def print_component(group: str, path: Path, description: str) -> None:
    """Print one component.

    Args:
        group: its config group.
        path: its yaml file.
        description: the first line of the file.
    """
    import yaml

    console, content = table_console(), read_yaml(path, resolve=False)
    _print_text(console, f"{group}={path.stem}: {description}")
    nodes = {group: content} if "_target_" in content else {f"{group}.{name}": node for name, node in content.items()}
    targets = {name: node for name, node in nodes.items() if isinstance(node, dict) and "_target_" in node}
    for name, node in targets.items():
        _print_node(console, name, node)
    if not targets:
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=console.width).strip()
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    if group == "algo" and "_target_" in content:
        _print_cost(console, path.stem, content)


def _print_node(console: Console, name: str, node: dict[str, Any]) -> None:
    cls = locate(node["_target_"], object)
    for paragraph in _paragraphs(cls):
        console.print()
        _print_text(console, paragraph)
    meanings = setting_meanings(cls)
    rows = [[key, setting_text(value), meanings.get(key, "")] for key, value in node.items() if key not in ("_target_", "name")]
    if rows:
        console.print()
        title = "settings, in a yaml of your own" if name == "prompts" else f"settings: {name}.SETTING=VALUE"
        print_columns(console, SETTINGS_HEAD, rows, SETTINGS_HEAD, 1, title)


def _print_text(console: Console, text: str) -> None:
    """Print a paragraph in lines that fit; a list or a formula on lines of its own keeps its lines."""
    if any(line.startswith((" ", "- ", "|")) for line in text.splitlines()):
        lines = text.splitlines()
    else:
        lines = [" ".join(text.split())]
    for line in lines:
        indent = " " * (len(line) - len(line.lstrip()) + 2 * line.lstrip().startswith("- "))
        width = min(console.width, LONGEST_LINE)
        parts = textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        for part in parts or [""]:
            console.print(part, markup=False, highlight=False, soft_wrap=True)


def _paragraphs(cls: type) -> list[str]:
    """The docstring of a class without its attributes."""
    text = re.split(r"\n\n?(?=Attributes:\n|A family sets )", inspect.getdoc(cls) or "")[0]
    return [paragraph for paragraph in text.split("\n\n") if paragraph.strip()]


def setting_meanings(cls: type) -> dict[str, str]:
    """The meaning of each setting, from the "Attributes:" of the class and of its bases.

    Examples:
        >>> from unlearnbench.data.concept import Concept
        >>> setting_meanings(Concept)["explicit"]
        'whether reports blur its images.'
    """
    meanings: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        section = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2].partition("\n\n")[0]
        for entry in re.split(r"\n(?= {4}\w+: )", f"\n{section}")[1:]:
            name, _, meaning = entry.strip().partition(": ")
            meanings[name] = " ".join(meaning.split())
    return meanings


def setting_text(value: Any) -> str:
    """A default as one types it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {setting_text(entry)}" for key, entry in value.items() if key != "_target_") + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(setting_text, value)) + "]"
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool | None) else str(value)


def cost_sentence(content: dict[str, Any]) -> str:
    """What an algorithm does beside sampling and measuring, from its yaml."""
    cls = locate(content["_target_"], object)
    steps, batch = content.get("steps") or 0, content.get("batch")
    parts = [f"{steps} optimizer steps of {batch} forget and {batch} retain examples" if steps else "no optimizer step"]
    if getattr(cls, "needs_images", False) is True:
        anchors = ", those of the anchors too" if getattr(cls, "needs_anchor_images", False) is True else ""
        parts.append(f"images that the original model generates once and caches{anchors}, or folders of yours")
    elif getattr(cls, "needs_examples", False) is True:
        parts.append("prompts only, no training images")
    return "; ".join(parts)


def _print_cost(console: Console, name: str, content: dict[str, Any]) -> None:
    """Print the cost of an algorithm, and its defaults on other models."""
    import yaml

    console.print()
    _print_text(console, f"cost: {cost_sentence(content)}; measured seconds and memory: docs/leaderboard.md")
    for path in sorted((CONF / "tuned").glob(f"*/{name}.yaml")):
        tuned = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        values = ", ".join(f"{key} {setting_text(value)}" for key, value in tuned.items())
        _print_text(console, f"with model={path.parent.name} the defaults are: {values}")
