"""95 % intervals: by bootstrap over prompts, of a share (Wilson), and of a mean over runs (Student's t).

A bootstrap whose draws are all equal does not show the sampling error: a share then has Wilson's interval, a mean over one
prompt has none, and a group of runs has at least the runs' own. Tables show no interval without a width (`interval_text`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from unlearnbench.console.tables import format_number

NO_WIDTH = 1e-9  # ends of an interval closer than this are equal but for rounding
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

    Draws in which the function is not finite, such as a ratio to a mean of 0, are left out; the ends are NaN if no other is left.

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
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = np.asarray(of(*bootstrap_means(groups, *columns, draws=draws)))
    finite = drawn[np.isfinite(drawn)]
    low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (np.nan, np.nan)
    return float(low), float(high)


class Interval(NamedTuple):
    """A 95 % interval and its method.

    Attributes:
        low: the lower end; None if there is no interval.
        high: the upper end.
        method: such as "bootstrap over 24 prompts" or "Wilson's, 24 prompts"; "" if there is no interval.
    """

    low: float | None = None
    high: float | None = None
    method: str = ""

    def complement(self) -> Interval:
        """The interval of 1 - x, given that of x."""
        return Interval(None if self.high is None else 1 - self.high, None if self.low is None else 1 - self.low, self.method)


NO_INTERVAL = Interval()


def has_width(low: float | None, high: float | None) -> bool:
    """Whether there is an interval, and its ends differ: equal ends, as those of an unmodified model, show no sampling error."""
    return low is not None and high is not None and high - low >= NO_WIDTH


def interval_text(low: float | None, high: float | None, *beside: float | None, between: str = "..") -> str:
    """An interval in a table; "" if there is none or it has no width.

    Args:
        low: the lower end.
        high: the upper end.
        beside: numbers beside it, which decide the decimals (see `format_number`).
        between: what stands between the ends.

    Examples:
        >>> interval_text(0.25, 0.75), interval_text(1.0, 1.0), interval_text(None, None)
        ('0.250..0.750', '', '')
    """
    return between.join(format_number(end, *beside) for end in (low, high)) if has_width(low, high) else ""


def prompt_interval(groups: Sequence[Any], *columns: np.ndarray, of: Callable[..., Any] = lambda mean: mean) -> Interval:
    """`bootstrap_interval` over prompts with its method; none for a single prompt, whose draws are all equal.

    Examples:
        >>> prompt_interval(["a", "a"], np.array([0.2, 0.4]))
        Interval(low=None, high=None, method='')
    """
    prompts = len(set(groups))
    if prompts == 1:
        return NO_INTERVAL
    return Interval(*bootstrap_interval(groups, *columns, of=of), f"bootstrap over {prompts} prompts")


def share_interval(groups: Sequence[Any], column: np.ndarray) -> Interval:
    """A 95 % interval of a share: by bootstrap over groups (prompts).

    If all groups have the same mean, as with one prompt or equal answers, the bootstrap's interval would have no width; it is
    then Wilson's, with one answer for each group.

    Args:
        groups: the group of each row; rows of one group are drawn together.
        column: floats (n,) from 0 to 1, mostly 0 or 1.

    Examples:
        >>> low, high, method = share_interval(["a", "a", "b", "b"], np.zeros(4))
        >>> round(low, 3), round(high, 3), method
        (0.0, 0.658, "Wilson's, 2 prompts")
    """
    prompts = len(set(groups))
    low, high = bootstrap_interval(groups, column)
    if not has_width(low, high):
        return wilson_over_prompts(float(np.mean(column)), prompts)
    return Interval(low, high, f"bootstrap over {prompts} prompts")


def wilson_over_prompts(share: float, prompts: int) -> Interval:
    """Wilson's interval of a share with one answer for each prompt."""
    return Interval(*score_interval(share, prompts), f"Wilson's, {prompts} prompt{'s' * (prompts > 1)}")


def paired_difference(
    groups: Sequence[Any], left: np.ndarray, right: np.ndarray, draws: int = 10_000
) -> tuple[float, float, float]:
    """Whether paired columns differ: the 95 % interval of mean(right) - mean(left), and a two-sided p.

    p = min(1, 2 (1 + m) / (1 + draws)), with m the smaller of the numbers of draws at or below 0 and at or above 0. It is the
    smallest level at which the percentile interval excludes 0 (Efron and Tibshirani 1993, 15.4); one draw is added so that p
    is never 0. Nor is it below 2^(1 - groups), the least p of an exact test by the signs of the groups' differences: all draws
    of two groups that differ alike agree, which by chance happens half of the time.

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
    least = 2.0 ** (1 - len(set(groups)))
    return float(low), float(high), float(min(1.0, max(2 * (1 + tail) / (1 + draws), least)))


def holm(ps: Sequence[float]) -> list[float]:
    """The p of several comparisons, corrected for their number (Holm 1979): the largest (m - k) p_(k) up to each one's rank.

    Each is below a level only if all comparisons with a smaller p are, and the chance of any false one is at most the level.

    Examples:
        >>> [round(p, 3) for p in holm([0.04, 0.01, 0.03])]
        [0.06, 0.03, 0.06]
    """
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    corrected, highest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = highest
    return corrected


def detectable_difference(spread: float, n: int) -> float:
    """The least true difference of means of n independent pairs that a two-sided test at 5 % finds with 80 % power.

    (1.96 + 0.84) spread / sqrt(n), by the normal approximation.

    Args:
        spread: the standard deviation of the pairs' differences.
        n: pairs; of images that share a prompt, the prompts.

    Examples:
        >>> round(detectable_difference(0.1, 80), 4)
        0.0313
    """
    return (1.959964 + 0.841621) * spread / math.sqrt(n)


def detectable_share(share: float, n: int) -> float:
    """The least rise of a share that a two-sided test at 5 % of two methods, n independent answers each, finds with 80 % power.

    Solves d = 1.96 sqrt(2 q (1 - q) / n) + 0.84 sqrt((p (1 - p) + (p + d) (1 - p - d)) / n), with q = p + d / 2; nan if
    none does.

    Args:
        share: p, of the first method.
        n: answers of each method.

    Examples:
        >>> round(detectable_share(0.0, 24), 2), round(detectable_share(0.0, 48), 2)
        (0.27, 0.15)
    """
    for step in range(1, 10_000):
        other = share + step / 10_000
        if other > 1:
            break
        middle = (share + other) / 2
        null = 1.959964 * math.sqrt(2 * middle * (1 - middle) / n)
        if other - share >= null + 0.841621 * math.sqrt((share * (1 - share) + other * (1 - other)) / n):
            return other - share
    return math.nan


def wilson_interval(count: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share, `count` of n (Wilson 1927).

    Examples:
        >>> tuple(round(end, 3) for end in wilson_interval(8, 10))
        (0.49, 0.943)
    """
    from scipy.stats import binomtest

    interval = binomtest(count, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def score_interval(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a mean share of n answers, which need not be a whole number of them; without scipy.stats.

    Examples:
        >>> tuple(round(end, 3) for end in score_interval(0.9, 1))
        (0.168, 0.998)
    """
    z = 1.959963984540054
    centre, scale = share + z**2 / (2 * n), 1 + z**2 / n
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return 0.0 if share == 0 else (centre - half) / scale, 1.0 if share == 1 else (centre + half) / scale


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """The mean of independent runs and its 95 % interval, mean +- t(n - 1) s / sqrt(n) (Student's t); no interval for one run."""
    mean, count = math.fsum(values) / len(values), len(values)
    if count == 1:
        return mean, None, None
    from scipy.special import stdtrit

    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (count - 1) / count)
    half = float(stdtrit(count - 1, 0.975)) * spread
    return mean, mean - half, mean + half


def group_interval(
    values: Sequence[float], own: Sequence[tuple[float | None, float | None]], lowest: float | None, highest: float | None
) -> tuple[float, float | None, float | None]:
    """The mean of a metric over runs and its 95 % interval, within the metric's range.

    The interval is `mean_interval`. It measures how much runs differ, and not how few images each has: where all runs are
    equal, or for a share (a metric from 0 to 1), it is the mean of the runs' own intervals if that is wider. The runs measure
    the same prompts, so that more runs do not narrow it.

    Args:
        values: of each run.
        own: each run's own 95 % interval, or None at both ends.
        lowest: the metric's lowest possible value, or None.
        highest: and its highest.

    Examples:
        >>> group_interval([0.0, 0.0], [(0.0, 0.324), (0.0, 0.324)], 0.0, 1.0)
        (0.0, 0.0, 0.324)
    """
    mean, low, high = mean_interval(values)
    if low is None or high is None:
        return mean, None, None
    lows, highs = [end for end, _ in own if end is not None], [end for _, end in own if end is not None]
    is_share = (lowest, highest) == (0.0, 1.0)
    if len(lows) == len(highs) == len(values) and (is_share or not has_width(low, high)):
        own_low, own_high = math.fsum(lows) / len(lows), math.fsum(highs) / len(highs)
        if own_high - own_low > high - low:
            low, high = own_low, own_high
    low = low if lowest is None else max(low, lowest)
    high = high if highest is None else min(high, highest)
    return mean, low, high
