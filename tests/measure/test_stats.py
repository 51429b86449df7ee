"""Intervals and tests against hand-computed values, exact enumeration and their own coverage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from macbench.errors import MacbenchError
from macbench.measure.stats import (
    ONE_SIDED,
    POWER,
    Z,
    bootstrap,
    compare,
    discordance,
    holm,
    interval,
    mcnemar,
    newcombe,
    samples_to_exclude,
    samples_to_see,
    sign_flip,
    wilson,
)


def names(n: int) -> list[str]:
    return [str(i) for i in range(n)]


@pytest.mark.parametrize(
    ("worse", "better", "p"),
    [(10, 4, 0.180), (5, 0, 0.0625), (6, 0, 0.031), (25, 12, 0.047), (26, 13, 0.053), (0, 0, 1)],
)
def test_mcnemar_values(worse, better, p):
    assert mcnemar(worse, better) == pytest.approx(p, abs=5e-4)
    assert mcnemar(better, worse) == mcnemar(worse, better)


def test_wilson_ends_and_middle():
    assert wilson(8, 8).low == pytest.approx(8 / (8 + Z**2))
    assert wilson(8, 8).high == pytest.approx(1)
    assert wilson(0, 8).high == pytest.approx(Z**2 / (8 + Z**2))
    # p = 1/2: the score equation (1/2 - x)^2 = z^2 x (1 - x) / n holds at both ends
    for x in (wilson(10, 20).low, wilson(10, 20).high):
        assert (0.5 - x) ** 2 == pytest.approx(Z**2 * x * (1 - x) / 20)


@pytest.mark.parametrize("n", range(1, 50))
def test_wilson_holds_the_share_at_both_ends(n):
    assert wilson(0, n).low == 0 and wilson(n, n).high == 1


def test_newcombe_published_example():
    # 36 / 12 / 2 / 0 of the 1998 paper's examples: difference 0.2, limits 0.0569 and 0.3404
    found = newcombe(both=36, worse=2, better=12, neither=0)
    assert (found.mean, found.low, found.high) == pytest.approx((0.2, 0.0569, 0.3404), abs=5e-5)
    mirrored = newcombe(both=36, worse=12, better=2, neither=0)
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


def test_one_binary_task_gets_score_intervals():
    scores = [1, 1, 1, 0, 0, 1, 1, 0]
    assert interval(scores, ["a"] * 8, names(8)) == wilson(5, 8)
    difference = compare([1] * 8, scores, ["a"] * 8, names(8)).difference
    assert difference == newcombe(both=5, worse=3, better=0, neither=0)


def test_large_samples_agree_with_the_normal_interval():
    rng = np.random.default_rng(1)
    values = rng.random((3, 400))
    found = interval(values.ravel(), np.repeat(["a", "b", "c"], 400), names(400) * 3)
    error = math.sqrt(sum(v.var(ddof=1) / 400 for v in values)) / 3
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - Z * error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + Z * error, abs=0.1 * error)


def test_tasks_weigh_equally_whatever_their_size():
    found = interval([1.0] * 90 + [0.5, 0.0] * 5, ["a"] * 90 + ["b"] * 10, names(100))
    assert found.mean == pytest.approx((1 + 0.25) / 2)


def test_clusters_are_resampled_whole():
    rng = np.random.default_rng(2)
    text = rng.random(30)
    alone = interval(text, ["a"] * 30, names(30))
    copied = interval(np.repeat(text, 20), ["a"] * 600, np.repeat(names(30), 20))
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high))
    careless = interval(np.repeat(text, 20), ["a"] * 600, names(600))
    assert careless.half_width < alone.half_width / 3


def test_no_spread_is_not_certainty():
    u = Z**2 / (8 + Z**2)
    right = bootstrap([1] * 8, ["a"] * 8, names(8))
    assert (right.low, right.high) == pytest.approx((1 - u, 1))
    graded = interval([0.5] * 8, ["a"] * 8, names(8))
    assert (graded.low, graded.high) == pytest.approx((0.5 - u / 2, 0.5 + u / 2))
    same = bootstrap([0] * 8, ["a"] * 8, names(8), scale=(-1, 1))
    assert (same.low, same.high) == pytest.approx((-u, u))
    # two such tasks: half-widths in squares, each at half the weight
    both = bootstrap([1] * 8 + [0] * 8, ["a"] * 8 + ["b"] * 8, names(16))
    assert (both.low, both.high) == pytest.approx((0.5 - u / 2, 0.5 + u / 2))
    # beside a task that varies, the constant one still widens the average
    varying = [0, 1, 1, 0, 1, 0, 1, 1]
    wide = interval([1] * 8 + varying, ["a"] * 8 + ["b"] * 8, names(16))
    narrow = bootstrap(varying, ["b"] * 8, names(8)).half_width / 2
    assert wide.half_width > narrow


def test_tasks_without_spread_are_not_all_at_their_worst_at_once():
    """13 x 50 equal answers: with a rate q of losses in all, 650 samples show none with
    (1 - q)^650, which is 5 % at q = 0.46 %; where they may lie in one task, 0.058 / 13."""
    tasks = np.repeat(names(13), 50)
    found = bootstrap([0] * 650, tasks, names(650), scale=(-1, 1), z=ONE_SIDED)
    exact = max(1 - 0.05 ** (1 / 650), (1 - 0.05 ** (1 / 50)) / 13)
    assert -found.low == found.high == pytest.approx(exact, rel=0.1)
    few = bootstrap([0] * 6, [*"aaabbb"], names(6), scale=(-1, 1))  # never beyond each alone
    u = Z**2 / (3 + Z**2)
    assert few.high == pytest.approx(math.sqrt(2) * u / 2)
    small = bootstrap([0] * 650, ["a"] * 5 + ["b"] * 645, names(650), scale=(-1, 1))
    assert small.high > 0.2  # what 5 samples leave open, whatever 645 others say


@pytest.mark.parametrize("lost", [[0.05] + [0] * 12, [0.01] * 13, [0.03] * 3 + [0] * 10])
def test_the_one_sided_end_holds_where_few_of_many_tasks_changed(lost):
    """Losses in one, all or some of 13 tasks of 50 samples."""
    rng, tasks, inside = np.random.default_rng(8), np.repeat(names(13), 50), 0
    for _ in range(200):
        change = -(rng.random((13, 50)) < np.array(lost)[:, None]).astype(float)
        found = bootstrap(change.ravel(), tasks, names(650), scale=(-1, 1), z=ONE_SIDED)
        inside += found.low <= -np.mean(lost)
    assert inside / 200 > 0.95 - 2 * 0.0155  # two standard errors


@pytest.mark.parametrize("n", [1, 2])
def test_hardly_any_samples(n):
    found = interval([0.5] * n, ["a"] * n, names(n))
    assert 0 <= found.low < 0.5 < found.high <= 1
    with pytest.raises(MacbenchError, match="no samples"):
        interval([], [], [])


def test_two_graded_samples_tell_next_to_nothing():
    """Neither of a mean, which may lie far from both, nor of a difference."""
    found = interval([0.4, 0.6], ["a", "a"], names(2))
    assert (found.low, found.high) == (0, 1)
    changed = compare([0.4, 0.4], [0.5, 0.6], ["a", "a"], names(2))
    assert changed.p == 0.5 and changed.least < 0 and changed.difference.low < 0


def test_one_task_that_varies_moves_the_mean_no_further_than_it_can():
    """One answer of 4 x 2 and of 13 x 2 is wrong: its task weighs a quarter and a thirteenth."""
    for tasks, least in ((4, 0.4), (13, 0.78)):
        scores = [*[1] * (2 * tasks - 1), 0]
        found = interval(scores, [str(i // 2) for i in range(2 * tasks)], names(2 * tasks))
        assert found.low > least


@pytest.mark.parametrize("n", [2, 3, 4])
def test_coverage_with_a_handful_of_graded_samples(n):
    """Scores of five parts each, harder and easier prompts mixed."""
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(300):
        scores = rng.binomial(5, rng.beta(4, 1.5, n)) / 5
        found = interval(scores, ["a"] * n, names(n))
        inside += found.low <= 4 / 5.5 <= found.high
    assert inside / 300 > 0.95 - 2 * 0.0126  # two standard errors


def test_coverage_with_eight_samples_of_four_tasks():
    rng = np.random.default_rng(3)
    shares = np.array([0.95, 0.6, 0.3, 0.8])
    tasks = np.repeat(list("abcd"), 8)
    inside = 0
    for _ in range(400):
        found = interval((rng.random((4, 8)) < shares[:, None]).ravel(), tasks, names(8) * 4)
        inside += found.low <= shares.mean() <= found.high
    assert inside / 400 > 0.93  # 0.95 less two standard errors


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([0, 0.25, 0.5, 1])), min_size=1),
    st.randoms(use_true_random=False),
)
def test_interval_holds_its_mean_and_ignores_order(rows, random):
    rows = [(task, value, str(i)) for i, (task, value) in enumerate(rows)]
    found = interval([v for _, v, _ in rows], [t for t, _, _ in rows], [c for *_, c in rows])
    assert 0 <= found.low <= found.mean + 1e-12 and found.mean - 1e-12 <= found.high <= 1
    assert found.half_width > 0
    shuffled = random.sample(rows, len(rows))
    again = interval(
        [v for _, v, _ in shuffled], [t for t, *_ in shuffled], [c for *_, c in shuffled]
    )
    assert (again.low, again.high) == pytest.approx((found.low, found.high), abs=0.03)


def test_sign_flip_equals_naive_enumeration():
    differences, tasks = [0.5, -0.25, 0.75, 0, 1, 0.25], ["a", "a", "a", "b", "b", "b"]
    observed = abs(sum(differences)) / 6
    count = 0
    for signs in itertools.product((1, -1), repeat=6):
        count += (
            abs(sum(s * d for s, d in zip(signs, differences, strict=True))) / 6 >= observed - 1e-12
        )
    assert sign_flip(differences, tasks, names(6)) == pytest.approx(count / 64)


@pytest.mark.parametrize(("worse", "better"), [(3, 0), (6, 2), (9, 4)])
def test_sign_flip_of_one_binary_task_is_mcnemar(worse, better):
    changes = [-1] * worse + [1] * better + [0] * 10
    p = sign_flip(changes, ["a"] * len(changes), names(len(changes)))
    assert p == pytest.approx(mcnemar(worse, better))


def test_sign_flip_by_draws_is_close_to_exact():
    changes = [-1] * 18 + [1] * 6
    assert sign_flip(changes, ["a"] * 24, names(24)) == pytest.approx(mcnemar(18, 6), abs=0.01)


def test_sign_flip_flips_clusters_whole():
    one_text = sign_flip([-1] * 8, ["a"] * 8, ["x"] * 8)
    assert one_text == 1  # a single cluster can never be significant
    assert sign_flip([-1] * 8, ["a"] * 8, names(8)) == pytest.approx(2 / 2**8)


def test_compare_counts_and_chooses_the_test():
    full, method = [1, 1, 1, 0, 0, 1, 1, 1], [0, 1, 0, 1, 0, 1, 1, 0]
    binary = compare(full, method, ["a"] * 8, names(8))
    assert (binary.worse, binary.better, binary.n) == (3, 1, 8)
    assert binary.difference.mean == pytest.approx(-0.25)
    assert (binary.test, binary.p) == ("mcnemar", mcnemar(3, 1))
    assert compare(full, method, ["a"] * 8, ["x", *names(8)[1:7], "x"]).test == "sign-flip"
    assert compare([0.5] * 8, method, ["a"] * 8, names(8)).test == "sign-flip"


def test_tasks_of_different_sizes_are_tested_as_they_are_averaged():
    """6 of 100 lost and 2 of 2 won: 47 points up on average, where counts would say down."""
    full, method = [1] * 100 + [0] * 2, [0] * 6 + [1] * 94 + [1] * 2
    found = compare(full, method, ["a"] * 100 + ["b"] * 2, names(102))
    assert found.difference.mean == pytest.approx((-0.06 + 1) / 2)
    # of 2^8 sign patterns those whose |mean| is at least as large: both of b alike, whatever a,
    # but for 6 equal ones of a that add to b's
    patterns = itertools.product((1, -1), repeat=8)
    means = [abs(sum(s[:6]) / 100 + sum(s[6:]) / 2) / 2 for s in patterns]
    assert found.test == "sign-flip"
    assert found.p == pytest.approx(np.mean([m >= 0.47 - 1e-9 for m in means]))
    assert compare(full[:100], method[:100], ["a"] * 50 + ["b"] * 50, names(100)).test == "mcnemar"


def test_eight_samples_tell_a_broken_method_from_full():
    tasks = np.repeat(list("abcd"), 8)
    full = [1] * 8 + [1, 1, 1, 1, 1, 0, 1, 0] + [0.75] * 8 + [2 / 3] * 8
    broken = [0] * 8 + [0, 0, 0, 1, 0, 0, 0, 0] + [0.25] * 8 + [1 / 3] * 8
    found = compare(full, broken, tasks, names(8) * 4)
    assert found.difference.high < 0
    same = compare(full, full, tasks, names(8) * 4)
    assert same.p == 1 and same.difference.low < 0 < same.difference.high


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_quantiles():
    for found, share in ((Z, 0.975), (ONE_SIDED, 0.95), (POWER, 0.8)):
        assert found == pytest.approx(scipy_stats.norm.ppf(share), abs=1e-12)


@pytest.mark.parametrize(("right", "n"), [(0, 7), (3, 7), (7, 7), (123, 200)])
def test_wilson_is_scipys_at_any_level(right, n):
    for z, level in ((Z, 0.95), (ONE_SIDED, 0.9)):
        theirs = scipy_stats.binomtest(right, n).proportion_ci(level, method="wilson")
        ours = wilson(right, n, z)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize(
    ("changed", "point", "margins"),
    [
        (0.02, 1562, (1237, 310, 138)),
        (0.05, 3917, (3092, 773, 344)),
        (0.10, 7841, (6183, 1546, 687)),
        (0.20, 15690, (12366, 3092, 1374)),
    ],
)
def test_samples_for_a_point_and_for_margins(changed, point, margins):
    assert samples_to_see(0.01, changed) == pytest.approx(point, abs=1)
    found = [samples_to_exclude(margin, changed) for margin in (0.01, 0.02, 0.03)]
    assert found == pytest.approx(margins, abs=1)


def test_the_samples_asked_for_find_the_difference_in_four_of_five_tries():
    """4 % lose, 2 % win: a difference of 2 points with 6 % discordance, tested by McNemar's z."""
    rng = np.random.default_rng(5)
    n = samples_to_see(0.02, 0.06)
    worse, better, _ = rng.multinomial(n, [0.04, 0.02, 0.94], size=4000).T
    seen = abs(worse - better) / np.sqrt(worse + better) > Z
    assert seen.mean() == pytest.approx(0.8, abs=0.02)


def test_discordance_by_hand():
    """Task a: 2 of 4 changed. Task b: one text of two samples, both down by a half: 1 / 2."""
    changes = [-1, 0, 1, 0, -0.5, -0.5]
    tasks, clusters = [*"aaaabb"], [*"1234", "x", "x"]
    assert discordance(changes, tasks, clusters) == pytest.approx((0.5 + 0.5) / 2)
    assert discordance(changes, tasks, names(6)) == pytest.approx((0.5 + 0.25) / 2)


@pytest.mark.parametrize("graded", [False, True])
def test_the_one_sided_end_lies_inside_and_holds_nineteen_times_of_twenty(graded):
    rng = np.random.default_rng(6)
    below = 0
    for _ in range(400):
        full = (rng.random(60) < 0.7).astype(float)
        method = np.where(rng.random(60) < 0.15, rng.random(60) < 0.3, full).astype(float)
        if graded:
            full, method = full * 0.8, method * 0.8
        found = compare(full, method, ["a"] * 60, names(60))
        assert found.difference.low <= found.least <= found.difference.mean
        below += found.least <= 0.15 * (0.3 - 0.7) * (0.8 if graded else 1)
    assert 0.92 < below / 400 <= 1
