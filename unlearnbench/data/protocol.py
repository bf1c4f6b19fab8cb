"""A published protocol: what a run's settings follow, what still differs, and the numbers that stand beside ours."""

from __future__ import annotations

import csv
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from omegaconf import MISSING

NUMBERS = Path(__file__).parent / "literature.csv"


@dataclass
class Protocol:
    """The protocol that a yaml of conf/protocol sets.

    Attributes:
        name: its name in the config group.
        paper: authors, year and arXiv number.
        code: the authors' repository on GitHub.
        commit: the commit that the settings were read from.
        differs: what a run still does otherwise, one sentence each.
        labels: for each concept, the labels of a classifier that mean it.
    """

    name: str = MISSING
    paper: str = MISSING
    code: str = MISSING
    commit: str = MISSING
    differs: list[str] = field(default_factory=list)
    labels: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class PublishedNumber:
    """One number of a paper's table, or of a benchmark's file.

    Attributes:
        protocol: the name of the protocol.
        concept: what was forgotten.
        method: the method's name there.
        algo: our name of the method; "" if there is none.
        metric: the metric's name there.
        value: as it is printed there.
        source: the address of the file.
    """

    protocol: str
    concept: str
    method: str
    algo: str
    metric: str
    value: str
    source: str


@cache
def published_numbers() -> list[PublishedNumber]:
    """All numbers of literature.csv, from which docs/literature.md has its tables."""
    with NUMBERS.open(encoding="utf-8", newline="") as file:
        return [PublishedNumber(**row) for row in csv.DictReader(file)]


def numbers_of(protocol: str, concepts: Collection[str], algo: str) -> list[PublishedNumber]:
    """The published numbers of a protocol for one method, by our name of it, which may be a preset (esd_x: ESD), or by theirs.

    Args:
        protocol: its name.
        concepts: the concept's name, or that of its kind, such as style.
        algo: the method.
    """
    rows = [number for number in published_numbers() if number.protocol == protocol and number.concept in concepts]
    return [n for n in rows if algo in n.algo.split("|") or algo.casefold() == n.method.casefold()]
