"""SnapKV, Ada-KV, PyramidKV, H2O and TOVA: the naive ones, and examples by hand."""

from __future__ import annotations

from dataclasses import replace

import naive
import naive_eviction
import pytest
import torch
from harness import (
    Problem,
    Tokens,
    allocate,
    assert_equals_naive,
    cached,
    drive,
    exact,
    problem,
    start,
    step,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from macbench.attention import Prompt, create
from macbench.attention import observed as scoring
from macbench.attention.observed import best, pooled, received, window_scores
from macbench.errors import MacbenchError

shapes = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 99),
        "lengths": st.lists(st.integers(1, 60), min_size=1, max_size=2),
        "steps": st.integers(1, 8),
        "kv_heads": st.integers(1, 2),
        "group": st.integers(1, 3),
        "d": st.sampled_from([4, 8]),
    }
)
SHARES = [1 / 16, 1 / 4, 1 / 2, 3 / 4]  # of no rounding


def follow(make):
    """`expected` of `assert_equals_naive` by objects that make(data, layer number) starts."""
    state = {}

    def expected(number, data, t):
        if t == data.length:
            state["now"] = make(data, number)
        return state["now"].step(t)

    return expected


@settings(max_examples=30)
@given(
    shapes,
    st.sampled_from(SHARES),
    st.sampled_from(
        [
            {"window": 3, "kernel": 3},
            {"window": 1, "kernel": 1, "group": "max"},
            {"window": 4, "kernel": 5, "pool": "avg", "group": "max"},
            {"window": 3, "kernel": 3, "ada": True, "alpha": 0.2},
            {"window": 2, "kernel": 3, "pool": "avg", "ada": True, "alpha": 0.5},
            {"window": 3, "kernel": 3, "recompress": 2},
            {"window": 6, "kernel": 1, "recompress": 3},
        ]
    ),
)
def test_snapkv_equals_the_naive_one(shape, budget, knobs):
    case = problem(**shape)
    record = drive(create("snapkv", knobs | {"budget": budget}), case)

    def make(data, number):
        size = max(int(budget * data.length), knobs["window"] + 1)
        return naive_eviction.SnapKV(data, size, **knobs)

    assert_equals_naive(record, case, follow(make))


@settings(max_examples=20)
@given(shapes, st.sampled_from(SHARES), st.booleans())
def test_tova_equals_the_naive_one(shape, budget, per_kv_head):
    case = problem(**shape)
    record = drive(create("tova", {"budget": budget, "per_kv_head": per_kv_head}), case)

    def make(data, number):
        return naive_eviction.TOVA(data, max(int(budget * data.length), 1), per_kv_head)

    assert_equals_naive(record, case, follow(make))


@settings(max_examples=20)
@given(shapes, st.sampled_from(SHARES), st.booleans())
def test_h2o_equals_the_naive_one(shape, budget, normalise):
    case = problem(**shape)
    record = drive(create("h2o", {"budget": budget, "normalise": normalise}), case)

    def make(data, number):
        """A kept token takes its own bytes and four of score."""
        token = 2 * data.d * data.itemsize
        size = data.length if budget == 1 else int(budget * data.length * token / (token + 4))
        return naive_eviction.H2O(data, max(size, 2), normalise)

    assert_equals_naive(record, case, follow(make))


@settings(max_examples=10)
@given(shapes, st.sampled_from([1 / 4, 1 / 2]), st.booleans())
def test_pyramidkv_equals_the_naive_one(shape, budget, ada):
    """Two layers: the first selects `max`, the second `min` or what whole steps leave of it."""
    case = problem(**shape)
    record = drive(create("pyramidkv", {"budget": budget, "window": 3, "ada": ada}), case)

    def make(data, number):
        n, base = data.length, max(int(budget * data.length), 4) - 3
        least = base // 20
        most = 2 * base - least
        if most >= n - 3:
            most, least = n - 3, 2 * base - (n - 3)
        if n <= base + 3 or n < 2 * base:
            most = least = base
        size = (most if number == 0 else least) + 3
        return naive_eviction.SnapKV(data, size, window=3, ada=ada)

    assert_equals_naive(record, case, follow(make))


@pytest.mark.parametrize(
    "name, knobs, make",
    [
        ("h2o", {}, lambda data: naive_eviction.H2O(data, 11)),
        ("tova", {}, lambda data: naive_eviction.TOVA(data, 12)),
        (
            "snapkv",
            {"window": 4, "recompress": 8},
            lambda data: naive_eviction.SnapKV(data, 12, 4, recompress=8),
        ),
    ],
)
def test_eviction_over_a_long_answer(name, knobs, make):
    """50 steps: most of what was kept of the prompt makes way for what was generated."""
    case = problem(lengths=(48,), steps=50, layers=1)
    record = drive(create(name, knobs | {"budget": 0.25}), case)
    assert_equals_naive(record, case, follow(lambda data, number: make(data)))
    held = record.counts[-1]["kv_tokens"]
    assert (held <= (20 if name == "snapkv" else 13)).all()


# what the prompt's queries pay


@pytest.mark.parametrize("block", [1, 2**25])
def test_received_is_the_column_sum_of_the_causal_softmax(block, monkeypatch):
    monkeypatch.setattr(scoring, "BLOCK", block)
    case = problem(lengths=(23,), steps=1, layers=1, kv_heads=2, group=3)
    data, s = naive.layer(case, 0, 0), case.sequences[0]
    keys = s.k[0, :23].transpose(0, 1)
    for w in (1, 5, 23):
        got = received(s.q[0, 23 - w : 23], keys, case.geometry.scale)
        for head in range(6):
            want = torch.zeros(23, dtype=torch.float64)
            for t in range(23 - w, 23):
                for j, p in naive_eviction.probabilities(data, t, head, range(t + 1)).items():
                    want[j] += p
            assert_close(got[head], want, rtol=0, atol=1e-12)
        assert_close(got.sum(-1), torch.full((6,), float(w)).double())  # every query pays 1


def test_the_windows_own_keys_share_the_softmax_but_get_no_score():
    """Two queries on two equal keys before them: 1/3 + 1/4 each."""
    q, keys = torch.zeros(2, 1, 4), torch.zeros(1, 4, 4)
    assert_close(window_scores(q, keys, 1.0), torch.full((1, 2), 1 / 3 + 1 / 4))
    assert window_scores(q, keys[:, :2], 1.0).shape == (1, 0)


def test_pooling_by_hand():
    scores = torch.tensor([[0.1, 0, 0, 0.4, 0]])
    assert_close(pooled(scores, 3), torch.tensor([[0.1, 0.1, 0.4, 0.4, 0.4]]))
    assert best(pooled(scores, 3), 3).tolist() == [[2, 3, 4]]
    assert_close(pooled(scores, 3, "avg"), torch.tensor([[0.1, 0.1, 0.4, 0.4, 0.4]]) / 3)
    assert best(torch.tensor([1.0, 2, 2, 2, 0]), 2).tolist() == [1, 2]  # of equals the lower


def at_rest(name, knobs, case):
    """The kept lists right after the prefill: [layers][slot][KV head] sets of positions."""
    method = create(name, knobs)
    allocate(method, case)
    start(method, case, cached(case))
    return kept(method)


def kept(method):
    lists = method.kept
    return [
        [
            [set(t[: int(n)].tolist()) for t, n in zip(tokens, held, strict=True)]
            for tokens, held in zip(layer, counts, strict=True)
        ]
        for layer, counts in zip(lists.tokens, lists.held, strict=True)
    ]


def rows_of(*rows, steps=1, group=1):
    """A problem of one KV head in which prompt query i gives key j the probability rows[i][j], and
    every decoded query pays attention evenly. With a group, rows[i] is a list of rows."""
    n = len(rows)
    total = n + steps
    d = total + total % 2
    keys = torch.eye(total, d, dtype=torch.float64)[None, :, None]
    q = torch.zeros(1, total, group, d, dtype=torch.float64)
    for i, row in enumerate(rows):
        for head, paid in enumerate(row if group > 1 else [row]):
            for j, p in enumerate(paid):
                q[0, i, head, j] = torch.tensor(p, dtype=torch.float64).clamp_min(1e-30).log()
    v = torch.randn(1, total, 1, d, generator=torch.Generator().manual_seed(0)).double()
    geometry = replace(problem(layers=1, kv_heads=1, group=group, d=d).geometry, scale=1.0)
    return Problem(geometry, [Tokens(n, q, q, keys, v)], steps)


def test_h2o_and_tova_differ_by_hand():
    """Sums 1.8, .7, .5, last row .2, .3, .5: H2O keeps {0, 2}, sums or means, TOVA {1, 2}."""
    case = rows_of([1.0], [0.6, 0.4], [0.2, 0.3, 0.5])
    for normalise in (False, True):
        knobs = {"budget": 0.67, "normalise": normalise}
        assert at_rest("h2o", knobs, case) == [[[{0, 2}]]]
    assert at_rest("tova", {"budget": 0.67}, case) == [[[{1, 2}]]]


def test_h2o_means_spare_a_late_token_that_sums_drop():
    """Sums 1.9, .9, 1.1, .1; queries that could see them 4, 3, 2, 1: the mean of token 2 is the
    highest of those before the recent window."""
    case = rows_of([1.0], [0.5, 0.5], [0.3, 0.2, 0.5], [0.1, 0.2, 0.6, 0.1])
    assert at_rest("h2o", {"budget": 0.5}, case) == [[[{0, 3}]]]
    assert at_rest("h2o", {"budget": 0.5, "normalise": True}, case) == [[[{2, 3}]]]


def test_h2o_conserves_what_queries_pay():
    """Before anything is dropped, the scores of a head sum to the number of queries."""
    case = problem(lengths=(20, 9), steps=5)
    method = create("h2o", {"budget": 0.99})
    method.size = lambda geometry, length: 60
    record = drive(method, case)
    assert_close(exact(case), record.tensor(), rtol=0, atol=1e-12)
    for slot, length in enumerate((20, 9)):
        total = method.scores[:, slot].sum(-1)
        assert_close(total, torch.full_like(total, length + 5))


def test_tova_heads_with_opposite_wishes_get_one_set():
    rows = [[[1.0], [1.0]], [[0.5, 0.5], [0.5, 0.5]], [[0.1, 0.2, 0.7], [0.7, 0.2, 0.1]]]
    assert at_rest("tova", {"budget": 0.67}, rows_of(*rows, group=2)) == [[[{0, 2}]]]
    case = problem(lengths=(40,), kv_heads=2)
    assert len(at_rest("tova", {"budget": 0.3}, case)[0][0]) == 1
    own = at_rest("tova", {"budget": 0.3, "per_kv_head": True}, case)[0][0]
    assert own[0] != own[1]


def test_tova_may_drop_the_current_token():
    """The decoded query gives its own key next to nothing."""
    case = rows_of([1.0], [0.6, 0.4], [0.2, 0.3, 0.5], steps=2)
    case.sequences[0].q[0, 3, 0, 3] = -40.0
    method = create("tova", {"budget": 0.67})
    allocate(method, case)
    record = start(method, case, cached(case))
    step(record, case, 0)
    assert kept(method) == [[[{1, 2}]]]
    step(record, case, 1)  # even attention: the highest position goes
    assert kept(method) == [[[{1, 2}]]]
    assert [c["kv_tokens"].item() for c in record.counts] == [3, 3]


def test_snapkv_by_hand():
    """One query at the end pays .1, 0, 0, .4, 0: the peak keeps its neighbours."""
    case = rows_of(*[[1.0]] * 5, [0.1, 0, 0, 0.4, 0, 0.5])
    knobs = {"window": 1, "kernel": 3, "budget": 0.67}
    assert at_rest("snapkv", knobs, case) == [[[{2, 3, 4, 5}]]]
    assert at_rest("snapkv", knobs | {"kernel": 1}, case) == [[[{0, 1, 3, 5}]]]


def test_snapkv_finds_a_needle_that_the_window_asks_for():
    case = problem(lengths=(400,), steps=1, layers=1, kv_heads=1, group=1, d=32)
    s = case.sequences[0]
    q = s.q[0, 395, 0]  # one of the last eight
    s.k[0, 123, 0] = 12 * q / q.norm()
    (((held,),),) = at_rest("snapkv", {"budget": 0.1, "window": 8}, case)
    assert set(range(120, 127)) <= held and len(held) == 40
    assert set(range(392, 400)) <= held
    q = s.q[0, 200, 0]  # a query that the window does not hold
    s.k[0, 123, 0] = -30 * s.q[0, 392:400, 0].mean(0)
    (((held,),),) = at_rest("snapkv", {"budget": 0.1, "window": 8, "kernel": 1}, case)
    assert 123 not in held


def sized(*peaks):
    """Two KV heads of 30 tokens whose window of 2 pays the listed keys (and no other), evenly."""
    n, d = 32, 4
    k = torch.zeros(1, n + 1, 2, d, dtype=torch.float64)
    q = torch.zeros(1, n + 1, 2, d, dtype=torch.float64)
    q[0, 30:32, :, 0] = 1.0
    for g, positions in enumerate(peaks):
        k[0, list(positions), g, 0] = 30.0
    v = torch.zeros_like(k)
    geometry = replace(problem(layers=1, kv_heads=2, group=1, d=d).geometry, scale=1.0)
    return Problem(geometry, [Tokens(n, q, q, k, v)], 1)


ADA = {"window": 2, "kernel": 1, "budget": 0.25, "ada": True}  # 8 tokens, 6 beside the window


def test_ada_gives_a_head_of_few_peaks_its_floor():
    """Head 0 needs one token, head 1 all it can get: 1 and 11 of 12 places, then
    .8 n_h + .2 * 6 = 2 and 10."""
    case = sized([5], range(3, 20))
    ((first, second),) = at_rest("snapkv", ADA, case)[0]
    assert (len(first), len(second)) == (4, 12)
    assert 5 in first and {30, 31} <= first & second
    (uniform,) = at_rest("snapkv", ADA | {"alpha": 1.0}, case)[0]
    assert uniform == at_rest("snapkv", ADA | {"ada": False}, case)[0][0]
    ((first, second),) = at_rest("snapkv", ADA | {"alpha": 0.0}, case)[0]
    assert (len(first), len(second)) == (3, 13) and 5 in first


@settings(max_examples=15)
@given(st.integers(0, 99), st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.integers(1, 4))
def test_ada_conserves_the_layers_budget(seed, alpha, kv_heads):
    case = problem(seed, lengths=(60,), steps=3, kv_heads=kv_heads, group=2)
    knobs = {"budget": 0.4, "window": 4, "alpha": alpha}
    record = drive(create("snapkv", knobs | {"ada": True}), case)
    plain = drive(create("snapkv", knobs), case)
    for a, b in zip(record.counts, plain.counts, strict=True):
        difference = (a["kv_tokens"].sum(-1) - b["kv_tokens"].sum(-1)).abs()
        assert (difference <= kv_heads / 2).all()  # rounding
        assert (a["kv_tokens"] >= 5).all()
    if alpha == 1:
        assert torch.equal(record.tensor(), plain.tensor())


def pyramid(capacity, length, **knobs):
    return create("pyramidkv", knobs).pyramid(32, length, capacity)


def test_pyramidkv_by_hand():
    """C = 1311, window 8, 32 layers: 2549 down to 100 in steps of 79, 1 % above C in the mean."""
    found = pyramid(1311, 13110)
    assert (found[0], found[1], found[-1]) == (2549, 2470, 100)
    assert sum(found) / 32 == 1324.5


def test_pyramidkv_when_the_prompt_is_short():
    # C = 1500: max 2 * 1492 - 74 = 2910 of 2992 fits; at C = 1600, 3105 does not
    assert pyramid(1500, 3000)[0] == 2910 + 8
    assert pyramid(1600, 3000) == [1600] * 32  # 3000 < 2 * 1592: uniform
    # 2 * 1496 - 1 = 2991 of 3000 or 2992 fits
    assert pyramid(1504, 3008, beta=1000)[0] == 2991 + 8
    assert pyramid(1504, 3000, beta=1000)[0] == 2991 + 8
    # 2993 does not: 2992 down to 2
    clipped = pyramid(1505, 3000, beta=1000)
    assert clipped == [2992 + 8 - layer * (2990 // 31) for layer in range(32)]


@given(st.integers(1, 40), st.integers(20, 5000), st.floats(0.02, 1.0), st.sampled_from([1, 2, 20]))
def test_pyramidkv_conserves_the_budget(layers, length, budget, beta):
    """Up to two tokens; the authors' whole steps alone would add up to half as many as layers."""
    method = create("pyramidkv", {"budget": budget, "beta": beta})
    found, mean = method.sizes(layers, length), max(int(budget * length), 9)
    assert found == sorted(found, reverse=True) and found[-1] >= 8
    assert -2 <= sum(found) / layers - mean <= (mean == 9)
    assert 0 <= sum(method.pyramid(layers, length, mean)) / layers - mean <= (layers - 1) / 2
    if beta == 1:
        assert found == [mean] * layers


def test_pyramidkv_of_beta_1_is_snapkv():
    case = problem(lengths=(80, 60), steps=6)
    knobs = {"budget": 0.3, "window": 4}
    pyramid = drive(create("pyramidkv", knobs | {"beta": 1}), case)
    plain = drive(create("snapkv", knobs), case)
    assert torch.equal(pyramid.tensor(), plain.tensor())


# costs


def read(record):
    """Byte budget over all steps."""
    sums, token = record.sums(), record.view.cache.geometry.token_bytes
    return (sums["kv_tokens"] * token + sums["meta_bytes"]) / (sums["context_kv"] * token)


@pytest.mark.parametrize("group", [1, 4, 8])
def test_budgets_are_what_the_formulas_say(group):
    """N = 200, budget 1/4, 10 steps."""
    case = problem(lengths=(200,), steps=10, kv_heads=1, group=group)
    context = sum(range(201, 211))
    grown = sum(range(51, 61))
    for name, knobs, tokens in (
        ("snapkv", {}, grown),
        ("snapkv", {"ada": True}, grown),
        ("snapkv", {"window": 4, "recompress": 4}, 2 * (51 + 52 + 53 + 54) + 51 + 52),
        ("pyramidkv", {}, grown),  # two layers: 90, and what is left of 100
        ("tova", {}, 51 * 10),
        ("h2o", {}, 49 * 10 * (1 + 4 / 128)),
    ):
        record = drive(create(name, knobs | {"budget": 0.25}), case)
        assert read(record) == pytest.approx(tokens / context), (name, knobs)


@pytest.mark.parametrize(
    "name, knobs",
    [
        ("snapkv", {"window": 6}),
        ("pyramidkv", {"window": 6}),
        ("h2o", {}),
        ("tova", {}),
    ],
)
@pytest.mark.parametrize("length", [3, 300])
def test_the_floor_is_the_smallest_budget(name, knobs, length):
    case = problem(lengths=(length,), steps=1)
    method = create(name, knobs | {"budget": 1e-6})
    achieved = read(drive(method, case))
    assert method.floor(case.geometry, length) == pytest.approx(achieved, abs=2 / length)
    assert method.floor(case.geometry, length) <= 1


def test_what_stays_resident():
    case = problem(lengths=(100,), steps=20)
    for name, knobs, held in (
        ("snapkv", {"window": 4}, {100: 25, 105: 30, 120: 45}),
        ("snapkv", {"window": 4, "ada": True}, {100: 25, 120: 45}),
        ("snapkv", {"window": 4, "recompress": 6}, {100: 25, 105: 30, 120: 31}),
        ("pyramidkv", {"window": 4}, {100: 25, 120: 45}),
        ("tova", {}, {100: 26, 120: 26}),
        ("h2o", {}, {100: 25, 120: 25}),
        ("tova", {"budget": 1.0}, {100: 100, 120: 120}),
        ("snapkv", {"budget": 1.0}, {100: 100, 120: 120}),
    ):
        method = create(name, {"budget": 0.25} | knobs)
        drive(method, case)
        for tokens, most in held.items():
            assert method.capacity(0, tokens) == pytest.approx(most, abs=0.51), (name, knobs)


def test_resident_bytes_of_what_eviction_adds():
    case = problem(lengths=(40,), steps=8).to(torch.bfloat16)
    # 12 of 48 tokens are 10 with scores; the step's own, 4 bytes each, 2 KV heads, 2 layers
    assert allocate(create("h2o", {"budget": 0.25}), case) == 11 * 4 * 2 * 2
    # 6 queries of d = 8 in bf16; 4 query heads, 2 layers
    knobs = {"window": 6, "recompress": 4}
    assert allocate(create("snapkv", knobs), case) == 6 * 8 * 2 * 4 * 2
    for name in ("snapkv", "pyramidkv", "tova"):
        assert allocate(create(name, {}), case) == 0


@pytest.mark.parametrize(
    "name, knobs", [("snapkv", {"window": 4}), ("tova", {}), ("h2o", {}), ("tova", {"budget": 1.0})]
)
def test_the_host_knows_how_long_the_lists_are(name, knobs):
    case = problem(lengths=(50, 3), steps=12)
    method = create(name, {"budget": 0.25} | knobs)
    allocate(method, case)
    record = start(method, case, cached(case))
    for at in range(12):
        lists = method.lists((record.view.lens + 1).tolist())
        step(record, case, at)
        read = record.counts[-1]["kv_tokens"]
        assert (read == torch.tensor(lists.counts)[None, :, None]).all()
        assert (lists.piece, lists.per_row) == (1, 2)


@pytest.mark.parametrize(
    "name, knobs", [("snapkv", {"ada": True}), ("snapkv", {"recompress": 9}), ("pyramidkv", {})]
)
def test_lists_of_unequal_length_are_not_promised(name, knobs):
    case = problem(lengths=(150, 90))
    method = create(name, knobs | {"budget": 0.4})
    drive(method, case)
    assert method.lists([156, 96]) is None


@pytest.mark.parametrize("name", ["snapkv", "h2o", "tova"])
def test_a_finished_row_keeps_its_lists(name):
    """It is padding: its own token is written again and again behind its last."""
    case = problem(lengths=(50, 40), steps=12)
    knobs = {"budget": 0.3} | ({"window": 4} if name == "snapkv" else {})
    plain = drive(create(name, knobs), case)
    method = create(name, knobs)
    allocate(method, case)
    record = start(method, case, cached(case))
    for at in range(12):
        if at == 3:
            record.view.live[1] = False
            before = method.kept.held[:, 1].clone()
        step(record, case, at)
        if at >= 3:
            record.view.lens[1] = 43
    assert torch.equal(method.kept.held[:, 1], before)
    assert torch.equal(plain.tensor()[:, :, 0], record.tensor()[:, :, 0])
    assert record.tensor().isfinite().all()


def test_an_answer_that_goes_on_keeps_what_it_had_generated():
    """Continued after 7 tokens, with 40 of a prompt's 43: the budget is a share of the 40."""
    case = problem(lengths=(47,), steps=3)
    s = case.sequences[0]
    for name, knobs, held in (
        ("snapkv", {"window": 3}, 10 + 7),
        ("snapkv", {"window": 3, "ada": True}, 10 + 7),
        ("snapkv", {"window": 3, "recompress": 4}, 10 + 3),
        ("h2o", {}, 9),
        ("tova", {}, 10),
    ):
        method = create(name, {"budget": 0.25} | knobs)
        allocate(method, case)
        view = cached(case)
        prompt = Prompt(47, 3, 47, 0, list(s.q_pre[:, :47]), list(s.q[:, :47]), decoded=7)
        for layer in range(2):
            if method.needs.observe:
                for at in (0, 20):
                    end = 20 if at == 0 else 47
                    keys = s.k[layer, :end].transpose(0, 1)
                    method.observe(layer, 0, s.q_pre[layer, at:end], s.q[layer, at:end], keys, at)
            method.begin(layer, 0, prompt, view)
            prompt.shared.clear()
        for ((heads,),) in [kept(method)[:1]]:
            assert sum(map(len, heads)) == pytest.approx(held * len(heads), abs=1)
            if name == "snapkv":
                recent = range(47 - held + 10, 47)
                assert all(set(recent) <= own for own in heads)


def test_an_answer_that_goes_on_is_cut_when_it_would_have_been():
    """A row after 7 of its steps beside one after none: cut to 10 and 5 tokens every 4 steps."""
    case = problem(lengths=(47, 20), steps=9)
    case.sequences[0].decoded = 7
    method = create("snapkv", {"budget": 0.25, "window": 3, "recompress": 4})
    read = [c["kv_tokens"][0, :, 0].tolist() for c in drive(method, case).counts]
    held = ([14, 11, 12, 13, 14, 11, 12, 13, 14], [6, 7, 8, 9, 6, 7, 8, 9, 6])
    assert read == list(map(list, zip(*held, strict=True)))
    assert method.capacity(0, 47 + 9) == 14


@pytest.mark.parametrize(
    "name, knobs, said",
    [
        ("snapkv", {"window": 0}, "snapkv.window=0"),
        ("snapkv", {"kernel": 4}, "must be odd"),
        ("snapkv", {"pool": "min"}, "max or avg"),
        ("snapkv", {"group": "mean"}, "sum or max"),
        ("snapkv", {"alpha": 1.2}, r"\[0, 1\]"),
        ("snapkv", {"ada": True, "recompress": 8}, "without ada"),
        ("pyramidkv", {"beta": 0}, "pyramidkv.beta=0"),
        ("pyramidkv", {"kernel": 2}, "pyramidkv.kernel=2"),
        ("pyramidkv", {"budget": 0}, "pyramidkv.budget=0"),
        ("h2o", {"budget": 2}, "h2o.budget=2"),
        ("tova", {"budget": True}, "tova.budget=True"),
    ],
)
def test_a_knob_that_cannot_work_is_refused(name, knobs, said):
    with pytest.raises(MacbenchError, match=said):
        create(name, knobs)
