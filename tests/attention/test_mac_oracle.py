"""MAC against the naive one: outputs, stored rows, decisions and costs over many steps."""

from __future__ import annotations

import math

import naive
import numpy as np
import pytest
import torch
from harness import drive, problem
from hypothesis import example, given, settings
from hypothesis import strategies as st

from macbench.attention import create


def assert_equals_naive(record, given, knobs):
    """Every step of every row, layer and head; then every row the ring still holds."""
    hits = 0
    for slot, sequence in enumerate(given.sequences):
        for number in range(given.geometry.layers):
            tau = knobs["tau"]
            own = knobs | {"tau": tau[number] if isinstance(tau, list) else tau}
            mac = naive.NaiveMac(naive.layer(given, slot, number), **own)
            for at in range(given.steps):
                t = sequence.length + at
                want = mac.step(t)
                got = {k: v[number, slot].numpy() for k, v in record.counts[at].items()}
                where = f"slot {slot} layer {number} t {t}"
                np.testing.assert_array_equal(got["hit"], want.hit, where)
                gaps = [t - p if hit else 0 for hit, p in zip(want.hit, want.p, strict=True)]
                np.testing.assert_array_equal(got["gap"], gaps, where)
                np.testing.assert_allclose(got["distance"], want.distance, atol=1e-6)
                np.testing.assert_array_equal(got["depth"], want.depth, where)
                np.testing.assert_array_equal(got["head_tokens"], want.head_tokens, where)
                np.testing.assert_array_equal(got["kv_tokens"], want.kv_tokens, where)
                np.testing.assert_array_equal(got["meta_bytes"], want.meta_bytes, where)
                whole = np.array(want.hit).reshape(-1, given.geometry.group).all(1)
                np.testing.assert_array_equal(got["group_hit"], whole, where)
                skips = [
                    mac.end(p) / (t + 1) if h else 0 for h, p in zip(want.hit, want.p, strict=True)
                ]
                np.testing.assert_allclose(got["skip"], skips)
                out = record.out[at][number][slot].numpy()
                np.testing.assert_allclose(out, np.array(want.out), atol=1e-10, err_msg=where)
                hits += sum(want.hit)
            assert_ring(record.method, number, slot, mac, sequence.length + given.steps)
    return hits


def assert_ring(method, number, slot, mac, t):
    """The ring holds the last K rows, each at its position modulo K."""
    for head in range(mac.heads):
        for x in range(max(t - method.K, 0), t):
            row, at = mac.rows[head][x], (number, slot, head, x % method.K)
            stored = method.queries[number, slot, head, :, at[-1]].flatten()
            np.testing.assert_array_equal(stored.numpy(), row.query)
            np.testing.assert_allclose(method.outputs[at].numpy(), row.o, atol=1e-10)
            assert method.lse[at].item() == pytest.approx(row.lse, abs=1e-10)
            assert method.chain[at].item() == row.chain


shapes = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 99),
        "lengths": st.lists(st.integers(1, 50), min_size=1, max_size=2),
        "steps": st.integers(1, 12),
        "kv_heads": st.integers(1, 2),
        "group": st.integers(1, 4),
        "d": st.sampled_from([8, 16, 64]),
        "centres": st.integers(1, 4),
        "noise": st.sampled_from([0.05, 0.3]),
    }
)
switches = st.fixed_dictionaries(
    {
        "tau": st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0, [0.2, 0.8]]),
        "K": st.integers(1, 24),
        "r": st.integers(0, 20),
        "amend": st.booleans(),
        "match_on": st.sampled_from(["pre_rope", "post_rope"]),
        "refresh_mixed_groups": st.booleans(),
        "max_chain": st.sampled_from([None, 0, 1, 3]),
        "sink": st.integers(0, 5),
        "min_context": st.sampled_from([0, 25]),
    }
)
ORDINARY = {"seed": 0, "lengths": [40, 23], "steps": 12, "kv_heads": 2, "group": 2, "d": 16,
            "centres": 3, "noise": 0.1}  # fmt: skip
PAPER = {"tau": 0.5, "K": 16, "r": 6, "amend": True, "match_on": "pre_rope", "sink": 0,
         "refresh_mixed_groups": False, "max_chain": None, "min_context": 0}  # fmt: skip


@settings(max_examples=60)
@example(ORDINARY, PAPER)
@example(ORDINARY | {"lengths": [3, 5]}, PAPER)  # t + 1 <= r at first
@given(shapes, switches)
def test_equals_the_naive_mac(shape, knobs):
    case = problem(**shape)
    assert_equals_naive(drive(create("mac", dict(knobs)), case), case, knobs)


@settings(max_examples=12)
@given(shapes, st.integers(0, 8), st.integers(1, 8), st.sampled_from([0, 1, 3]), st.integers(0, 3))
def test_previous_token_reuse_equals_the_naive_one(shape, r, K, every, sink):
    knobs = {"tau": 0.5, "K": K, "r": r, "sink": sink, "match": "previous", "refresh_every": every}
    case = problem(**shape)
    assert_equals_naive(drive(create("mac", dict(knobs)), case), case, knobs)


def test_the_sweep_meets_hits_misses_mixed_groups_and_chains():
    """The oracle test means something only where MAC does something."""
    case = problem(**ORDINARY)
    record = drive(create("mac", dict(PAPER)), case)
    hits = assert_equals_naive(record, case, PAPER)
    counts = {n: torch.stack([c[n] for c in record.counts]) for n in ("hit", "gap", "depth")}
    assert 0.2 < hits / counts["hit"].numel() < 0.9
    grouped = counts["hit"].unflatten(-1, (2, 2)).sum(-1)
    assert {0, 1, 2} == set(grouped.unique().long().tolist())
    assert counts["depth"].max() >= 3
    step = torch.arange(case.steps)[:, None, None, None]
    from_prompt = (counts["gap"] > step) & (counts["hit"] > 0)
    from_decode = (counts["gap"] <= step) & (counts["hit"] > 0)
    assert from_prompt.any() and from_decode.any()


def test_the_ring_wraps_within_the_decode():
    case = problem(seed=3, lengths=(20, 9), steps=30, noise=0.1)
    knobs = PAPER | {"K": 7, "r": 3}
    record = drive(create("mac", dict(knobs)), case)
    hits = assert_equals_naive(record, case, knobs)
    assert hits > 50
    gaps = torch.stack([c["gap"] for c in record.counts])
    assert gaps.max() == 7  # the row that this step overwrites may still be read


def test_radius_is_sqrt_2d_times_1_minus_tau():
    assert create("mac", {"tau": 0.45}).radius(0, 128) == pytest.approx(8.8)
    assert create("mac", {"tau": [0.45, 0.95]}).radius(1, 128) == pytest.approx(0.8)
    assert math.isclose(create("mac", {"tau": 0.0}).radius(0, 8), 4.0)
