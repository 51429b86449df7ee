"""MAC's exact equivalences, rules, costs by hand, and controls."""

from __future__ import annotations

from dataclasses import replace

import naive
import numpy as np
import pytest
import torch
from harness import allocate, drive, exact, problem
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from macbench.attention import create
from macbench.errors import MacbenchError


def mac(**knobs):
    return create("mac", {"tau": 0.5, "K": 16, "r": 6} | knobs)


def counted(record, name):
    """[steps, layers, B, heads]"""
    return torch.stack([c[name] for c in record.counts])


def still(case):
    """The same query at every position, before and after RoPE: all stored states are then exact."""
    sequences = []
    for s in case.sequences:
        q = s.q_pre[:, :1].expand_as(s.q_pre).clone()
        sequences.append(replace(s, q_pre=q, q=q.clone()))
    return replace(case, sequences=sequences)


@pytest.mark.parametrize("sink", [0, 3])
@pytest.mark.parametrize("r", [0, 6, 100])
def test_tau_1_equals_full(r, sink):
    case = problem(steps=8)
    record = drive(mac(tau=1.0, r=r, sink=sink), case)
    assert counted(record, "hit").sum() == 0
    assert_close(record.tensor(), exact(case), rtol=0, atol=1e-12)


@settings(max_examples=15)
@given(
    r=st.integers(0, 30),
    K=st.integers(1, 30),
    sink=st.integers(0, 4),
    match=st.sampled_from(["nearest", "previous", "random", "random_lag"]),
)
def test_planted_query_equals_full_for_every_r_and_p(r, K, sink, match):
    """A row built by the very same query reproduces full attention, however long the chain."""
    case = still(problem(lengths=(40, 33), steps=12))
    record = drive(mac(tau=0.9, r=r, K=K, sink=sink, match=match), case)
    assert_close(record.tensor(), exact(case), rtol=0, atol=1e-12)
    if r + sink + K < 33:  # then the row that is looked at was never empty
        assert counted(record, "hit").all()
        assert counted(record, "depth").max() >= 12 // K


def test_uniform_attention_is_exact_whatever_is_matched():
    """Zero keys: the cached mass does not depend on the query, so a wrong match costs nothing."""
    case = problem(steps=8)
    case.sequences = [replace(s, k=torch.zeros_like(s.k)) for s in case.sequences]
    record = drive(mac(tau=0.0, match="random"), case)
    assert counted(record, "hit").mean() > 0.5
    assert_close(record.tensor(), exact(case), rtol=0, atol=1e-12)


def test_equal_keys_are_not_exact():
    """The cached mass carries q_p.k: the negative of the test above."""
    case = problem(steps=8)
    case.sequences = [replace(s, k=s.k[:, :1].expand_as(s.k).clone()) for s in case.sequences]
    record = drive(mac(tau=0.0), case)
    assert (record.tensor() - exact(case)).abs().max() > 1e-3


@pytest.mark.parametrize("sink", [0, 4])
def test_the_row_of_a_miss_is_direct_attention_over_its_prefix(sink):
    case = problem(lengths=(40, 25), steps=12)
    record = drive(mac(tau=0.6, r=5, sink=sink), case)
    method, hits, checked = record.method, counted(record, "hit"), 0
    for slot, s in enumerate(case.sequences):
        for number in range(case.geometry.layers):
            data = naive.layer(case, slot, number)
            for at, head in np.ndindex(case.steps, case.geometry.q_heads):
                if hits[at, number, slot, head]:
                    continue
                t = s.length + at
                e = max(t + 1 - 5, 0)
                o, lse = data.attend(t, head, range(min(sink, e), e))
                where = (number, slot, head, t % method.K)
                np.testing.assert_allclose(method.outputs[where], o, atol=1e-12)
                assert method.lse[where].item() == pytest.approx(lse, abs=1e-12)
                checked += 1
    assert 20 < checked < hits.numel()


def planted(pairs, length=60, **shape):
    """One step at t = length; head h's query is a copy of those at positions pairs[h]."""
    case = problem(lengths=(length,), steps=1, layers=1, stray=1.0, d=16, **shape)
    s = case.sequences[0]
    for head, positions in enumerate(pairs):
        for p in positions:
            s.q_pre[0, p, head] = s.q_pre[0, length, head]
    return case


def test_ties_go_to_the_oldest_also_after_the_ring_wrapped():
    case = planted([(50, 45, 58)], kv_heads=1, group=1)
    assert counted(drive(mac(tau=0.9, K=16), case), "gap").item() == 15  # slots 2, 13 and 10
    assert counted(drive(mac(tau=0.9, K=15), case), "gap").item() == 15  # 45 is just in the ring
    assert counted(drive(mac(tau=0.9, K=14), case), "gap").item() == 10
    assert counted(drive(mac(tau=0.9, K=9), case), "gap").item() == 2


def test_a_nearest_row_that_is_empty_is_a_miss():
    """Positions before r have nothing to reuse; the next best row is not tried."""
    case = planted([(3,)], length=12, kv_heads=1, group=1)
    assert counted(drive(mac(tau=0.0, r=8), case), "hit").item() == 0
    assert counted(drive(mac(tau=0.9, r=3), case), "hit").item() == 1


def test_266_fresh_tokens():
    """t=1000, p=990, r=256: E(p)=735, so [735, 1000] is read. b is 8 bytes here."""
    case = planted([(990,)], length=1000, kv_heads=1, group=1)
    record = drive(mac(tau=0.9, K=32, r=256), case)
    now = {name: value.item() for name, value in record.counts[0].items()}
    assert now["hit"] == 1 and now["gap"] == 10 and now["distance"] == 0
    assert now["head_tokens"] == now["kv_tokens"] == 266
    assert now["meta_bytes"] == 32 * 16 * 8 + 16 * 8 + 4
    assert now["skip"] == pytest.approx(735 / 1001)


def test_a_group_reads_from_its_earliest_head():
    case = planted([(990,), (980,)], length=1000, kv_heads=1, group=2)
    record = drive(mac(tau=0.9, K=32, r=256), case)
    assert record.counts[0]["head_tokens"].flatten().tolist() == [266, 276]
    assert record.counts[0]["kv_tokens"].item() == 276
    assert record.counts[0]["meta_bytes"].item() == 2 * (32 * 16 * 8 + 16 * 8 + 4)
    assert record.counts[0]["group_hit"].item() == 1


def test_one_missing_head_makes_its_group_read_everything():
    case = planted([(990,), (), (970,), (980,)], length=1000, kv_heads=2, group=2)
    record = drive(mac(tau=0.9, K=32, r=256), case)
    assert record.counts[0]["head_tokens"].flatten().tolist() == [266, 1001, 286, 276]
    assert record.counts[0]["kv_tokens"].flatten().tolist() == [1001, 286]
    assert record.counts[0]["group_hit"].flatten().tolist() == [0, 1]


def test_refreshing_mixed_groups_costs_nothing_and_is_exact_there():
    case = planted([(90,), (), (85,), (80,)], length=100, kv_heads=2, group=2)
    s = case.sequences[0]  # a reused row that is visibly not this query's
    s.q[0, 90] = s.q[0, 91]
    plain = drive(mac(tau=0.9, K=32, r=8), case)
    fresh = drive(mac(tau=0.9, K=32, r=8, refresh_mixed_groups=True), case)
    assert plain.counts[0]["hit"].flatten().tolist() == [1, 0, 1, 1]
    assert fresh.counts[0]["hit"].flatten().tolist() == [0, 0, 1, 1]
    for name in ("kv_tokens", "meta_bytes"):
        assert torch.equal(fresh.counts[0][name], plain.counts[0][name])
    truth = exact(case)[0, 0, 0]
    assert_close(fresh.out[0][0][0, :2], truth[:2], rtol=0, atol=1e-12)
    assert (plain.out[0][0][0, 0] - truth[0]).abs().max() > 1e-4
    assert torch.equal(fresh.out[0][0][0, 2:], plain.out[0][0][0, 2:])


def test_a_sink_is_read_again_by_every_hit():
    case = planted([(990,)], length=1000, kv_heads=1, group=1)
    record = drive(mac(tau=0.9, K=32, r=256, sink=4), case)
    assert record.counts[0]["kv_tokens"].item() == 270


def test_min_context_scans_nothing_before_it():
    case = planted([(990,)], length=1000, kv_heads=1, group=1)
    for least, hit in ((1000, 1), (1001, 0)):
        record = drive(mac(tau=0.9, K=32, min_context=least), case)
        assert counted(record, "hit").item() == hit
        assert (record.counts[0]["meta_bytes"].item() > 32 * 16 * 8) == bool(hit)


@pytest.mark.parametrize("longest", [0, 1, 3])
def test_max_chain_bounds_the_hops(longest):
    case = problem(steps=14, noise=0.05, stray=0.0)
    depth = counted(drive(mac(tau=0.3, max_chain=longest), case), "depth")
    free = counted(drive(mac(tau=0.3), case), "depth")
    assert depth.max() == longest < free.max()


def test_post_rope_distances_grow_with_the_lag():
    """Copies of one query before RoPE: distance 0 there, none after it."""
    case = planted([(55,)], kv_heads=1, group=1)
    s = case.sequences[0]
    s.q_pre *= 0.2
    s.q[0] = case.geometry.rotate(s.q_pre[0], torch.arange(61))
    assert counted(drive(mac(tau=0.95), case), "hit").item() == 1
    assert counted(drive(mac(tau=0.95, match_on="post_rope"), case), "hit").item() == 0
    s.q[0, 44:55] = s.q[0, 56:60] = 9.0  # only the copy is left in reach
    moved = (s.q[0, 60, 0] - s.q[0, 55, 0]).norm().item() / (2 * 16) ** 0.5
    for tau, hit in ((1 - 1.01 * moved, 1), (1 - 0.99 * moved, 0)):
        record = drive(mac(tau=tau, match_on="post_rope"), case)
        assert counted(record, "hit").item() == hit


def test_amend_off_is_r_0():
    case = problem(steps=8)
    off, none = drive(mac(amend=False, r=6), case), drive(mac(r=0), case)
    assert torch.equal(off.tensor(), none.tensor())
    reused = counted(off, "hit") > 0
    assert reused.sum() > 10
    fresh, gap = counted(off, "head_tokens"), counted(off, "gap")
    assert torch.equal(fresh[reused], gap[reused])  # (p, t] and nothing else


CONTROL = {"lengths": (40, 30), "steps": 24, "noise": 0.1, "d": 16, "seed": 5}


def test_random_lag_keeps_the_hits_and_draws_only_lags_accepted_before():
    case = problem(**CONTROL)
    plain, control = drive(mac(), case), drive(mac(match="random_lag"), case)
    hit, lag, drawn = counted(plain, "hit"), counted(plain, "gap"), counted(control, "gap")
    assert torch.equal(counted(control, "hit"), hit)
    other = 0
    for where in np.ndindex(*hit.shape[1:]):
        seen = set()
        for at in range(case.steps):
            if hit[(at, *where)]:
                seen.add(lag[(at, *where)].item())
                assert drawn[(at, *where)].item() in seen
                other += drawn[(at, *where)] != lag[(at, *where)]
    assert other > hit.sum() / 4


def test_random_draws_valid_rows_evenly():
    case = problem(**CONTROL)
    plain, control = drive(mac(), case), drive(mac(match="random"), case)
    hit, gap = counted(plain, "hit"), counted(control, "gap")
    assert torch.equal(counted(control, "hit"), hit)
    drawn = gap[hit > 0]
    assert set(drawn.long().tolist()) == set(range(1, 17))  # every row of the ring, K = 16
    assert abs(drawn.mean() - 8.5) < 5 * (16**2 / 12 / len(drawn)) ** 0.5
    fresh = counted(control, "head_tokens")
    assert torch.equal(fresh[hit > 0], drawn + 6)  # (t - p) + r of the row really used


@pytest.mark.parametrize("r", [0, 4, 20])
@pytest.mark.parametrize("match", ["random", "random_lag"])
def test_random_rows_are_never_empty(match, r):
    """In a short prompt most rows are. Zero keys: a row that lacks keys would change the mean."""
    case = problem(lengths=(r + 3, r + 5), steps=10, noise=0.05, stray=0.0)
    case.sequences = [replace(s, k=torch.zeros_like(s.k)) for s in case.sequences]
    record = drive(mac(tau=0.1, r=r, sink=1, match=match), case)
    assert counted(record, "hit").sum() > 0
    assert_close(record.tensor(), exact(case), rtol=0, atol=1e-12)


@pytest.mark.parametrize("match", ["random", "random_lag"])
def test_random_controls_depend_on_the_sample_alone(match):
    case = problem(**CONTROL)
    first, again = (drive(mac(match=match), case) for _ in range(2))
    assert torch.equal(first.tensor(), again.tensor())
    case.sequences = [replace(s, key=s.key + 1) for s in case.sequences]
    other = drive(mac(match=match), case)
    assert not torch.equal(counted(first, "gap"), counted(other, "gap"))


def test_random_with_one_row_is_previous_token_reuse():
    case = problem(lengths=(40, 30), steps=10, centres=1, noise=0.05, stray=0.0)
    previous = drive(mac(match="previous", K=1), case)
    one = drive(mac(match="random", K=1, tau=0.0), case)
    assert counted(one, "hit").all() and counted(previous, "hit").all()
    assert torch.equal(one.tensor(), previous.tensor())
    assert (counted(previous, "head_tokens") == 1 + 6).all()


def test_refresh_every_third_step_is_exact():
    case = problem(steps=9)
    record = drive(mac(match="previous", refresh_every=3), case)
    hit = counted(record, "hit")
    assert not hit[2::3].any() and hit[0::3].all() and hit[1::3].all()
    assert_close(record.tensor()[2::3], exact(case)[2::3], rtol=0, atol=1e-12)


def test_resident_bytes_are_the_ring():
    case = problem(lengths=(40,), d=16).to(torch.bfloat16)
    per_row = 2 * 16 * 2 + 4 + 4  # query and output in bf16, lse in fp32, chain depth
    assert allocate(mac(K=32), case) == 2 * 4 * 32 * per_row  # layers, query heads, rows


@pytest.mark.parametrize(
    "knobs",
    [
        {"tau": 1.5},
        {"tau": [0.5, -0.1]},
        {"K": 0},
        {"r": -1},
        {"sink": -1},
        {"match": "nearst"},
        {"match_on": "rope"},
        {"refresh_every": -2},
    ],
)
def test_impossible_knobs_are_refused(knobs):
    with pytest.raises(MacbenchError, match=next(iter(knobs))):
        mac(**knobs)


def test_one_tau_per_layer():
    case = problem(noise=0.05, layers=2)
    hit = counted(drive(mac(tau=[0.2, 1.0]), case), "hit")
    assert hit[:, 0].any() and not hit[:, 1].any()
    with pytest.raises(MacbenchError, match="2 layers"):
        drive(mac(tau=[0.2, 1.0, 0.3]), case)
