"""Interference: what forgetting each concept of a list did to every other one, as matrices of runs by concepts.

The idea is that of I-CARE (vision-unlearning): forget A, measure B, for every pair. Runs have it whose near prompts name each
other concept on a split of its own ("near: tree"), as experiment=interference has them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from unlearnbench.config.errors import UserError
from unlearnbench.console.tables import format_number
from unlearnbench.results.intervals import group_interval
from unlearnbench.results.run import Run, Value
from unlearnbench.results.settings import differing_settings, flatten, original_hash

NEAR = "near: "
TITLES = {"retain_accuracy": "accuracy", "integrity_norm": "integrity_norm", "integrity": "integrity"}
REMARK = (
    "Rows: the concept that was forgotten; columns: prompts of each concept. accuracy: the share of images that show what the "
    "prompt names, the forgotten concept's own by its detector. integrity_norm: 1 means unchanged images, 0 means as different "
    "as two random seeds."
)


class Effect(NamedTuple):
    """What forgetting one concept did to prompts of one concept.

    Attributes:
        algo: the method.
        metric: accuracy, integrity_norm or integrity.
        forgotten: the concept that was forgotten.
        concept: the concept that the prompts name; the forgotten one itself on the diagonal.
        original: the original model's value; None for integrity.
        unlearned: the unlearned model's value; the mean over runs if there are several, such as seeds.
        low: the lower end of the 95 % interval.
        high: the upper end.
        n: images of each run.
        runs: how many runs.
    """

    algo: str
    metric: str
    forgotten: str
    concept: str
    original: float | None
    unlearned: float
    low: float | None
    high: float | None
    n: int
    runs: int


@dataclass(frozen=True)
class Matrix:
    """One metric of one method, for every pair of concepts.

    Attributes:
        algo: the method.
        metric: accuracy, integrity_norm or integrity.
        forgotten: the concepts that were forgotten: the rows.
        concepts: those that prompts name: the columns.
        effects: by forgotten concept and concept; a pair that was not measured is absent.
    """

    algo: str
    metric: str
    forgotten: list[str]
    concepts: list[str]
    effects: dict[tuple[str, str], Effect]

    @property
    def title(self) -> str:
        """The method and the metric."""
        return f"{self.algo}: {self.metric}"

    @property
    def rows(self) -> list[tuple[str, list[Effect | None]]]:
        """The effects of each forgotten concept, under `concepts`."""
        return [(row, [self.effects.get((row, column)) for column in self.concepts]) for row in self.forgotten]

    @property
    def original(self) -> list[float | None]:
        """The original model's value for prompts of each concept; None for integrity."""
        off_diagonal_last = sorted(self.effects.values(), key=lambda effect: effect.forgotten != effect.concept)
        by_concept: dict[str, float | None] = {effect.concept: effect.original for effect in off_diagonal_last}
        return [by_concept.get(concept) for concept in self.concepts]

    @property
    def head(self) -> list[str]:
        """The names of a table's columns."""
        return ["forgotten", *self.concepts]

    @property
    def body(self) -> list[list[str]]:
        """The table's cells: the original's row if it has one, then a row for each forgotten concept."""
        first = [["(original)", *map(format_number, self.original)]] if any(x is not None for x in self.original) else []
        return first + [[name, *("" if e is None else format_number(e.unlearned) for e in row)] for name, row in self.rows]


def matrices(runs: Sequence[Run]) -> list[Matrix]:
    """Accuracy and integrity of each method, for every pair of concepts; empty if no run has prompts of every concept.

    Raises:
        UserError: the runs differ in model or sampling.
    """
    measured = [run for run in runs if any(value.split.startswith(NEAR) for value in run.values)]
    if len({_images(run) for run in measured}) > 1:
        raise UserError("interference: the runs differ in model or sampling; name the runs of one sweep")
    by_label: dict[str, list[Run]] = {}
    for run, label in zip(measured, _labels(measured), strict=True):
        by_label.setdefault(label, []).append(run)
    return [matrix for label, own in by_label.items() for metric in _metrics(own) if (matrix := _matrix(label, metric, own))]


def needed_matrices(runs: Sequence[Run]) -> list[Matrix]:
    """`matrices`, where they were asked for.

    Raises:
        UserError: there are none, or see `matrices`.
    """
    if not (measured := matrices(runs)):
        raise UserError("no run here has prompts of every concept of a list: `unlearnbench run -m experiment=interference` has")
    return measured


def effect_records(of: Sequence[Matrix]) -> list[dict[str, Any]]:
    """Every effect, for csv and json."""
    return [effect._asdict() for matrix in of for effect in matrix.effects.values()]


def _images(run: Run) -> str:
    """What runs must share for their numbers to be about the same original images."""
    return json.dumps([run.log["config"].get("sample"), original_hash(run)], default=str)


def _labels(runs: Sequence[Run]) -> list[str]:
    """The name of each run's method, with the settings in which runs of this method differ."""
    flat = [flatten({"algo": run.log["config"].get("algo", {})}) for run in runs]
    labels = []
    for run, own in zip(runs, flat, strict=True):
        alike = [settings for other, settings in zip(runs, flat, strict=True) if other.log["algo"] == run.log["algo"]]
        differing = [name for name in differing_settings(alike) if name in own]
        labels.append(" ".join([run.log["algo"], *(f"{name.removeprefix('algo.')}={own[name]}" for name in differing)]))
    return labels


def _metrics(runs: Sequence[Run]) -> list[str]:
    """The metrics of the matrices: integrity only where there is no integrity_norm."""
    names = {value.metric for run in runs for value in run.values if value.split.startswith(NEAR)}
    return [name for name in TITLES if name in names and not (name == "integrity" and "integrity_norm" in names)]


def _matrix(label: str, metric: str, runs: Sequence[Run]) -> Matrix:
    values: dict[tuple[str, str], list[Value]] = {}
    distance = next((v.backbone for run in runs for v in run.values if v.metric == metric and v.split.startswith(NEAR)), "")
    for run in runs:
        for value in run.values:
            is_own = metric == "retain_accuracy" and (value.metric, value.split) == ("forget_accuracy", "forget")
            if is_own or (value.metric == metric and value.split.startswith(NEAR) and value.backbone == distance):
                concept = run.concept if is_own else value.split.removeprefix(NEAR)
                values.setdefault((run.concept, concept), []).append(value)
    forgotten = list(dict.fromkeys(row for row, _ in values))
    concepts = list(dict.fromkeys([*forgotten, *(column for _, column in values)]))
    effects = {pair: _effect(label, TITLES[metric], *pair, of_pair) for pair, of_pair in values.items()}
    return Matrix(label, TITLES[metric], forgotten, concepts, effects)


def _effect(algo: str, metric: str, forgotten: str, concept: str, values: Sequence[Value]) -> Effect:
    first, own = values[0], [(value.low, value.high) for value in values]
    mean, low, high = first.unlearned, first.low, first.high
    if len(values) > 1:
        mean, low, high = group_interval([value.unlearned for value in values], own, *first.bounds)
    return Effect(algo, metric, forgotten, concept, first.original, mean, low, high, first.n, len(values))
