"""The command `cache`: list and remove cached images, features and statistics."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unlearnbench.cli.command import Commands, add_command, add_overrides
from unlearnbench.cli.config_dir import add_config_dir, searchpath_overrides
from unlearnbench.cli.tables import print_table
from unlearnbench.config.errors import UserError
from unlearnbench.config.paths import cache_folder

if TYPE_CHECKING:
    from unlearnbench.storage.cache_entries import CacheEntry


def add_cache(commands: Commands) -> None:
    """Add the command `cache`."""
    parser = add_command(
        commands, "cache", cache, "list the cache; remove damaged, old or surplus entries",
        "cache", "cache --prune --older 30d", "cache --limit 20GB", "cache cache=FOLDER --clear --yes",
    )  # fmt: skip
    add_overrides(parser, "cache=FOLDER for a cache that is not at the default path")
    add_config_dir(parser)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--prune", action="store_true", help="remove damaged entries, and with --older also old ones")
    action.add_argument("--clear", action="store_true", help="remove everything; asks first")
    action.add_argument("--limit", metavar="SIZE", help="remove the least recently used entries down to this size: 20GB")
    parser.add_argument("--older", metavar="SPAN", help="with --prune: remove entries not used for this long (m, h, d, w): 30d")
    parser.add_argument("--yes", action="store_true", help="with --clear: do not ask")


def cache(options: argparse.Namespace) -> int:
    """List the cache, or remove entries."""
    from unlearnbench.config.compose import compose
    from unlearnbench.storage.cache_entries import list_entries

    for option, action in (("older", "prune"), ("yes", "clear")):
        if getattr(options, option) and not getattr(options, action):
            raise UserError(f"--{option} does nothing without --{action}; say both")
    folder = cache_folder(compose(*searchpath_overrides(options.config_dir), *options.overrides).cache)
    entries = list_entries(folder)
    if not (options.prune or options.clear or options.limit):
        _print_entries(entries, folder)
    elif not options.clear or _is_confirmed(entries, folder, options.yes):
        _remove(_entries_to_remove(entries, folder, options), folder)
    return 0


def _entries_to_remove(entries: list[CacheEntry], folder: Path, options: argparse.Namespace) -> list[CacheEntry]:
    from unlearnbench.storage.cache_entries import entries_over
    from unlearnbench.storage.units import parse_size, parse_span

    if options.prune:
        return _damaged_or_old(entries, parse_span(options.older) if options.older else None)
    return entries if options.clear else list(entries_over(folder, parse_size(options.limit)))


def _damaged_or_old(entries: Sequence[CacheEntry], age: float | None) -> list[CacheEntry]:
    """Entries that are damaged, or that nothing has used for `age` seconds."""
    from unlearnbench.console import progress_bar
    from unlearnbench.storage.cache_entries import is_damaged

    matches = []
    with progress_bar("check the cache", len(entries)) as bar:
        for entry in entries:
            if (age is not None and time.time() - entry.used > age) or is_damaged(entry):
                matches.append(entry)
            bar.advance()
    return matches


def _is_confirmed(entries: Sequence[CacheEntry], folder: Path, yes: bool) -> bool:
    """Whether everything is to go; asks on a terminal unless --yes is given.

    Raises:
        UserError: there is no terminal to ask on.
    """
    if yes or not entries:
        return True
    if not sys.stdin.isatty():
        raise UserError("--clear asks before it removes; without a terminal say --yes")
    try:
        return input(f"remove {_total(entries)} in {folder}? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        print()
        return False


def _print_entries(entries: Sequence[CacheEntry], folder: Path) -> None:
    from unlearnbench.storage.units import format_age, format_size

    body = []
    for rows in _table_rows(entries[::-1]):
        size, newest = sum(entry.size for entry in rows), rows[0]
        times = format_age(newest.made), format_age(newest.used)
        body.append([newest.kind, _holds(rows), format_size(size), *times, newest.by])
    print_table(["kind", "holds", "size", "made", "used", "made by"], body, f"{_total(entries)} in {folder}", 2)
    if earlier := [entry for entry in entries if entry.earlier_layout]:
        print(f"{_total(earlier)} of an earlier layout, which runs no longer read; `unlearnbench cache --clear` removes them")


def _table_rows(entries: Sequence[CacheEntry]) -> list[list[CacheEntry]]:
    """The entries of each row: the intact images of one run together, every other entry alone."""
    rows: dict[object, list[CacheEntry]] = {}
    for entry in entries:
        rows.setdefault(entry.by if entry.holds == "image" else entry.path, []).append(entry)
    return list(rows.values())


def _holds(rows: Sequence[CacheEntry]) -> str:
    if rows[0].holds == "image":
        return f"{len(rows)} image{'s' * (len(rows) > 1)}"
    return f"earlier layout: {rows[0].holds}" if rows[0].earlier_layout else rows[0].holds


def _remove(entries: Sequence[CacheEntry], folder: Path) -> None:
    from unlearnbench.storage.cache_entries import list_entries, remove_entries

    removed = remove_entries(entries)
    busy = f", {len(entries) - len(removed)} in use and kept" if len(removed) < len(entries) else ""
    print(f"removed {_total(removed)}{busy}; {_total(list_entries(folder))} left in {folder}")


def _total(entries: Sequence[CacheEntry]) -> str:
    """The number of entries and their size."""
    from unlearnbench.storage.units import format_size

    return f"{len(entries)} {'entry' if len(entries) == 1 else 'entries'}, {format_size(sum(entry.size for entry in entries))}"
