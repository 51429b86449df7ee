"""Paged attention against loops over heads and an explicit list of keys, in fp64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from macbench.kernels import paged


def naive(q, k, v, scale):
    """One query [d] over keys, values [N, d]."""
    if not len(k):
        return np.zeros_like(q), -math.inf
    weights = np.exp(scale * (k @ q))
    return weights @ v / weights.sum(), math.log(weights.sum())


class Pool:
    """Random K and V pools, sequences of which own scattered pages, and their tokens in order."""

    def __init__(self, seed, lens, kv_heads, group, d, dtype=torch.float64):
        draw = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

        self.draw, self.group, self.scale = draw, group, 1.3 * d**-0.5
        self.lens = torch.tensor(lens)
        self.pages = -(-max(lens) // 16)
        total = len(lens) * self.pages + 3
        self.k, self.v = (normal(total, kv_heads, 16, d) for _ in range(2))
        order = torch.randperm(total, generator=draw)[: len(lens) * self.pages]
        self.table = order.view(len(lens), self.pages)
        self.shared = self.lens // 16 % (torch.arange(len(lens)) + 2)  # 0 or more pages in place
        self.q = normal(len(lens), kv_heads * group, d)

    def token(self, pool, row, head, j):
        return pool[self.table[row, j // 16], head // self.group, j % 16].double().numpy()

    def expect(self, row, head, positions):
        k, v = (
            np.array([self.token(pool, row, head, j) for j in positions])
            for pool in (self.k, self.v)
        )
        return naive(self.q[row, head].double().numpy(), k, v, self.scale)

    def check(self, result, positions, atol=1e-12):
        """positions(row, head) -> the keys that head must have attended to."""
        out, lse = result
        assert out.shape == self.q.shape and lse.shape == self.q.shape[:2]
        for row, head in np.ndindex(*self.q.shape[:2]):
            want = self.expect(row, head, positions(row, head))
            np.testing.assert_allclose(out[row, head].numpy(), want[0], atol=atol)
            np.testing.assert_allclose(lse[row, head].item(), want[1], atol=atol)

    def range(self, starts, ends):
        """`attend_range` with the first `shared` pages of each row given in place."""
        most = int(self.shared.max())
        lying = [pool[self.table[:, :most]] for pool in (self.k, self.v)]
        for row, pages in enumerate(self.shared.tolist()):
            lying[0][row, pages:], lying[1][row, pages:] = 7.0, 7.0  # not the row's
        table = self.table.clone()
        table[torch.arange(self.pages) < self.shared[:, None]] = 0  # and these are not looked up
        tail = self.pages - int(self.shared.min())
        table = torch.nn.functional.pad(table, (0, most))
        return paged.attend_range(
            self.q, self.k, self.v, table, starts, ends, lying, self.shared, tail, self.scale
        )

    def integers(self, high, *shape):
        return torch.randint(0, high, shape, generator=self.draw)


pools = st.builds(
    Pool,
    seed=st.integers(0, 999),
    lens=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    d=st.sampled_from([2, 8, 16]),
)


@settings(max_examples=25)
@given(pools)
def test_every_head_attends_to_its_own_range(p):
    """Ranges may be empty and may end before they start."""
    shape = p.q.shape[:2]
    starts, ends = ((p.integers(10**6, *shape) % (p.lens + 1)[:, None]) for _ in range(2))
    out = p.range(starts, ends)
    p.check(out, lambda row, head: range(starts[row, head], ends[row, head]))


@settings(max_examples=25)
@given(pools, st.booleans())
def test_pages_are_attended_up_to_the_last_token(p, per_query_head):
    """A list for every KV head or for every query head; only its first `counts` pages count."""
    heads = p.q.shape[1] if per_query_head else p.k.shape[1]
    shape = (len(p.lens), heads)
    listed = torch.rand(*shape, p.pages, generator=p.draw).argsort(-1)
    counts = p.integers(p.pages + 1, *shape)
    out = paged.attend_pages(p.q, p.k, p.v, p.table, listed, counts, p.lens, p.scale)

    def positions(row, head):
        own = head if per_query_head else head // p.group
        chosen = listed[row, own, : counts[row, own]].tolist()
        return [j for page in chosen for j in range(16 * page, 16 * page + 16) if j < p.lens[row]]

    p.check(out, positions)


@settings(max_examples=25)
@given(pools, st.booleans())
def test_tokens_are_attended_wherever_they_lie(p, per_query_head):
    heads = p.q.shape[1] if per_query_head else p.k.shape[1]
    size = int(p.lens.min())
    shape = (len(p.lens), heads)
    listed = torch.rand(*shape, int(p.lens.max()), generator=p.draw)
    beyond = torch.arange(listed.shape[-1]) >= p.lens[:, None, None]
    listed = listed.masked_fill(beyond, 2.0).argsort(-1)[..., :size]
    counts = p.integers(size + 1, *shape)
    out = paged.attend_tokens(p.q, p.k, p.v, p.table, listed, counts, p.scale)

    def positions(row, head):
        own = head if per_query_head else head // p.group
        return listed[row, own, : counts[row, own]].tolist()

    p.check(out, positions)


def flat(seed, n, length, kv_heads, group, d, dtype=torch.float64):
    """Queries [n, Hq, d] and contiguous keys and values [Hkv, length, d]."""
    draw = torch.Generator().manual_seed(seed)
    shapes = (n, kv_heads * group, d), (kv_heads, length, d), (kv_heads, length, d)
    return [torch.randn(*s, generator=draw, dtype=torch.float64).to(dtype) for s in shapes]


def check_rows(result, q, k, v, starts, ends, scale, rows, atol):
    group = q.shape[1] // k.shape[0]
    q, k, v = (x.double().numpy() for x in (q, k, v))
    for i in rows:
        for head in range(q.shape[1]):
            part = slice(int(starts[i]), max(int(ends[i]), int(starts[i])))
            keys, values = k[head // group, part], v[head // group, part]
            want = naive(q[i, head], keys, values, scale)
            np.testing.assert_allclose(result[0][i, head].numpy(), want[0], atol=atol)
            np.testing.assert_allclose(result[1][i, head].item(), want[1], atol=atol)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 999),
    n=st.integers(1, 20),
    length=st.integers(1, 60),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
)
def test_many_queries_of_one_sequence_have_their_own_ranges(seed, n, length, kv_heads, group):
    q, k, v = flat(seed, n, length, kv_heads, group, 8)
    draw = torch.Generator().manual_seed(seed + 1)
    starts, ends = (torch.randint(0, length + 1, (n,), generator=draw) for _ in range(2))
    out = paged.prefix_rows(q, k, v, starts, ends, 0.4)
    check_rows(out, q, k, v, starts, ends, 0.4, range(n), 1e-12)


def test_many_queries_are_taken_in_blocks_without_a_seam():
    """8 heads over 8192 keys: 512 queries to a block, 530 in all."""
    q, k, v = flat(0, 530, 8192, 1, 8, 4, torch.float32)
    ends = torch.arange(8192 - 530, 8192) + 1
    out = paged.prefix_rows(q, k, v, torch.zeros_like(ends), ends, 0.5)
    check_rows(out, q, k, v, 0 * ends, ends, 0.5, (0, 511, 512, 529), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_arithmetic_is_in_fp32_whatever_the_pool_holds(dtype):
    p = Pool(1, [50, 33], 2, 2, 16, dtype)
    ends = p.lens[:, None].expand(2, 4)
    out, lse = p.range(0 * ends, ends)
    assert out.dtype == lse.dtype == torch.float32
    p.check((out, lse), lambda row, head: range(p.lens[row]), atol=2e-6)


@pytest.mark.parametrize("far", [-3000.0, 3000.0])
def test_large_logits_neither_overflow_nor_vanish(far):
    p = Pool(2, [40], 1, 1, 8, torch.float32)
    p.q.fill_(1.0)
    p.k.copy_(p.k + far / (p.scale * 8))
    ends = p.lens[:, None]
    out, lse = p.range(0 * ends, ends)
    assert out.isfinite().all() and (out.abs() > 1e-6).all()
    assert lse.item() == pytest.approx(far, abs=50)
