"""95 % intervals: by bootstrap over prompts, of a share (Wilson), and of a mean over runs (Student's t)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

AT_ONCE = 2**18  # groups drawn at once, which bounds the memory


def bootstrap_means(groups: Sequence[Any], *columns: np.ndarray, draws: int = 2000) -> list[np.ndarray]:
    """The columns' means in each bootstrap draw of the groups, each (draws,); all columns see the same draws.

    Args:
        groups: the group of each row; rows of one group are drawn together.
        columns: float arrays (n,).
        draws: bootstrap samples, from a fixed generator.
    """
    _, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    sums = [np.bincount(index), *(np.bincount(index, column.astype(float)) for column in columns)]
    generator, at_once = np.random.default_rng(0), max(1, AT_ONCE // len(sums[0]))
    totals = np.empty((len(sums), draws))
    for start in range(0, draws, at_once):
        part = slice(start, min(start + at_once, draws))
        chosen = generator.integers(len(sums[0]), size=(part.stop - start, len(sums[0])))
        totals[:, part] = [each[chosen].sum(1) for each in sums]
    return list(totals[1:] / totals[0])


def bootstrap_interval(
    groups: Sequence[Any],
    *columns: np.ndarray,
    of: Callable[..., Any] = lambda mean: mean,
    draws: int = 2000,
) -> tuple[float, float]:
    """A 95 % percentile interval by bootstrap over groups (prompts), for a function of the columns' means.

    Args:
        groups: the group of each row; rows of one group are drawn together.
        columns: float arrays (n,).
        of: from the means to the statistic, elementwise.
        draws: bootstrap samples, from a fixed generator.

    Examples:
        >>> low, high = bootstrap_interval([0, 1, 2, 3], np.array([0.0, 0.0, 1.0, 1.0]))
        >>> low <= 0.5 <= high
        True
    """
    low, high = np.percentile(of(*bootstrap_means(groups, *columns, draws=draws)), [2.5, 97.5])
    return float(low), float(high)


def share_interval(groups: Sequence[Any], column: np.ndarray) -> tuple[float, float]:
    """A 95 % interval of a share: by bootstrap over groups (prompts).

    If all answers are equal, the bootstrap's interval would have no width; it is then Wilson's, with one answer for each group.

    Args:
        groups: the group of each row; rows of one group are drawn together.
        column: floats (n,) from 0 to 1, mostly 0 or 1.

    Examples:
        >>> tuple(round(end, 3) for end in share_interval(["a", "a", "b", "b"], np.zeros(4)))
        (0.0, 0.658)
    """
    if column.min() == column.max() and column[0] in (0.0, 1.0):
        n = len(set(groups))
        return wilson_interval(round(column[0] * n), n)
    return bootstrap_interval(groups, column)


def paired_difference(
    groups: Sequence[Any], left: np.ndarray, right: np.ndarray, draws: int = 10_000
) -> tuple[float, float, float]:
    """Whether paired columns differ: the 95 % interval of mean(right) - mean(left), and a two-sided p.

    p = min(1, 2 (1 + m) / (1 + draws)), with m the smaller of the numbers of draws at or below 0 and at or above 0. It is the
    smallest level at which the percentile interval excludes 0 (Efron and Tibshirani 1993, 15.4); one draw is added so that p
    is never 0.

    Args:
        groups: the group of each row; rows of one group are drawn together.
        left: floats (n,).
        right: floats (n,), of the same prompts and seeds.
        draws: bootstrap samples, from a fixed generator.

    Returns:
        The interval's ends and p.

    Examples:
        >>> paired_difference(range(4), np.zeros(4), np.zeros(4))
        (0.0, 0.0, 1.0)
    """
    [differences] = bootstrap_means(groups, right - left, draws=draws)
    low, high = np.percentile(differences, [2.5, 97.5])
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(low), float(high), float(min(1.0, 2 * (1 + tail) / (1 + draws)))


def wilson_interval(count: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share, `count` of n (Wilson 1927).

    Examples:
        >>> tuple(round(end, 3) for end in wilson_interval(8, 10))
        (0.49, 0.943)
    """
    from scipy.stats import binomtest

    interval = binomtest(count, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """The mean of independent runs and its 95 % interval, mean +- t(n - 1) s / sqrt(n) (Student's t); no interval for one run."""
    mean, count = math.fsum(values) / len(values), len(values)
    if count == 1:
        return mean, None, None
    from scipy.special import stdtrit

    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (count - 1) / count)
    half = float(stdtrit(count - 1, 0.975)) * spread
    return mean, mean - half, mean + half
