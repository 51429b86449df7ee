"""StreamingLLM, Quest, oracle top-k and random tokens: the naive ones, and examples by hand."""

from __future__ import annotations

from dataclasses import replace

import naive
import pytest
import torch
from harness import Problem, Tokens, allocate, assert_equals_naive, drive, exact, problem
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from macbench.attention import create
from macbench.attention.pages import bound
from macbench.errors import MacbenchError

shapes = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 99),
        "lengths": st.lists(st.integers(1, 130), min_size=1, max_size=2),
        "steps": st.integers(1, 3),
        "kv_heads": st.integers(1, 2),
        "group": st.integers(1, 3),
        "d": st.sampled_from([4, 8]),
    }
)
SHARES = [1 / 16, 1 / 4, 1 / 2, 3 / 4, 1.0]  # of no rounding


@settings(max_examples=15)
@given(shapes, st.sampled_from(SHARES), st.integers(0, 9))
def test_streaming_llm_equals_the_naive_one(shape, budget, sink):
    case = problem(**shape)
    record = drive(create("streaming_llm", {"budget": budget, "sink": sink}), case)

    def expected(number, data, t):
        kept = t + 1 if budget == 1 else max(int(budget * data.length), sink + 1)
        return naive.streaming(data, t, kept, sink)

    assert_equals_naive(record, case, expected)


@settings(max_examples=15)
@given(shapes, st.sampled_from(SHARES), st.booleans())
def test_oracle_topk_equals_the_naive_one(shape, tokens, shared):
    case = problem(**shape)
    record = drive(create("oracle_topk", {"tokens": tokens, "shared": shared}), case)

    def expected(number, data, t):
        kept = t + 1 if tokens == 1 else max(int(tokens * data.length), 1)
        return naive.oracle_topk(data, t, kept, shared)

    assert_equals_naive(record, case, expected)


def pages_of(budget, length, dense, layers, number):
    """Pages of layer `number`: of all whole numbers of pages, at least 3 a sparse layer and dealt
    out to the first layers in turn, the one that reads nearest to `budget` at the prompt."""
    sparse, held = layers - dense, -(-length // 16)

    def predicted(total):
        read = dense * length + sparse * (held + length - 16 * held) + 16 * total
        return read / (layers * length)

    total = min(range(3 * sparse, 100 * sparse), key=lambda n: abs(predicted(n) - budget))
    return len([page for page in range(total) if page % sparse == number - dense])


@settings(max_examples=20)
@given(
    shapes,
    st.sampled_from([0.3, 0.62, 0.81, 0.93, 1.0]),
    st.booleans(),
    st.sampled_from([0, 1]),
)
def test_quest_equals_the_naive_one(shape, budget, shared, dense):
    case = problem(**shape)
    knobs = {"budget": budget, "shared": shared, "dense_layers": dense}
    record = drive(create("quest", knobs), case)

    def expected(number, data, t):
        if number < dense:
            return naive.full(data, t)
        pages = 100 if budget == 1 else pages_of(budget, data.length, dense, 2, number)
        return naive.quest(data, t, pages, shared)

    assert_equals_naive(record, case, expected)


@pytest.mark.parametrize("shared", [False, True])
def test_quest_keeps_its_bounds_while_pages_fill(shared):
    """40 steps: the newest page of two prompts fills, new pages begin, old ones can be chosen."""
    case = problem(lengths=(90, 64), steps=40, layers=1, d=4)
    record = drive(create("quest", {"budget": 0.6, "shared": shared, "dense_layers": 0}), case)
    assert_equals_naive(
        record,
        case,
        lambda number, data, t: naive.quest(data, t, pages_of(0.6, data.length, 0, 1, 0), shared),
    )


def by_hand(keys, q, page=16, steps=1):
    """A problem of one head from listed keys (a page is filled up by repeating its last key)."""
    k = torch.tensor(
        [row for rows in keys for row in rows + [rows[-1]] * (page - len(rows))],
        dtype=torch.float64,
    )[None, :, None]
    total = k.shape[1]
    queries = torch.tensor(q, dtype=torch.float64).expand(1, total, 1, -1).clone()
    v = torch.arange(total, dtype=torch.float64)[None, :, None, None].expand_as(k).clone()
    shape = problem(layers=1, kv_heads=1, group=1, d=k.shape[-1]).geometry
    return Problem(shape, [Tokens(total - steps, queries, queries, k, v)], steps)


LAST = [[0.0, 0.0]]
FAR = [[-50.0, -50.0]]  # bounded far below, whatever the query below


@pytest.mark.parametrize(
    "q, better",
    [
        ([1.0, 1.0], 1),  # bounds 3 and 4
        ([1.0, -2.0], 1),  # bounds 5 and 6
        ([3.0, -1.0], 0),  # bounds 10 and 8
    ],
)
def test_quest_by_hand(q, better):
    """Pages {(1,-1), (3,0)} and {(2,2), (2,-2)}: only one fits beside two that always win."""
    first, second = [[1.0, -1.0], [3.0, 0.0]], [[2.0, 2.0], [2.0, -2.0]]
    top = [[20 * q[0], 20 * q[1]]]
    case = by_hand([first, second, top, LAST], q)
    case.sequences[0].v = (torch.arange(64) // 16).double()[None, :, None, None].expand(1, -1, 1, 2)
    case.sequences[0].q = case.sequences[0].q * 1e-9  # attention is uniform, choice unchanged
    record = drive(create("quest", {"budget": 0.1, "dense_layers": 0}), case)
    mean = (16 * better + 0 + 16 * 2 + 16 * 3) / 48
    assert record.out[0][0][0, 0, 0].item() == pytest.approx(mean)


def test_quest_is_fooled_by_a_decoy():
    """{(3,-3), (-3,3)} promises 6 to q = (1,1) and holds 0; a page with a true 4 loses to it."""
    decoy, honest = [[3.0, -3.0], [-3.0, 3.0]], [[2.0, 2.0]]
    case = by_hand([decoy, honest, [[9.0, 9.0]], LAST], [1.0, 1.0])
    data = naive.layer(case, 0, 0)
    assert naive.quest(data, 63, 3, False).fresh[0] == {*range(16), *range(32, 64)}
    record = drive(create("quest", {"budget": 0.1, "dense_layers": 0}), case)
    assert_equals_naive(record, case, lambda number, data, t: naive.quest(data, t, 3, False))


def test_quest_always_reads_the_newest_page():
    case = by_hand([[[9.0, 9.0]], [[8.0, 8.0]], [[7.0, 7.0]], [[6.0, 6.0]], FAR], [1.0, 1.0])
    case.sequences[0].v = (torch.arange(80) // 64).double()[None, :, None, None].expand(1, -1, 1, 2)
    case.sequences[0].q = case.sequences[0].q * 1e-9
    record = drive(create("quest", {"budget": 0.1, "dense_layers": 0}), case)
    assert record.out[0][0][0, 0, 0].item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("seed", range(5))
def test_quest_finds_a_strong_needle(seed):
    """One key along the query, 30 long among N(0, 1), d = 128: its page is always chosen."""
    case = problem(seed=seed, lengths=(2048,), steps=1, layers=1, kv_heads=1, group=1, d=128)
    s = case.sequences[0]
    q = s.q[0, 2048, 0]
    s.k[0, 777, 0] = 30 * q / q.norm()
    s.v[0, 777, 0] = 100.0
    record = drive(create("quest", {"budget": 0.125, "dense_layers": 0}), case)
    assert record.counts[0]["kv_tokens"].item() < 0.1 * 2048
    assert_close(record.tensor(), exact(case), rtol=0.02, atol=0.02)


def test_the_quest_bound_holds_and_its_cost_is_a_token_per_page():
    case = problem(lengths=(300,), layers=1)
    method = create("quest", {"budget": 0.5, "dense_layers": 0})
    record = drive(method, case)
    t = 300 + case.steps
    low, high = (x[0, :, :, : -(-t // 16)] for x in (method.bounds.low, method.bounds.high))
    scores = bound(case.sequences[0].q[0, t - 1][None], low, high)[0]
    logits = torch.einsum(
        "hd,thd->ht",
        case.sequences[0].q[0, t - 1],
        case.sequences[0].k[0, :t].repeat_interleave(2, 1),
    )
    for head in range(4):
        for page in range(-(-t // 16)):
            assert scores[head, page] >= logits[head, page * 16 : page * 16 + 16].max() - 1e-12
    held = -(-t // 16)
    assert (record.counts[-1]["meta_bytes"] == held * case.geometry.token_bytes).all()


@pytest.mark.parametrize("dense", [0, 2])
@pytest.mark.parametrize("group", [1, 4, 8])
def test_quest_achieves_the_byte_budget_it_was_asked_for(dense, group):
    """Shared lists: only rounding to pages lies between what was asked and what was read."""
    case = problem(lengths=(1600,), steps=1, layers=4, kv_heads=1, group=group)
    method = create("quest", {"budget": 0.8, "dense_layers": dense, "shared": True})
    record = drive(method, case)
    read = record.counts[0]["kv_tokens"] * case.geometry.token_bytes
    read += record.counts[0]["meta_bytes"]
    achieved = read.sum() / (4 * 1601 * case.geometry.token_bytes)
    assert achieved == pytest.approx(0.8, abs=0.01)


def test_quest_floor_is_its_smallest_budget():
    case = problem(lengths=(1600,), steps=1, layers=4)
    method = create("quest", {"budget": 0.001, "dense_layers": 2, "shared": True})
    record = drive(method, case)
    read = record.counts[0]["kv_tokens"] * case.geometry.token_bytes
    read += record.counts[0]["meta_bytes"]
    achieved = (read.sum() / (4 * 2 * 1601 * case.geometry.token_bytes)).item()
    assert method.floor(case.geometry, 1600) == pytest.approx(achieved, abs=0.01)


def test_identical_query_heads_choose_alike():
    """Then per-head and shared selection coincide and the union is one list."""
    case = problem(lengths=(200,), group=4)
    for s in case.sequences:
        s.q = s.q[:, :, ::4].repeat_interleave(4, 2)
    for name, knobs in (("quest", {"dense_layers": 0, "budget": 0.4}), ("oracle_topk", {})):
        own, shared = (drive(create(name, knobs | {"shared": x}), case) for x in (False, True))
        assert_close(own.tensor(), shared.tensor(), rtol=0, atol=1e-12)
        for a, b in zip(own.counts, shared.counts, strict=True):
            assert torch.equal(a["kv_tokens"], b["kv_tokens"])


def test_streaming_by_hand():
    """S = 10, sink 2, window 3: {0, 1, 7, 8, 9}."""
    case = by_hand([[[0.0, 0.0]] * 10], [1.0, 1.0], page=10)
    method = create("streaming_llm", {"budget": 5 / 9, "sink": 2})
    record = drive(method, case)
    assert record.out[0][0][0, 0, 0].item() == pytest.approx((0 + 1 + 7 + 8 + 9) / 5)
    assert record.counts[0]["kv_tokens"].item() == 5


def test_streaming_does_not_see_the_gap():
    case = problem(lengths=(80, 60), steps=4)
    noisy = [replace(s, k=s.k.clone(), v=s.v.clone()) for s in case.sequences]
    for s in noisy:
        for x in (s.k, s.v):
            x[:, 4 : s.length // 2] = 1e3 * torch.randn_like(x[:, 4 : s.length // 2])
    method = create("streaming_llm", {"budget": 0.25})
    plain = drive(method, case).tensor()
    assert torch.equal(drive(method, replace(case, sequences=noisy)).tensor(), plain)
    assert (plain - exact(case)).abs().max() > 1e-3


def test_streaming_keeps_a_fixed_number_of_tokens():
    case = problem(lengths=(80, 60), steps=10)
    method = create("streaming_llm", {"budget": 0.25})
    for counts in drive(method, case).counts:
        assert (counts["kv_tokens"][:, 0] == 20).all() and (counts["kv_tokens"][:, 1] == 15).all()
    assert method.capacity(0, 500) == 20 and method.capacity(1, 8) == 8


def test_oracle_charges_every_key():
    case = problem(lengths=(100,), steps=1)
    record = drive(create("oracle_topk", {"tokens": 0.2}), case)
    assert (record.counts[0]["kv_tokens"] == (101 + 20) / 2).all()
    assert (record.counts[0]["head_tokens"] == 20).all()


def test_oracle_error_falls_with_its_tokens():
    case = problem(lengths=(150,), steps=8)
    truth = exact(case)
    errors = [
        (drive(create("oracle_topk", {"tokens": n}), case).tensor() - truth).norm()
        for n in (0.05, 0.2, 0.5, 0.9, 1.0)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-10


@pytest.mark.parametrize("method", [{"name": "oracle_topk"}, {"name": "quest", "dense_layers": 0}])
def test_permuting_the_keys_changes_nothing_for_the_oracle_but_does_for_pages(method):
    knobs = dict(method)
    name = knobs.pop("name")
    case = problem(lengths=(128,), steps=1)
    order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    moved = []
    for s in case.sequences:
        k, v = s.k.clone(), s.v.clone()
        k[:, :128], v[:, :128] = s.k[:, order], s.v[:, order]
        moved.append(replace(s, k=k, v=v))
    plain = drive(create(name, knobs), case).tensor()
    shuffled = drive(create(name, knobs), replace(case, sequences=moved)).tensor()
    same = torch.allclose(plain, shuffled, rtol=0, atol=1e-12)
    assert same == (name == "oracle_topk")


def watched(case, **knobs):
    """The sets random reads: v holds one-hot positions, so the output shows which were attended."""
    sequences = []
    for s in case.sequences:
        total = s.k.shape[1]
        eye = torch.eye(total, case.geometry.head_dim, dtype=torch.float64)
        v = eye[None, :, None].expand(case.geometry.layers, -1, case.geometry.kv_heads, -1)
        sequences.append(replace(s, k=torch.zeros_like(s.k), v=v.clone()))
    record = drive(create("random", knobs), replace(case, sequences=sequences))
    return record.tensor() > 0  # [steps, layers, B, Hq, position]


@pytest.fixture(scope="module")
def random_sets():
    case = problem(lengths=(120, 90), steps=40, layers=2, d=164)
    return watched(case, tokens=0.5, sink=4, recent=16)


def test_random_reads_sinks_and_recent_tokens_always(random_sets):
    for at in range(40):
        for slot, length in enumerate((120, 90)):
            read = random_sets[at, :, slot]
            assert read[..., :4].all() and read[..., length + at - 15 : length + at + 1].all()
            assert not read[..., length + at + 1 :].any()
            assert (read.sum(-1) == length // 2).all()


def test_random_reads_every_other_token_equally_often(random_sets):
    """Binomial bound, 5 sigma, on each position that is a candidate in all 40 steps."""
    read = random_sets[:, :, 0, ::2]  # one query head of each group: they share a set
    assert torch.equal(read, random_sets[:, :, 0, 1::2])
    middle = read[..., 4:104].double()
    wanted = torch.stack([torch.tensor((60 - 20) / (121 + at - 20)) for at in range(40)])
    draws = middle.shape[0] * middle.shape[1] * middle.shape[2]
    mean = wanted.mean().item()
    bound = 5 * (mean * (1 - mean) / draws) ** 0.5
    assert (middle.mean((0, 1, 2)) - mean).abs().max() < bound


def test_random_draws_anew_for_every_step_layer_head_and_sample(random_sets):
    middle = random_sets[..., 4:70]
    assert (middle[0] != middle[1]).any(-1).all()
    assert (middle[:, 0] != middle[:, 1]).any(-1).all()
    assert (middle[:, :, :, 0] != middle[:, :, :, 2]).any(-1).all()
    assert (middle[:, :, 0] != middle[:, :, 1]).any(-1).all()


def test_random_draws_the_same_for_the_same_sample_alone():
    case = problem(lengths=(120, 90), steps=3, d=124)
    both = watched(case, tokens=0.5, sink=2, recent=8)
    assert torch.equal(watched(case, tokens=0.5, sink=2, recent=8), both)
    alone = watched(case.only(1), tokens=0.5, sink=2, recent=8)
    assert torch.equal(alone[:, :, 0], both[:, :, 1])
    rekeyed = replace(case, sequences=[replace(s, key=s.key + 7) for s in case.sequences])
    assert not torch.equal(watched(rekeyed, tokens=0.5, sink=2, recent=8), both)


@pytest.mark.parametrize("value", [0, -0.1, 1.5, True, "0.2"])
@pytest.mark.parametrize(
    "name, knob",
    [
        ("quest", "budget"),
        ("streaming_llm", "budget"),
        ("oracle_topk", "tokens"),
        ("random", "tokens"),
    ],
)
def test_a_share_outside_0_to_1_is_refused(name, knob, value):
    with pytest.raises(MacbenchError, match=f"{name}.{knob}"):
        create(name, {knob: value})


def test_resident_bytes_of_page_bounds():
    case = problem(lengths=(40,), steps=8).to(torch.bfloat16)
    # 48 tokens are 3 pages; low and high of d = 8 in bf16; 2 KV heads, 2 layers
    assert allocate(create("quest", {}), case) == 3 * 2 * 8 * 2 * 2 * 2
    for name in ("full", "streaming_llm", "oracle_topk", "random"):
        assert allocate(create(name, {}), case) == 0


def test_random_tokens_without_sinks_and_window_are_at_least_one():
    case = problem(lengths=(20,), steps=2)
    method = create("random", {"tokens": 0.01, "sink": 0, "recent": 0})
    counts = drive(method, case).counts
    assert all((now["head_tokens"] == 1).all() for now in counts)
    assert method.floor(case.geometry, 20) == 1 / 20


@pytest.mark.parametrize(
    "name, knobs, keys", [("quest", {}, 0), ("twilight", {"candidates": 48}, 8 / 2 + 4)]
)
def test_bounds_are_read_only_where_there_is_a_choice_of_pages(name, knobs, keys):
    """Three pages are always read: of 48 tokens and fewer no bounds. 4-bit keys are read of all
    candidates, here of 47, 48, 33 and 34 tokens."""
    case = problem(lengths=(46,), steps=4, group=1)
    counts = drive(create(name, {"dense_layers": 0, **knobs}), case).counts
    candidates, pages = (47, 48, 33, 34), (0, 0, 4, 4)
    for now, tokens, boxes in zip(counts, candidates, pages, strict=True):
        assert (now["meta_bytes"] == boxes * case.geometry.token_bytes + tokens * keys).all()
