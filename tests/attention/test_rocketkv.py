"""RocketKV against a naive one, the sizes that its paper's budgets imply, and examples by hand."""

from __future__ import annotations

import math

import naive
import numpy as np
import pytest
import torch
from harness import allocate, assert_equals_naive, cached, drive, exact, problem, start
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from macbench.attention import create
from macbench.attention.rocketkv import Plan, plan
from macbench.attention.select import unroll
from macbench.errors import MacbenchError


def stage_one(data, head, kept, window, kernel):
    """Positions of the prompt that a KV head keeps."""
    n, w = data.length, min(window, data.length)
    received = np.zeros(n)
    for query in range(head * data.group, (head + 1) * data.group):
        for t in range(n - w, n):
            weights = np.exp([data.logit(t, query, j) for j in range(t + 1)])
            received[: t + 1] += weights / weights.sum()
    scores = received[: n - w]
    reach = kernel // 2
    smooth = [max(scores[max(j - reach, 0) : j + reach + 1]) for j in range(n - w)]
    order = sorted(range(n - w), key=lambda j: (-smooth[j], j))
    return sorted(order[: kept - w]) + list(range(n - w, n))


def stage_two(data, t, head, tokens, p):
    """The positions, of those listed, that the queries of a group at t attend to."""
    q = data.q[t, head * data.group : (head + 1) * data.group]
    channels = sorted(range(data.d), key=lambda c: -np.abs(q[:, c]).mean())[: p.channels]
    chunks = [tokens[at : at + p.chunk] for at in range(0, len(tokens), p.chunk)]
    mean = np.zeros(len(tokens))
    for one in q:
        logits = []
        for chunk in chunks:
            keys, score = data.k[chunk, head], 0.0
            for c in channels:
                positive = q[:, c].sum() > 0
                score += one[c] * (keys[:, c].max() if positive else keys[:, c].min())
            logits += [score] * len(chunk)
        share = np.abs(one[channels]).sum() / np.abs(one).sum()
        weights = np.exp(np.array(logits) / math.sqrt(data.d * share))
        mean += weights / weights.sum() / data.group
    order = sorted(range(len(tokens)), key=lambda i: (-mean[i], i))
    return {tokens[i] for i in order[: p.tokens]}


def naive_rocketkv(data, t, sizes, window, kernel):
    lists = []
    for head in range(data.k.shape[1]):
        if sizes.kept >= data.length:
            kept = list(range(data.length))
        else:
            kept = stage_one(data, head, sizes.kept, window, kernel)
        lists.append([*kept, *range(data.length, t + 1)])
    chosen = [
        stage_two(data, t, h // data.group, lists[h // data.group], sizes)
        for h in range(data.q.shape[1])
    ]
    step = naive.selected(data, t, chosen)
    bounds = math.ceil(len(lists[0]) / sizes.chunk) * sizes.channels * data.itemsize
    step.meta_bytes = [bounds] * len(lists)
    return step


def sizes_of(case, slot, budget, window):
    """What the formulas of the docstring give, in their order."""
    n, new, d = case.sequences[slot].length, case.steps, case.geometry.head_dim
    p = plan(max(int(budget * n), 16), n + new, new, d)
    return Plan(min(max(p.kept, window), n), p.tokens, p.chunk, p.channels)


def assert_equals(case, budget, window, kernel):
    knobs = {"budget": budget, "window": window, "kernel": kernel}
    record = drive(create("rocketkv", knobs), case)
    for slot in range(len(case.sequences)):
        sizes = sizes_of(case, slot, budget, window)
        only = drive(create("rocketkv", knobs), case.only(slot))
        assert_close(only.tensor()[:, :, 0], record.tensor()[:, :, slot], rtol=0, atol=1e-12)
        assert_equals_naive(
            only,
            case.only(slot),
            lambda number, data, t, sizes=sizes: naive_rocketkv(data, t, sizes, window, kernel),
        )


@settings(max_examples=20)
@given(
    st.integers(0, 99),
    st.lists(st.integers(1, 110), min_size=1, max_size=2),
    st.integers(1, 4),
    st.sampled_from([1, 3, 4]),
    st.sampled_from([0.1, 0.3, 0.6, 0.9]),
    st.sampled_from([(1, 1), (3, 3), (4, 7)]),
)
def test_rocketkv_equals_the_naive_one(seed, lengths, steps, group, budget, eyes):
    assert_equals(problem(seed, lengths, steps, layers=1, group=group), budget, *eyes)


def test_chunks_fill_and_begin_while_it_decodes():
    """Every chunk size: 24 steps from prompts that are mostly evicted."""
    case = problem(lengths=(120, 97), steps=24, layers=1, d=4)
    assert {sizes_of(case, slot, 0.2, 3).chunk for slot in (0, 1)} == {2}
    assert_equals(case, 0.2, 3, 3)


def test_a_prompt_keeps_only_the_share_that_stage_one_gives_it():
    case = problem(lengths=(600,), steps=2, layers=2)
    method = create("rocketkv", {"budget": 0.1, "window": 8, "kernel": 7})
    allocate(method, case)
    start(method, case, cached(case))
    ratio = 602 / 60
    wanted = int(602 / ratio ** (0.2 + 0.06 * math.log2(ratio))) - 2
    assert method.plans[0].kept == wanted
    assert method.capacity(0, 602) == wanted + 2
    for layer in range(2):
        for head in range(2):
            kept = method.kept[layer, 0, head, :wanted].tolist()
            assert kept == stage_one(naive.layer(case, 0, layer), head, wanted, 8, 7)


@pytest.mark.parametrize(
    "tokens, kept, chunk, channels, chosen",
    [
        (1310, 8317, 3, 60, 660),
        (6553, 33105, 3, 76, 3276),
        (13107, 52262, 2, 64, 6574),
        (26214, 75916, 2, 88, 13165),
    ],
)
def test_sizes_at_128k(tokens, kept, chunk, channels, chosen):
    """1, 5, 10 and 20 % of 131 072 tokens, 128 of them generated, d = 128; bounds take T / 2
    tokens' worth or a little less, such as 2773 chunks x 60 channels x 2 bytes, 650 tokens; the
    others are chosen tokens."""
    p = plan(tokens, 131072, 128, 128)
    assert p == Plan(kept - 128, chosen, chunk, channels)
    read = math.ceil(kept / chunk) * channels * 2 + chosen * 512
    assert read == pytest.approx(tokens * 512, abs=512)


@settings(max_examples=300)
@given(
    st.integers(64, 200_000),
    st.floats(0.005, 0.999),
    st.integers(1, 20_000),
    st.sampled_from([64, 128]),
)
def test_the_sizes_read_what_was_asked_once_the_room_is_filled(length, share, new, d):
    """To a token; at the prompt less, by the bounds of the answer's room. Above d^2 times T tokens
    not even one channel of the bounds fits in half of it."""
    tokens = max(int(share * length), 16)
    p = plan(tokens, length + new, new, d)

    def read(held):
        return math.ceil(held / p.chunk) * p.channels / (2 * d) + p.tokens

    capacity = p.kept + new
    assert p.tokens >= tokens // 2
    if capacity < d * d * tokens:
        assert tokens - 1 < read(capacity) < tokens + 1
        room = (new / p.chunk + 1) * p.channels / (2 * d)
        assert tokens - 1 - room < read(p.kept) < tokens + 1


def test_the_smallest_sizes():
    """T = 16 where the answer is long: room for it and as many prompt tokens, or all there are."""
    assert plan(16, 131072, 4096, 128).kept == 4096
    assert plan(16, 600, 500, 128).kept == 100
    assert plan(16, 10**8, 5 * 10**7, 4).channels == 1


def test_a_sign_is_the_groups_by_hand():
    """q = (2, 1), (-1, 1) over a chunk {(1, 0), (-2, 1)}: scores 3 and 0, not the true maxima 2
    and 3, because the sum of the queries decides for both which bound is taken."""
    case = problem(lengths=(2,), steps=2, layers=1, kv_heads=1, group=2, d=2)
    method = create("rocketkv", {"budget": 0.5})
    allocate(method, case)
    keys = torch.tensor([[[1.0, 0.0], [-2.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]).double()
    method.plans = [Plan(4, 4, 2, 2)]
    method.bounds = torch.cat((keys.amax(1), keys.amin(1)), -1).T[None, None, None]
    q = torch.tensor([[[2.0, 1.0], [-1.0, 1.0]]]).double()
    two = torch.tensor([[2, 2]])
    scores = method._scores(0, q, two, torch.tensor([2]))
    high = math.exp(3 / math.sqrt(2))
    first = (high / (2 * high + 2) + 1 / 4) / 2
    assert_close(
        scores, torch.tensor([[[first, 0.5 - first]]], dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_runs_laid_end_to_end():
    starts, lengths = torch.tensor([[8, 0, 20]]), torch.tensor([[2, 0, 3]])
    at = torch.arange(7)[None]
    assert unroll(starts, lengths, at).tolist() == [[8, 9, 20, 21, 22, 22, 22]]


@pytest.mark.parametrize("group", [1, 4, 8])
@pytest.mark.parametrize("budget", [0.05, 0.2, 0.5])
def test_rocketkv_achieves_the_byte_budget_it_was_asked_for(budget, group):
    case = problem(lengths=(1600,), steps=1, layers=1, kv_heads=1, group=group, d=64)
    counts = drive(create("rocketkv", {"budget": budget}), case).counts[0]
    read = counts["kv_tokens"] + counts["meta_bytes"] / case.geometry.token_bytes
    assert read.item() / 1601 == pytest.approx(budget, rel=0.02)


def test_dense_layers_count_in_the_budget():
    case = problem(lengths=(1600,), steps=1, layers=4, kv_heads=1, d=64)
    method = create("rocketkv", {"budget": 0.6, "dense_layers": 2})
    counts = drive(method, case).counts[0]
    assert (counts["kv_tokens"][:2] == 1601).all() and (counts["meta_bytes"][:2] == 0).all()
    read = counts["kv_tokens"] + counts["meta_bytes"] / case.geometry.token_bytes
    assert read.mean().item() / 1601 == pytest.approx(0.6, rel=0.02)
    assert method.floor(case.geometry, 1600) == pytest.approx(0.505)
    assert create("rocketkv", {}).floor(case.geometry, 1600) == pytest.approx(0.01)


@pytest.mark.parametrize("seed", range(5))
def test_rocketkv_finds_a_strong_needle(seed):
    """30 long among N(0, 1), d = 128, and asked for in the window, else stage 1 evicts it."""
    case = problem(seed=seed, lengths=(2048,), steps=1, layers=1, kv_heads=1, group=1, d=128)
    s = case.sequences[0]
    q = s.q[0, 2048, 0]
    s.q[0, 2040:2048] = q
    s.k[0, 777, 0] = 30 * q / q.norm()
    s.v[0, 777, 0] = 100.0
    record = drive(create("rocketkv", {"budget": 0.05}), case)
    assert record.counts[0]["kv_tokens"].item() < 0.03 * 2048
    assert_close(record.tensor(), exact(case), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("knobs", [{"window": 0}, {"kernel": 4}, {"kernel": 0}])
def test_what_cannot_work_is_refused(knobs):
    with pytest.raises(MacbenchError, match=r"rocketkv.window=.*rocketkv.kernel="):
        create("rocketkv", knobs)
