"""Uncertainty of accuracies and of differences between methods that answered the same prompts.

The unit of resampling is the cluster (samples that share a text) within its task; tasks weigh
equally whatever their number of samples. Intervals are 95 %, two-sided:

* Stratified cluster bootstrap, percentile interval, with the percentiles moved outwards for few
  clusters (the expanded percentile interval of Hesterberg, "What teachers should know about the
  bootstrap", 2015): at n = 8 the plain one is about a quarter too narrow.
* A task whose clusters all have the same mean c gives the bootstrap nothing to resample, and zero
  width would be a lie. Of n clusters none differed from c, so by Wilson's score interval at most a
  share u = z^2 / (n + z^2) of the population does, and by no more than the ends of the scale. For
  8 right answers of 8 this is Wilson's [0.68, 1]. These tasks' half-widths are added to the
  bootstrap's in squares (Zou and Donner, Statistics in Medicine 27, 2008).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, ndtr, stdtrit

from macbench.errors import MacbenchError

DRAWS = 10_000
Z = 1.959963984540054  # two-sided 95 %


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

    difference: Interval  # method minus full
    p: float
    test: str  # "mcnemar" or "sign-flip"
    worse: int  # samples on which the method scored lower (McNemar's b)
    better: int  # and higher (c)
    n: int


def _strata(
    values: ArrayLike, tasks: Sequence, clusters: Sequence
) -> Iterator[tuple[NDArray, NDArray]]:
    """Per task, in sorted order: sums and sizes of its clusters."""
    values, tasks = np.asarray(values, dtype=float), np.asarray(tasks)
    names = np.asarray([str(cluster) for cluster in clusters])
    if not len(values):
        raise MacbenchError("there are no samples to average; run the cell first.")
    for task in np.unique(tasks):
        mine = tasks == task
        _, which = np.unique(names[mine], return_inverse=True)
        yield np.bincount(which, weights=values[mine]), np.bincount(which)


def interval(
    values: ArrayLike,
    tasks: Sequence,
    clusters: Sequence,
    scale: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> Interval:
    """Mean over tasks of their mean value, with its 95 % interval.

    values [n] within `scale`; tasks [n], clusters [n]: each value's task and cluster.
    """
    rng = np.random.default_rng(seed)
    strata = list(_strata(values, tasks, clusters))
    mean = float(np.mean([sums.sum() / sizes.sum() for sums, sizes in strata]))
    below = above = 0.0  # squared half-widths of tasks without spread
    drawn = np.zeros(DRAWS)  # bootstrap deviations of the mean
    spread = []  # clusters of the tasks that have some
    for sums, sizes in strata:
        n, own = len(sums), sums / sizes
        if np.ptp(own) < 1e-12:
            share = Z**2 / (n + Z**2)
            below += (share * (own[0] - scale[0]) / len(strata)) ** 2
            above += (share * (scale[1] - own[0]) / len(strata)) ** 2
            continue
        counts = rng.multinomial(n, np.full(n, 1 / n), size=DRAWS)
        drawn += (counts @ sums / (counts @ sizes) - sums.sum() / sizes.sum()) / len(strata)
        spread.append(n)
    if spread:
        df = sum(spread) - len(spread)
        level = ndtr(np.sqrt(sum(spread) / df) * stdtrit(df, 0.025))
        low, high = np.quantile(drawn, (level, 1 - level))
        below += min(low, 0.0) ** 2
        above += max(high, 0.0) ** 2
    low, high = max(scale[0], mean - below**0.5), min(scale[1], mean + above**0.5)
    return Interval(mean, float(low), float(high))


def mcnemar(worse: int, better: int) -> float:
    """Exact two-sided p of McNemar's test from the two discordant counts."""
    return float(min(1.0, 2 * bdtr(min(worse, better), worse + better, 0.5)))


def sign_flip(differences: ArrayLike, tasks: Sequence, clusters: Sequence, seed: int = 0) -> float:
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
    rng = np.random.default_rng(seed)
    total = np.zeros(DRAWS)
    for value in moving:
        total += value * rng.choice((-1.0, 1.0), DRAWS)
    return float((1 + np.sum(abs(total) >= observed)) / (1 + DRAWS))


def compare(full: ArrayLike, method: ArrayLike, tasks: Sequence, clusters: Sequence) -> Comparison:
    """Paired comparison of scores in [0, 1]: full [n] and method [n] of the same samples in order.

    Right-or-wrong scores of independent samples get McNemar's exact test, anything else (graded
    scores, samples that share a text) the sign-flip test.
    """
    full, method = np.asarray(full, dtype=float), np.asarray(method, dtype=float)
    change = method - full
    worse, better = int(np.sum(change < 0)), int(np.sum(change > 0))
    binary = bool(np.isin([full, method], (0.0, 1.0)).all())
    alone = len({(task, str(cluster)) for task, cluster in zip(tasks, clusters, strict=True)})
    exact = binary and alone == len(change)
    return Comparison(
        difference=interval(change, tasks, clusters, scale=(-1.0, 1.0)),
        p=mcnemar(worse, better) if exact else sign_flip(change, tasks, clusters),
        test="mcnemar" if exact else "sign-flip",
        worse=worse,
        better=better,
        n=len(change),
    )


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjustment of a family of p-values, in the order given."""
    order = np.argsort(p, kind="stable")
    stepped = np.asarray(p, dtype=float)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(stepped))
    return adjusted.tolist()
