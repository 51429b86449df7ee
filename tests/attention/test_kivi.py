"""KIVI against a naive one that quantises number by number, and examples by hand."""

from __future__ import annotations

import naive
import pytest
import torch
from harness import allocate, assert_equals_naive, cached, drive, problem, start
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from macbench.attention import create
from macbench.attention.quantise import Packed, pack, quantise, unpack
from macbench.errors import MacbenchError


def naive_kivi(data, t, bits, group, residual):
    """A step over what is quantised before the token at t comes: t tokens were attended."""
    k, v = data.k.copy(), data.v.copy()
    keys, values = t // residual * residual, max(t - residual, 0)
    for head in range(k.shape[1]):
        for c in range(data.d):
            for at in range(0, keys, group):
                k[at : at + group, head, c] = naive.restored(data.k[at : at + group, head, c], bits)
        for j in range(values):
            for at in range(0, data.d, group):
                v[j, head, at : at + group] = naive.restored(data.v[j, head, at : at + group], bits)
    compressed = naive.Layer(data.q_pre, data.q, k, v, data.length, data.scale, data.itemsize)
    step = naive.full(compressed, t)
    vector = data.d * bits / 8 + data.d / group * 4
    saved = (keys + values) * (data.d * data.itemsize - vector)
    step.meta_bytes = [-saved] * k.shape[1]
    return step


@settings(max_examples=12)
@given(
    st.integers(0, 99),
    st.lists(st.integers(1, 60), min_size=1, max_size=3),
    st.sampled_from([1, 3, 4]),
    st.sampled_from([2, 4, 8]),
    st.sampled_from([(4, 4), (4, 12), (2, 16), (8, 8)]),
)
def test_kivi_equals_the_naive_one(seed, lengths, group, bits, blocks):
    """Over 2 residuals and more: keys flush, values follow a token at a time."""
    case = problem(seed, lengths, steps=5, layers=1, kv_heads=2, group=group)
    knobs = {"bits": bits, "group_size": blocks[0], "residual": blocks[1]}
    record = drive(create("kivi", knobs), case)
    assert_equals_naive(record, case, lambda number, data, t: naive_kivi(data, t, bits, *blocks))


def test_kivi_flushes_while_it_decodes():
    """3 residuals of decoding from a prompt that is shorter than one."""
    case = problem(lengths=(3,), steps=26, layers=1)
    record = drive(create("kivi", {"bits": 2, "group_size": 4, "residual": 8}), case)
    assert_equals_naive(record, case, lambda number, data, t: naive_kivi(data, t, 2, 4, 8))


@pytest.mark.parametrize("n, keys, values", [(256, 256, 128), (257, 256, 129), (127, 0, 0)])
def test_what_is_quantised_after_the_prefill(n, keys, values):
    """N = 256, residual 128: no exact keys are left, and 128 exact values."""
    case = problem(lengths=(n,), steps=1, layers=1, kv_heads=1)
    method = create("kivi", {"group_size": 8})
    allocate(method, case)
    start(method, case, cached(case))
    for packed, count in ((method.keys, keys), (method.values, values)):
        done = packed.codes[0, 0, 0].any(-1)
        assert done[:count].all() and not done[count:].any()
    assert method.capacity(0, n) == (n - keys + n - values) / 2


def test_a_group_by_hand():
    """{0, 3, 1.4, 1.6} in 2 bits: scale 1, codes {0, 3, 1, 2}."""
    codes, scale, low = quantise(torch.tensor([[0.0, 3.0, 1.4, 1.6]]), 2, (1, 4))
    assert unpack(codes, 2).tolist() == [[0, 3, 1, 2]]
    assert codes.tolist() == [[0 + 3 * 4 + 1 * 16 + 2 * 64]]
    assert (scale.item(), low.item()) == (1.0, 0.0)


@settings(max_examples=30)
@given(st.integers(0, 999), st.sampled_from([2, 4, 8]), st.sampled_from([(1, 4), (4, 1), (2, 8)]))
def test_an_error_is_at_most_half_a_scale_and_a_grid_is_exact(seed, bits, tile):
    draw = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(1, 2, 8, 8, generator=draw, dtype=torch.float64)
    geometry = problem(layers=1, kv_heads=2).geometry
    packed = Packed.zeros(geometry, 1, 8, 8, bits, tile)
    packed.start(0, 0, x[0])
    scale = packed.scale[0].double().repeat_interleave(tile[0], 2).repeat_interleave(tile[1], 3)
    back = packed.read(0, 0, 8)
    assert ((back - x).abs() <= scale / 2 + 2e-3 * scale + 1e-3 * x.abs().max()).all()
    packed.start(0, 0, back[0])
    assert_close(packed.read(0, 0, 8), back, rtol=0, atol=2e-2 * scale.max().item())
    grid = torch.randint(2**bits, (2, 8, 8), generator=draw).double() / 4 - 1
    grid[:, :: tile[0], :: tile[1]] = -1  # a group's minimum …
    if tile != (1, 1):
        last = (slice(None), slice(tile[0] - 1, None, tile[0]), slice(tile[1] - 1, None, tile[1]))
        grid[last] = (2**bits - 1) / 4 - 1  # … and maximum
    packed.start(0, 0, grid)
    assert torch.equal(packed.read(0, 0, 8)[0], grid)


def test_a_constant_group_reads_back_as_it_is():
    geometry = problem(layers=1, kv_heads=2).geometry
    packed = Packed.zeros(geometry, 1, 4, 8, 2, (4, 1))
    packed.start(0, 0, torch.full((2, 4, 8), -2.5, dtype=torch.float64))
    assert (packed.read(0, 0, 4) == -2.5).all()


@given(st.sampled_from([2, 4, 8]), st.integers(0, 99))
def test_packing_loses_nothing(bits, seed):
    codes = torch.randint(
        2**bits, (3, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    assert torch.equal(unpack(pack(codes, bits), bits), codes)
    assert pack(codes, bits).shape == (3, bits)


def test_gathered_tokens_are_those_that_are_read():
    case = problem(lengths=(40, 24), steps=1, layers=1)
    method = create("kivi", {"bits": 4, "group_size": 4, "residual": 8})
    allocate(method, case)
    start(method, case, cached(case))
    tokens = torch.tensor([[[3, 17, 9]] * 2, [[0, 1, 8]] * 2])
    for packed in (method.keys, method.values):
        whole = packed.read(0, 0, 24)
        wanted = whole.gather(2, tokens[..., None].expand(-1, -1, -1, 8))
        assert torch.equal(packed.gather(0, tokens), wanted)


@pytest.mark.parametrize(
    "bits, group, share", [(2, 32, 0.1875), (2, 64, 0.15625), (4, 32, 0.3125), (4, 64, 0.28125)]
)
def test_bytes_of_a_long_cache(bits, group, share):
    """d = 128 in bf16: what the residual adds vanishes with the length."""
    case = problem(lengths=(2048,), steps=1, layers=1, kv_heads=1, group=1, d=128)
    case = case.to(torch.bfloat16)
    method = create("kivi", {"bits": bits, "group_size": group, "residual": 128})
    counts = drive(method, case).counts[0]
    token = case.geometry.token_bytes
    read = counts["kv_tokens"].item() * token + counts["meta_bytes"].item()
    exact_tokens = (1 + 129) / 2  # a key, and 129 values
    assert read == (2049 - exact_tokens) * share * token + exact_tokens * token
    held = allocate(method, case)
    assert held == 2176 * share * token


@pytest.mark.parametrize(
    "knobs, said",
    [
        ({"bits": 3}, "kivi.bits=3 must be one of 2, 4, 8"),
        ({"residual": 100}, "kivi.residual=100 must be a multiple"),
        ({"group_size": 0}, "kivi.residual=128 must be a multiple"),
        ({"group_size": 32}, "must divide the head's 8 channels"),
    ],
)
def test_what_cannot_work_is_refused(knobs, said):
    with pytest.raises(MacbenchError, match=said):
        create("kivi", knobs).check(problem().geometry, 100)
