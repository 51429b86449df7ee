"""Uncertainty of accuracies and of differences between methods that answered the same prompts.

The unit of resampling is the cluster (samples that share a text) within its task; tasks weigh
equally whatever their number of samples. Intervals are 95 %, two-sided:

* One right-or-wrong task of independent samples: the score intervals, Wilson's for an accuracy and
  Newcombe's for a paired difference (method 10 of Statistics in Medicine 17, 2635, 1998).
* Anything else (several tasks, graded scores, shared texts): a stratified cluster bootstrap, 10 000
  draws, with the percentiles moved outwards for few clusters (the expanded percentile interval of
  Hesterberg, "What teachers should know about the bootstrap", 2015): at n = 8 the plain one is
  about a quarter too narrow. A resampled mean cannot leave the range of what was seen, which of
  two or three clusters says little: with few of them Student's interval is taken where it is wider.
* A task whose clusters all have the same mean c gives the bootstrap nothing to resample, and zero
  width would be a lie. Of n clusters none differed from c, so by Wilson's interval at most a share
  u = z^2 / (n + z^2) of all does, and by no more than the ends of the scale. Half-widths of such
  tasks are added to the bootstrap's in squares (Zou and Donner, Statistics in Medicine 27, 2008).
  That takes each task's worst case at once, as if none had been seen to agree with it: so many such
  tasks together move by no more than the z^2 clusters that may have been missed among all of them,
  were they all in the task where a cluster weighs most. The narrower of the two is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, ndtr, stdtrit

from macbench.errors import MacbenchError

DRAWS = 10_000
SEED = 0  # of the draws: the same samples give the same interval
Z = 1.959963984540054  # two-sided 95 %
ONE_SIDED = 1.6448536269514722  # one-sided 95 %
POWER = 0.8416212335729143  # 80 %
FEW = 4  # degrees of freedom below which resampling reaches too short: 95 % held 71 to 87 there


@dataclass(frozen=True)
class Interval:
    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Comparison:
    """A method against full attention on the same samples."""

    full: float  # its mean on these samples
    difference: Interval  # method minus full
    least: float  # lower end of its one-sided 95 % interval: not worse by more than that
    p: float
    test: str  # "mcnemar" or "sign-flip"
    worse: int  # samples on which the method scored lower (McNemar's b)
    better: int  # and higher (c)
    n: int
    discordance: float  # share of samples that changed; of graded scores their mean square change


def _strata(
    values: ArrayLike, tasks: Iterable[str], clusters: Iterable[str]
) -> Iterator[tuple[NDArray, NDArray]]:
    """Per task, in sorted order: sums and sizes of its clusters."""
    value, task, cluster = np.asarray(values, float), np.array([*tasks]), np.array([*clusters])
    if not len(value):
        raise MacbenchError("there are no samples to average; run the cell first.")
    for name in np.unique(task):
        mine = task == name
        _, which = np.unique(cluster[mine], return_inverse=True)
        yield np.bincount(which, weights=value[mine]), np.bincount(which)


def _independent(values: NDArray, tasks: list[str], clusters: list[str]) -> bool:
    """Right-or-wrong values, each its own cluster."""
    distinct = {*zip(tasks, clusters, strict=True)}
    return len(distinct) == len(tasks) and bool(np.isin(values, (0.0, 1.0)).all())


def wilson(right: float, n: int, z: float = Z) -> Interval:
    """Wilson's score interval of a share right / n; z: normal quantile of its ends."""
    middle = (right + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * (right * (n - right) / n + z**2 / 4) ** 0.5
    mean = right / n  # which rounding must not leave outside where it is 0 or 1
    return Interval(mean, min(mean, max(0.0, middle - half)), max(mean, min(1.0, middle + half)))


def newcombe(both: int, worse: int, better: int, neither: int, z: float = Z) -> Interval:
    """Newcombe's interval of the paired difference (better - worse) / n of two shares."""
    n = both + worse + better + neither
    first, second = wilson(both + worse, n, z), wilson(both + better, n, z)
    margins = (both + worse) * (better + neither) * (both + better) * (worse + neither)
    core = float(both * neither - worse * better)
    if core > 0:
        core = max(core - n / 2, 0.0)  # continuity, towards no correlation
    phi = core / margins**0.5 if margins else 0.0

    def width(one: float, other: float) -> float:
        return max(0.0, one**2 - 2 * phi * one * other + other**2) ** 0.5

    mean = second.mean - first.mean
    low = mean - width(second.mean - second.low, first.high - first.mean)
    return Interval(mean, low, mean + width(second.high - second.mean, first.mean - first.low))


def interval(values: ArrayLike, tasks: Iterable[str], clusters: Iterable[str]) -> Interval:
    """Mean over tasks of their mean score, with its 95 % interval.

    values [n] in [0, 1]; tasks [n], clusters [n]: each value's task and cluster.
    """
    values, tasks, clusters = np.asarray(values, float), [*tasks], [*clusters]
    if len({*tasks}) == 1 and _independent(values, tasks, clusters):
        return wilson(float(values.sum()), len(values))
    return bootstrap(values, tasks, clusters)


def bootstrap(
    values: ArrayLike,
    tasks: Iterable[str],
    clusters: Iterable[str],
    scale: tuple[float, float] = (0.0, 1.0),
    z: float = Z,
) -> Interval:
    """The stratified cluster bootstrap of this module for values [n] within `scale`.

    z: normal quantile of the interval's ends.
    """
    rng = np.random.default_rng(SEED)
    strata = list(_strata(values, tasks, clusters))
    mean = float(np.mean([sums.sum() / sizes.sum() for sums, sizes in strata]))
    flat: list[NDArray] = []  # what a cluster of a task without spread weighs: below, above
    alone: list[NDArray] = []  # and its own half-widths
    drawn = np.zeros(DRAWS)  # bootstrap deviations of the mean
    spread = []  # clusters of the tasks that have some
    variance = 0.0  # of the mean over all tasks, from these
    room = np.zeros(2)  # how far they can move it, down and up
    for sums, sizes in strata:
        n, own = len(sums), sums / sizes
        if np.ptp(own) < 1e-12:
            room = np.array([own[0] - scale[0], scale[1] - own[0]]) / len(strata)
            flat.append(room / n)
            alone.append(room * z**2 / (n + z**2))
            continue
        # equal clusters are drawn together: a multinomial over the kinds there are
        kinds, times = np.unique([sums, sizes], axis=1, return_counts=True)
        counts = rng.multinomial(n, times / n, size=DRAWS)
        total, size = kinds @ counts.T
        share = sums.sum() / sizes.sum()
        drawn += (total / size - share) / len(strata)
        rests = (sums - share * sizes) / sizes.mean() / len(strata)
        variance += float((rests**2).sum()) / (n - 1) / n
        room += np.array([share - scale[0], scale[1] - share]) / len(strata)
        spread.append(n)
    below = above = 0.0  # squared half-widths
    if flat:
        missed = z**2 * np.max(flat, axis=0)
        below, above = np.minimum(np.square(alone).sum(axis=0), missed**2)
    if spread:
        df = sum(spread) - len(spread)
        student = stdtrit(df, ndtr(-z))
        level = ndtr(np.sqrt(sum(spread) / df) * student)
        low, high = np.quantile(drawn, (level, 1 - level))
        if df < FEW:
            reach = float(student) * variance**0.5
            low, high = min(low, max(reach, -room[0])), max(high, min(-reach, room[1]))
        below += min(low, 0.0) ** 2
        above += max(high, 0.0) ** 2
    low, high = max(scale[0], mean - below**0.5), min(scale[1], mean + above**0.5)
    return Interval(mean, float(low), float(high))


def mcnemar(worse: int, better: int) -> float:
    """Exact two-sided p of McNemar's test from the two discordant counts."""
    return float(min(1.0, 2 * bdtr(min(worse, better), worse + better, 0.5)))


def sign_flip(differences: ArrayLike, tasks: Iterable[str], clusters: Iterable[str]) -> float:
    """Two-sided p of the permutation test that flips the sign of whole clusters' differences.

    The statistic is the mean over tasks. All sign patterns are counted where there are at most
    2^13, else 10 000 are drawn.
    """
    parts = [sums / sizes.sum() for sums, sizes in _strata(differences, tasks, clusters)]
    observed = abs(sum(part.sum() for part in parts)) - 1e-12
    moving = np.concatenate([part[part != 0] for part in parts])
    if len(moving) <= 13:
        signs = 1 - 2 * (np.arange(2 ** len(moving))[:, None] >> np.arange(len(moving)) & 1)
        return float(np.mean(abs(signs @ moving) >= observed))
    rng = np.random.default_rng(SEED)
    total = np.zeros(DRAWS)
    for value in moving:
        total += value * rng.choice((-1.0, 1.0), DRAWS)
    return float((1 + np.sum(abs(total) >= observed)) / (1 + DRAWS))


def compare(
    full: ArrayLike, method: ArrayLike, tasks: Iterable[str], clusters: Iterable[str]
) -> Comparison:
    """Paired comparison of scores in [0, 1]: full [n] and method [n] of the same samples in order.

    Right-or-wrong scores of independent samples get McNemar's exact test, anything else (graded
    scores, samples that share a text, tasks of different sizes, whose samples weigh differently)
    the sign-flip test.
    """
    before, after = np.asarray(full, float), np.asarray(method, float)
    tasks, clusters = [*tasks], [*clusters]
    change = after - before
    worse, better = int(np.sum(change < 0)), int(np.sum(change > 0))
    exact = all(_independent(scores, tasks, clusters) for scores in (before, after))
    exact = exact and len({tasks.count(task) for task in {*tasks}}) == 1

    def difference(z: float) -> Interval:
        if exact and len({*tasks}) == 1:
            both = int(np.sum(before * after))
            return newcombe(both, worse, better, len(change) - both - worse - better, z)
        return bootstrap(change, tasks, clusters, scale=(-1.0, 1.0), z=z)

    return Comparison(
        full=float(np.mean([a.sum() / n.sum() for a, n in _strata(before, tasks, clusters)])),
        difference=difference(Z),
        least=difference(ONE_SIDED).low,
        p=mcnemar(worse, better) if exact else sign_flip(change, tasks, clusters),
        test="mcnemar" if exact else "sign-flip",
        worse=worse,
        better=better,
        n=len(change),
        discordance=discordance(change, tasks, clusters),
    )


def discordance(change: ArrayLike, tasks: Iterable[str], clusters: Iterable[str]) -> float:
    """Variance, were there no difference, of sqrt(n) times the mean paired change.

    Mean over tasks of the mean square change, clusters summed before they are squared: of
    right-or-wrong independent samples the share whose score changed.
    """
    squares = [
        float((sums**2).sum() / sizes.sum()) for sums, sizes in _strata(change, tasks, clusters)
    ]
    return float(np.mean(squares))


def samples_to_see(difference: float, discordance: float) -> int:
    """Samples with which a true paired difference is found with 80 % power at two-sided 5 %."""
    spread = max(discordance - difference**2, 0.0)
    return math.ceil((Z + POWER) ** 2 * spread / difference**2)


def samples_to_exclude(margin: float, discordance: float) -> int:
    """Samples with which an equal method is shown to lose no more than `margin` with 80 % power."""
    return math.ceil((ONE_SIDED + POWER) ** 2 * discordance / margin**2)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjustment of a family of p-values, in the order given."""
    order = np.argsort(p, kind="stable")
    stepped = np.asarray(p, dtype=float)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(stepped))
    return adjusted.tolist()
