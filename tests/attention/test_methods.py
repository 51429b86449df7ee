"""What must hold for every method. A new method needs one row in ROWS."""

from __future__ import annotations

import naive
import pytest
import torch
from harness import allocate, cached, drive, exact, problem, start, step
from torch.testing import assert_close

from macbench.attention import METHODS, create
from macbench.errors import MacbenchError

# name: (knobs of runs that save something, knobs of runs that must equal full,
#        fixed knobs and, last, one with values in rising order of cost)
ROWS = {
    "double_sparsity": (
        [
            {"budget": 0.3, "dense_layers": 0, "group_factor": 2, "bits": 4},
            {"budget": 0.6, "dense_layers": 0, "group_factor": 2, "bits": 16, "shared": True},
            {"budget": 0.65, "dense_layers": 1, "group_factor": 1, "bits": 2},
        ],
        [{"budget": 1.0}, {"budget": 1.0, "dense_layers": 0, "bits": 16, "shared": True}],
        {"dense_layers": 0, "budget": [0.1, 0.6, 0.8, 1.0]},
    ),
    "full": ([], [{"passes": 1}, {"passes": 2}], {}),
    "kivi": (
        [
            {"bits": 4, "group_size": 4, "residual": 8},
            {"bits": 2, "group_size": 8, "residual": 16},
        ],
        [{"group_size": 4, "residual": 96}],
        {"group_size": 4, "residual": 8, "bits": [2, 4, 8]},
    ),
    "h2o": (
        # at which every dtype keeps the same number of tokens, though scores weigh less in some
        [{"budget": 0.355}, {"budget": 0.355, "normalise": True}],
        [{"budget": 1.0}],
        {"budget": [0.1, 0.3, 0.6, 1.0]},
    ),
    "mac": (
        [
            {"tau": 0.45, "K": 16, "r": 6},
            {"tau": 0.45, "K": 16, "r": 6, "sink": 3, "max_chain": 2, "refresh_mixed_groups": True},
            {"tau": 0.45, "K": 16, "r": 6, "match": "random_lag"},
            {"tau": 0.45, "K": 16, "r": 6, "match": "random"},
            {"r": 6, "match": "previous", "refresh_every": 3},
        ],
        [{"tau": 1.0, "K": 16, "r": 6}, {"tau": 1.0, "amend": False}],
        {"K": 16, "r": 6, "tau": [0.0, 0.3, 0.5, 0.7, 1.0]},
    ),
    "multipole": (
        [
            {"budget": b, "replacement": r, "per_cluster": 4, "interval": 8, "sink": 2}
            for b, r in ((0.4, True), (0.9, True), (0.6, False))
        ],
        [{"budget": 1.0, "per_cluster": 4, "interval": 8, "sink": 2}, {"budget": 1.0}],
        {"per_cluster": 8, "interval": 8, "sink": 2, "budget": [0.1, 0.3, 0.6, 1.0]},
    ),
    "oracle_topk": (
        [{"tokens": 0.3}, {"tokens": 0.3, "shared": False}],
        [{"tokens": 1.0}, {"tokens": 1.0, "shared": False}],
        {"tokens": [0.1, 0.3, 0.6, 1.0]},
    ),
    "pyramidkv": (
        [{"budget": 0.4, "window": 4}, {"budget": 0.4, "window": 4, "ada": True}],
        [{"budget": 1.0}, {"budget": 1.0, "ada": True}],
        {"budget": [0.1, 0.3, 0.6, 1.0]},
    ),
    "quest": (
        [{"budget": 0.2, "dense_layers": d, "shared": s} for d in (0, 1) for s in (False, True)],
        [{"budget": 1.0}, {"budget": 1.0, "dense_layers": 0, "shared": True}],
        {"dense_layers": 0, "budget": [0.1, 0.6, 0.8, 1.0]},
    ),
    "random": (
        [{"tokens": 0.4, "sink": 2, "recent": 8}],
        [{"tokens": 1.0}],
        {"tokens": [0.6, 0.7, 0.9, 1.0]},
    ),
    "rocketkv": (
        [
            {"budget": 0.6, "window": 4, "kernel": 3},
            {"budget": 0.4, "window": 2, "kernel": 5},
            {"budget": 0.6, "window": 4, "kernel": 3, "dense_layers": 1},
        ],
        [{"budget": 1.0}],
        {"window": 4, "kernel": 3, "budget": [0.1, 0.3, 0.6, 1.0]},
    ),
    "snapkv": (
        [
            {"budget": 0.3, "window": 4},
            {"budget": 0.3, "window": 4, "pool": "avg", "group": "max"},
            {"budget": 0.3, "window": 4, "ada": True},
            {"budget": 0.3, "window": 4, "recompress": 5},
        ],
        [{"budget": 1.0}, {"budget": 1.0, "ada": True}, {"budget": 1.0, "recompress": 4}],
        {"window": 4, "budget": [0.1, 0.3, 0.6, 1.0]},
    ),
    "streaming_llm": ([{"budget": 0.3}], [{"budget": 1.0}], {"budget": [0.1, 0.3, 0.6, 1.0]}),
    "tova": (
        [{"budget": 0.3}, {"budget": 0.3, "per_kv_head": True}],
        [{"budget": 1.0}],
        {"budget": [0.1, 0.3, 0.6, 1.0]},
    ),
    "twilight": (
        [
            {"p": 0.8, "candidates": 32, "dense_layers": 0},
            {"p": 0.8, "candidates": 32, "dense_layers": 1, "shared": True},
            {"p": 0.9, "base": "all", "dense_layers": 0},
            {"p": 0.9, "base": "all", "dense_layers": 0, "shared": True},
        ],
        [
            {"p": 1.0},
            {"p": 1.0, "dense_layers": 0},
            {"p": 1.0, "dense_layers": 0, "base": "all", "shared": True},
        ],
        {"dense_layers": 0, "p": [0.3, 0.6, 0.9, 1.0]},
    ),
}
SAVING = [(name, knobs) for name, row in ROWS.items() for knobs in row[0]]
WHOLE = [(name, knobs) for name, row in ROWS.items() for knobs in row[1]]


def label(value):
    return value if isinstance(value, str) else ",".join(f"{k}={v}" for k, v in value.items())


saving = pytest.mark.parametrize("name, knobs", SAVING, ids=label)
every = pytest.mark.parametrize("name, knobs", SAVING + WHOLE, ids=label)


def same(a, b):
    """Two runs with equal outputs, bit for bit, and equal counts."""
    assert torch.equal(a.tensor(), b.tensor())
    assert_same_counts(a.counts, b.counts)


def assert_same_counts(a, b):
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert_close(one[name], other[name], rtol=0, atol=1e-12, msg=name)


def test_every_method_has_a_row():
    assert set(ROWS) == set(METHODS)


@pytest.mark.parametrize("name, knobs", WHOLE, ids=label)
@pytest.mark.parametrize("lengths", [(1, 2), (15, 16), (17, 70)])
def test_the_whole_budget_equals_full(name, knobs, lengths):
    """Across page borders: 20 tokens are decoded."""
    case = problem(lengths=lengths, steps=20)
    record = drive(create(name, knobs), case)
    assert_close(record.tensor(), exact(case), rtol=0, atol=1e-12)
    lens = [torch.tensor(lengths) + 1 + at for at in range(20)]
    for counts, seen in zip(record.counts, lens, strict=True):
        assert (counts["kv_tokens"] == seen[None, :, None]).all()
        assert (counts["head_tokens"] == seen[None, :, None]).all()


@every
@pytest.mark.parametrize("lengths", [(1, 2), (15, 16), (17, 70)])
def test_costs_are_reported_and_lie_within_the_context(name, knobs, lengths):
    case = problem(lengths=lengths, steps=18)
    record = drive(create(name, knobs), case)
    assert record.tensor().isfinite().all()
    for at, counts in enumerate(record.counts):
        seen = (torch.tensor(lengths) + 1 + at)[None, :, None]
        heads, kv = counts["head_tokens"], counts["kv_tokens"]
        assert heads.shape == (2, 2, 4) and kv.shape == counts["meta_bytes"].shape == (2, 2, 2)
        assert (heads >= 1).all() and (heads <= seen).all()
        assert (kv <= seen).all()
        assert (kv >= heads.unflatten(-1, (2, 2)).amax(-1)).all()  # what a head sees is loaded
        assert (kv * case.geometry.token_bytes + counts["meta_bytes"] > 0).all()
        assert all(value.isfinite().all() for value in counts.values())


@every
def test_rows_are_independent_of_their_neighbours(name, knobs):
    case = problem(lengths=(90, 33, 64), steps=18)
    together = drive(create(name, knobs), case)
    for slot in range(3):
        alone = drive(create(name, knobs), case.only(slot))
        out = together.tensor()[:, :, slot : slot + 1]
        assert_close(alone.tensor(), out, rtol=0, atol=1e-12)
        own = [{n: v[:, slot : slot + 1] for n, v in c.items()} for c in together.counts]
        assert_same_counts(alone.counts, own)


@every
def test_a_run_repeats_bit_for_bit(name, knobs):
    case = problem(steps=8)
    same(drive(create(name, knobs), case), drive(create(name, knobs), case))


@every
def test_nothing_of_an_earlier_sample_is_left(name, knobs):
    """The same object serves block after block."""
    earlier, case = problem(1, lengths=(70, 80), steps=12), problem(2, lengths=(20, 64), steps=12)
    method = create(name, knobs)
    drive(method, earlier)
    for slot in range(2):
        method.end(slot)
    used, new = drive(method, case, allocated=True), drive(create(name, knobs), case)
    assert_close(used.tensor(), new.tensor(), rtol=0, atol=1e-12)
    assert_same_counts(used.counts, new.counts)


@every
def test_cache_memory_that_holds_no_token_is_never_read(name, knobs):
    case = problem(lengths=(40, 21), steps=18)
    plain, record = drive(create(name, knobs), case), None
    method = create(name, knobs)
    allocate(method, case)
    record = start(method, case, cached(case, fill=1e6))
    for at in range(case.steps):
        step(record, case, at)
    same(plain, record)


@every
def test_where_pages_lie_does_not_matter(name, knobs):
    """The pages of the forks at other places of the pool; a prompt's own lie in one run."""
    case = problem(lengths=(70, 21), steps=18)
    plain = drive(create(name, knobs), case)
    method = create(name, knobs)
    allocate(method, case)
    view = cached(case)
    record = start(method, case, view)
    first, draw = view.cache.first_tail, torch.Generator().manual_seed(3)
    tails = torch.randperm(view.cache.pages - first, generator=draw) + first
    place = torch.cat((torch.arange(first), tails))
    for pools in (view.cache.k, view.cache.v):
        for layer, pool in enumerate(pools):
            pools[layer] = pool[place.argsort()].clone()
    view.table = place[view.table]
    for at in range(case.steps):
        step(record, case, at)
    same(plain, record)


@saving
def test_a_method_that_acts_says_so(name, knobs):
    case = problem(lengths=(80, 90), steps=6, noise=0.1)
    record = drive(create(name, knobs), case)
    assert record.method.witness(record.sums())
    assert (record.tensor() - exact(case)).abs().max() > 1e-6


@pytest.mark.parametrize("name, knobs", WHOLE, ids=label)
def test_a_method_that_reads_everything_is_not_taken_for_one_that_acts(name, knobs):
    record = drive(create(name, knobs), problem(lengths=(80, 90)))
    assert record.method.witness(record.sums()) == (name == "full")


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row[2]])
def test_bytes_rise_with_the_knob(name):
    *fixed, (knob, values) = ROWS[name][2].items()
    case = problem(lengths=(180, 160), steps=4, group=1, noise=0.1)
    costs = []
    for value in values:
        sums = drive(create(name, dict(fixed) | {knob: value}), case).sums()
        costs.append(sums["kv_tokens"] * case.geometry.token_bytes + sums["meta_bytes"])
    assert costs == sorted(costs)
    assert costs[0] < 0.9 * costs[-1]


def rms(x):
    return x.square().mean().sqrt().item()


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_costs_no_more_than_it_does_full_attention(name, knobs, dtype):
    """The same method in fp64 on the same rounded data is the truth; its choices must be the same,
    and the error at most twice that of plain attention in the low dtype."""
    rounded = problem(lengths=(60, 33), steps=10, d=16).to(dtype)
    wide = rounded.to(torch.float64)
    truth, record = drive(create(name, knobs), wide), drive(create(name, knobs), rounded)
    for a, b in zip(truth.counts, record.counts, strict=True):
        assert torch.equal(a["head_tokens"], b["head_tokens"])
        assert torch.equal(a["kv_tokens"], b["kv_tokens"])
    error = rms(record.tensor().to(dtype).double() - truth.tensor())
    assert error <= 2 * rms(exact(rounded).double() - exact(wide))


@pytest.mark.parametrize(
    "name, knob",
    [
        *((name, "dense_layers") for name in ("quest", "twilight", "double_sparsity", "rocketkv")),
        *((name, "sink") for name in ("streaming_llm", "random", "multipole", "mac")),
        ("random", "recent"),
    ],
)
def test_numbers_below_zero_are_refused(name, knob):
    with pytest.raises(MacbenchError, match=rf"{name}\.{knob}=-1 must"):
        create(name, {knob: -1})


@pytest.mark.parametrize("name", ["quest", "twilight", "double_sparsity", "rocketkv"])
def test_more_dense_layers_than_there_are_is_refused(name):
    geometry = problem(layers=3).geometry
    create(name, {"dense_layers": 3}).check(geometry, 100)
    with pytest.raises(MacbenchError, match=r"dense_layers=4 but the model has 3 layers; give at"):
        create(name, {"dense_layers": 4}).check(geometry, 100)
    create(name, {}).check(problem(layers=1).geometry, 100)


@pytest.mark.parametrize("name", list(METHODS))
def test_an_option_that_does_not_exist_is_refused_with_the_nearest(name):
    with pytest.raises(MacbenchError, match=f"{name} has no option 'bugdet'"):
        create(name, {"bugdet": 0.2})


def test_a_method_that_does_not_exist_is_refused_with_the_nearest():
    with pytest.raises(MacbenchError, match=r"'streaming_lm'.*'streaming_llm'"):
        create("streaming_lm", {})


def test_the_harness_itself_decodes_what_it_says():
    """`exact` and the cache agree with the naive full attention on one row."""
    case = problem(lengths=(20, 5), steps=3)
    data = naive.layer(case, 1, 1)
    for at in range(3):
        out = torch.stack([torch.tensor(o) for o in naive.full(data, 5 + at).out])
        assert_close(exact(case)[at, 1, 1], out, rtol=0, atol=1e-12)
    assert drive(create("full", {}), case).tensor().shape == (3, 2, 2, 4, 8)
