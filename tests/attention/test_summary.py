"""The algebra of attention summaries, against sums of exponentials written out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from macbench.attention.summary import merge, remove, select

sizes = st.integers(0, 6)
seeds = st.integers(0, 999)
spreads = st.sampled_from([0.1, 3.0, 200.0])  # logits that overflow a plain exp, too


def keys(seed, n, spread):
    draw = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(n, generator=draw, dtype=torch.float64)
    return logits, torch.randn(n, 3, generator=draw, dtype=torch.float64)


def summary(logits, values):
    """One key after the other, in the log domain."""
    if not len(logits):
        return torch.zeros(3, dtype=torch.float64), torch.tensor(-math.inf, dtype=torch.float64)
    lse = logits.logsumexp(0)
    return ((logits - lse).exp()[:, None] * values).sum(0), lse


def close(a, b, atol=1e-9):
    assert_close(a[0], b[0], rtol=0, atol=atol)
    assert_close(a[1], b[1], rtol=1e-12, atol=atol)


@given(seeds, sizes, sizes, sizes, spreads)
def test_merge_is_union_and_so_associative_and_commutative(seed, a, b, c, spread):
    logits, values = keys(seed, a + b + c, spread)
    x, y, z = (
        summary(logits[i], values[i])
        for i in (slice(0, a), slice(a, a + b), slice(a + b, a + b + c))
    )
    whole = summary(logits, values)
    close(merge(merge(x, y), z), whole)
    close(merge(x, merge(y, z)), whole)
    close(merge(y, x), merge(x, y))


@given(seeds, st.integers(1, 6), spreads)
def test_the_empty_summary_changes_nothing(seed, n, spread):
    some, none = summary(*keys(seed, n, spread)), summary(*keys(seed, 0, spread))
    close(merge(some, none), some, 0)
    close(merge(none, some), some, 0)
    out, lse = merge(none, none)
    assert lse == -math.inf and (out == 0).all()
    close(remove(some, none), some, 0)
    out, lse = remove(none, none)
    assert lse == -math.inf and (out == 0).all()


@given(seeds, st.integers(1, 6), st.integers(1, 6))
def test_remove_inverts_merge(seed, a, b):
    logits, values = keys(seed, a + b, 1.0)
    x, y = summary(logits[:a], values[:a]), summary(logits[a:], values[a:])
    close(remove(merge(x, y), y), x)
    close(remove(merge(x, y), x), y)


def test_removing_everything_leaves_the_empty_summary():
    whole = summary(*keys(0, 5, 1.0))
    out, lse = remove(whole, whole)
    assert lse == -math.inf and (out == 0).all()


def test_by_hand():
    """(o=2, mass 3) with (o=6, mass 1) is (o=3, mass 4)."""
    a = torch.tensor([[2.0]]), torch.tensor([math.log(3)])
    b = torch.tensor([[6.0]]), torch.tensor([0.0])
    out, lse = merge(a, b)
    assert out.item() == pytest.approx(3) and lse.item() == pytest.approx(math.log(4))


def test_masses_that_underflow_and_overflow_in_fp32():
    a = torch.tensor([[1.0]]), torch.tensor([500.0])
    b = torch.tensor([[2.0]]), torch.tensor([-500.0])
    out, lse = merge(a, b)
    assert out.item() == 1 and lse.item() == 500


def test_select_takes_whole_summaries():
    a, b = summary(*keys(1, 4, 1.0)), summary(*keys(2, 4, 1.0))
    both = [torch.stack((x, x)) for x in a], [torch.stack((x, x)) for x in b]
    out, lse = select(torch.tensor([True, False]), tuple(both[0]), tuple(both[1]))
    assert torch.equal(out, torch.stack((a[0], b[0]))) and torch.equal(
        lse, torch.stack((a[1], b[1]))
    )
