"""Double Sparsity against a naive one, and against the oracle that it is with all channels."""

from __future__ import annotations

import naive
import numpy as np
import pytest
import torch
from harness import allocate, assert_equals_naive, drive, exact, problem
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from macbench.attention import create
from macbench.errors import MacbenchError


def naive_double_sparsity(data, t, kept, r, bits, shared):
    heads, group = data.q.shape[1], data.group
    mass = []
    for head in range(heads):
        first = head // group * group
        k = data.k[: data.length, head // group]
        weight = np.zeros(data.d)
        for other in range(first, first + group):
            for c in range(data.d):
                pairs = np.abs(np.outer(data.q[: data.length, other, c][-128:], k[:, c]))
                weight[c] += pairs.mean()
        channels = sorted(range(data.d), key=lambda c: -weight[c])[:r]
        logits = []
        for j in range(t + 1):
            label = data.k[j, head // group, channels]
            label = label if bits == 16 else naive.restored(label, bits)
            logits.append(data.scale * float(data.q[t, head, channels] @ label))
        weights = np.exp(logits)
        mass.append(weights / weights.sum())
    if shared:
        for g in range(0, heads, group):
            mass[g : g + group] = [sum(mass[g : g + group]) / group] * group
    chosen = [set(sorted(range(t + 1), key=lambda j: -m[j])[:kept]) for m in mass]
    step = naive.selected(data, t, chosen)
    label = r * data.itemsize if bits == 16 else r * bits / 8 + 4
    step.meta_bytes = [(t + 1) * label] * (heads // group)
    return step


@settings(max_examples=20)
@given(
    st.integers(0, 99),
    st.lists(st.integers(1, 140), min_size=1, max_size=2),
    st.integers(1, 3),
    st.sampled_from([1, 3, 4]),
    st.sampled_from([0.2, 0.5, 1.0]),
    st.sampled_from([(1, 4), (2, 2), (2, 8), (4, 16)]),
    st.booleans(),
)
def test_double_sparsity_equals_the_naive_one(seed, lengths, steps, group, tokens, label, shared):
    case = problem(seed, lengths, steps, layers=1, group=group, d=16)
    factor, bits = label
    size = 16 // factor * 8 if bits == 16 else 16 // factor * bits / 8 + 4
    budget = 1.0 if tokens == 1 else tokens + size / 256
    knobs = {"budget": budget, "group_factor": factor, "bits": bits}
    record = drive(create("double_sparsity", {"dense_layers": 0, "shared": shared, **knobs}), case)

    def expected(number, data, t):
        kept = t + 1 if budget == 1 else max(round(tokens * data.length), 16)
        return naive_double_sparsity(data, t, kept, 16 // factor, bits, shared)

    assert_equals_naive(record, case, expected)


@pytest.mark.parametrize("shared", [False, True])
def test_all_channels_unquantised_are_the_oracle(shared):
    case = problem(lengths=(100,), steps=4)
    knobs = {"group_factor": 1, "bits": 16, "dense_layers": 0, "budget": 0.7, "shared": shared}
    ours = drive(create("double_sparsity", knobs), case)
    oracle = drive(create("oracle_topk", {"tokens": 0.2, "shared": shared}), case)
    assert_close(ours.tensor(), oracle.tensor(), rtol=0, atol=1e-12)
    for a, b in zip(ours.counts, oracle.counts, strict=True):
        assert torch.equal(a["head_tokens"], b["head_tokens"])


@pytest.mark.parametrize("dense", [0, 2])
@pytest.mark.parametrize("group", [1, 4, 8])
def test_shared_lists_achieve_the_byte_budget_they_were_asked_for(dense, group):
    case = problem(lengths=(1600,), steps=1, layers=4, kv_heads=1, group=group, d=16)
    knobs = {"budget": 0.8, "dense_layers": dense, "shared": True}
    counts = drive(create("double_sparsity", knobs), case).counts[0]
    read = counts["kv_tokens"] + counts["meta_bytes"] / case.geometry.token_bytes
    assert read.mean().item() / 1601 == pytest.approx(0.8, abs=0.005)


@pytest.mark.parametrize(
    "knobs, share",
    [
        ({"group_factor": 8, "bits": 16}, 0.0625),  # r = 16
        ({"group_factor": 8, "bits": 4}, 0.0234),
        ({"group_factor": 2, "bits": 2}, 0.0390),  # r = 64
    ],
)
def test_what_labels_take(knobs, share):
    """d = 128 in bf16, no dense layer: labels are the floor."""
    case = problem(lengths=(64,), steps=1, layers=1, kv_heads=1, d=128).to(torch.bfloat16)
    method = create("double_sparsity", {"dense_layers": 0, **knobs})
    assert method.floor(case.geometry, 10**9) == pytest.approx(share, abs=1e-4)
    channels = 8 * 128 // method.group_factor
    assert allocate(method, case) - channels == pytest.approx(share * 65 * 512, rel=2e-3)
    dense = create("double_sparsity", {"dense_layers": 2, **knobs})
    geometry = problem(layers=32, d=128).to(torch.bfloat16).geometry
    assert dense.floor(geometry, 10**9) == pytest.approx(1 / 16 + 15 / 16 * share, abs=1e-4)


def test_the_channels_are_those_of_the_largest_products():
    """Large keys alone or large queries alone do not make a channel matter."""
    case = problem(lengths=(60,), steps=1, layers=1, kv_heads=1, group=2)
    s = case.sequences[0]
    s.q[..., 0], s.k[..., 0] = 50.0, 0.001
    s.q[..., 1], s.k[..., 1] = 0.001, 50.0
    s.q[..., 2:4], s.k[..., 2:4] = 10.0, 10.0
    method = create("double_sparsity", {"group_factor": 4, "bits": 16, "dense_layers": 0})
    drive(method, case)
    assert sorted(method.channels[0, 0, 0].tolist()) == [2, 3]


@pytest.mark.parametrize("strength", [10, 30])
def test_a_needle_is_found_with_all_channels(strength):
    case = problem(lengths=(2048,), steps=1, layers=1, kv_heads=1, group=1, d=128)
    s = case.sequences[0]
    q = s.q[0, 2048, 0] = 11.3 * torch.nn.functional.normalize(s.q[0, 2048, 0], dim=0)
    s.k[0, 777, 0] = strength * q / q.norm()
    s.v[0] *= 0
    s.v[0, 777, 0] = 1.0
    knobs = {"group_factor": 1, "bits": 4, "dense_layers": 0, "budget": 0.05}
    record = drive(create("double_sparsity", knobs), case)
    assert record.counts[0]["kv_tokens"].item() < 0.05 * 2048
    assert (record.tensor() >= exact(case)).all() and (record.tensor() > 0.8).all()


@pytest.mark.parametrize(
    "knobs, said",
    [
        ({"bits": 3}, "double_sparsity.bits=3 must be one of 2, 4, 8, 16"),
        ({"group_factor": 3}, "double_sparsity.group_factor=3 must divide"),
        ({"group_factor": 4}, "2-bit codes fill whole bytes"),
    ],
)
def test_what_cannot_work_is_refused(knobs, said):
    with pytest.raises(MacbenchError, match=said):
        create("double_sparsity", knobs).check(problem().geometry, 100)
